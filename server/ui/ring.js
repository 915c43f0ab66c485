// The topology: every gateway on a ring, every link a chord.

import { h, s } from "./dom.js";
import { tally } from "./mesh.js";

/** With more gateways than this, the chords of links that are up would hide all else. */
const MOST_CHORDS = 24;
/** With more gateways than this, names would lie on each other. */
const MOST_NAMES = 60;
const RADIUS = 150;

export function ring(mesh) {
  const nodes = mesh.nodesInOrder;
  if (nodes.length < 2) return h("p", { class: "faint" }, "Nothing to draw with fewer than two gateways.");
  const places = new Map(nodes.map((node, index) => [node.id, at(index, nodes.length)]));
  const all = nodes.length <= MOST_CHORDS;
  const drawn = mesh.links.filter((link) => all || link.state !== "up");
  const order = ["up", "never", "degraded", "down"];
  drawn.sort((a, b) => order.indexOf(a.state) - order.indexOf(b.state));
  const chords = drawn.map((link) => {
    const [a, b] = link.ends.map((end) => places.get(end));
    if (!a || !b) return null;
    return s("line", { x1: a.x, y1: a.y, x2: b.x, y2: b.y, class: `chord ${link.state}` });
  });
  const named = nodes.length <= MOST_NAMES;
  const gateways = nodes.map((node) => gateway(mesh, node, places.get(node.id), named));
  // Where they lie on each other, the worst is on top.
  if (!named) gateways.sort((a, b) => order.indexOf(a.worst) - order.indexOf(b.worst));
  const label = `${nodes.length} gateways on a ring, each a link to its site`;
  const drawing = s("svg", { viewBox: "-245 -180 490 360", role: "group", "aria-label": label }, s("g", {}, chords), s("g", {}, gateways.map(({ element }) => element)));
  return h("figure", {}, drawing, all ? null : h("figcaption", { class: "faint" }, "Links that are up are not drawn: they are too many."));
}

function at(index, size) {
  const angle = (index / size) * 2 * Math.PI - Math.PI / 2;
  return { x: RADIUS * Math.cos(angle), y: RADIUS * Math.sin(angle), angle };
}

function gateway(mesh, node, { x, y, angle }, named) {
  const states = tally(mesh.linksOf(node.id));
  const worst = ["down", "degraded", "never"].find((state) => states[state].count) ?? "up";
  const right = Math.cos(angle) > 0.05;
  const left = Math.cos(angle) < -0.05;
  const label = s("text", {
    x: x + (right ? 10 : left ? -10 : 0),
    y: y + (right || left ? 4 : y < 0 ? -11 : 20),
    "text-anchor": right ? "start" : left ? "end" : "middle",
  }, node.name);
  const element = s("a", { href: `#/sites/${encodeURIComponent(node.site_name)}`, "aria-label": `${node.name}, ${words(states)}` },
    s("title", {}, `${node.name}: ${words(states)}`),
    s("circle", { cx: x, cy: y, r: named || worst !== "up" ? 5 : 3, class: worst }),
    named ? label : null);
  return { worst, element };
}

function words(states) {
  const parts = Object.entries(states).filter(([, { count }]) => count).map(([state, { count }]) => `${count} ${state}`);
  return parts.join(", ") || "no links";
}
