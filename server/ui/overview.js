// The whole mesh on one page: a sentence, what needs attention, the matrix, the ring.

import { request } from "./api.js";
import { badge, complain, confirmed, count, h, moment, refill, since, span } from "./dom.js";
import { heldLine, informOfKept, returnedInWords } from "./held.js";
import { Matrix } from "./matrix.js";
import { keptApart, problemInWords } from "./problem.js";
import { tally } from "./mesh.js";
import { ring } from "./ring.js";

/** As many rows are shown of what needs attention; more would be an outage, which the matrix shows better. */
const MOST_ROWS = 50;

/** As many gateways are named in the sentence; of more it has the number. */
const MOST_NAMES = 3;

/** `silent for 3 min`; null for a gateway that is connected, or has no agent. */
export function absence(node) {
  const { state, since } = node.connection ?? {};
  return state === "silent" || state === "behind" ? `${state} for ${span(since, Date.now())}` : null;
}

const isApart = (node) => node.lan === "degraded" || node.lan === "unproven";

/** Gateways that are silent or behind, or that have problems, in words for the sentence. */
function unwell(mesh) {
  const away = mesh.nodesInOrder.filter(absence);
  const troubled = mesh.nodesInOrder.filter((node) => !absence(node) && node.problems.length);
  const parts = away.length > MOST_NAMES ? ["silent", "behind"].map((state) => [state, away.filter((node) => node.connection.state === state).length]).filter(([, number]) => number).map(([state, number]) => `${count(number, "gateway")} ${state}`) : away.map((node) => `${node.name} is ${absence(node)}`);
  if (troubled.length > MOST_NAMES) parts.push(`${count(troubled.length, "gateway")} with problems`);
  else parts.push(...troubled.map((node) => (isApart(node) ? keptApart(mesh, node) : `${node.name} has problems`)));
  return parts;
}

/** The state of the mesh in a sentence: `12 sites, 66 links, 2 down since 10:42`. */
export function sentence(mesh) {
  const links = mesh.links;
  const { down, degraded, never } = tally(links);
  const parts = [count(mesh.sites.size, "site"), count(links.length, "link")];
  if (down.count) parts.push(`${down.count} down since ${moment(down.since)}`);
  if (degraded.count) parts.push(`${degraded.count} degraded since ${moment(degraded.since)}`);
  if (never.count) parts.push(`${never.count} never up`);
  const gateways = unwell(mesh);
  parts.push(...gateways);
  if (links.length && !down.count && !degraded.count && !never.count && !gateways.length) parts.push("all up");
  return parts.join(", ");
}

/** The worst that the mesh has to tell: the colour of the sentence. */
function mood(mesh) {
  const { down, degraded, never, up } = tally(mesh.links);
  if (down.count) return "down";
  if (degraded.count || unwell(mesh).length) return "degraded";
  return up.count && !never.count ? "up" : "never";
}

export function overview(mesh) {
  const headline = h("h1", { id: "sentence", role: "status" });
  const attention = h("section", { "aria-labelledby": "attention-title" });
  const matrix = new Matrix(mesh);
  const topology = h("section", { "aria-labelledby": "ring-title", class: "ring" });
  const filter = h("input", { type: "search", id: "filter", placeholder: "Site, label or address", "aria-label": "Show only sites with", input: () => show() });
  const problems = h("input", { type: "checkbox", id: "problems", change: () => show() });
  const links = h("section", { "aria-labelledby": "matrix-title" },
    h("div", { class: "title" },
      h("h2", { id: "matrix-title" }, "Links"),
      h("div", { class: "tools" }, filter, h("label", { class: "check" }, problems, "with problems only"), matrix.tools)),
    matrix.element);

  function show() {
    const words = filter.value.trim().toLowerCase();
    matrix.show(mesh.nodesInOrder.filter((node) => matches(mesh, node, words) && (!problems.checked || troubled(mesh, node))));
  }

  function update() {
    headline.textContent = sentence(mesh);
    headline.className = mood(mesh);
    const rows = [...waiting(mesh), ...returned(mesh), ...holding(mesh), ...away(mesh), ...stale(mesh), ...trouble(mesh)];
    refill(attention, h("h2", { id: "attention-title" }, "Needs attention"), rows.length ? list(rows) : nothing(mesh));
    show();
    refill(topology, h("h2", { id: "ring-title" }, "Topology"), ring(mesh));
  }

  update();
  // The sentence has durations.
  const timer = setInterval(() => { headline.textContent = sentence(mesh); }, 15_000);
  const leave = () => { clearInterval(timer); matrix.leave(); };
  return { title: () => `${sentence(mesh)} – Wattle`, element: h("div", { class: "overview" }, headline, attention, links, topology), update, leave };
}

function matches(mesh, node, words) {
  const site = mesh.sites.get(node.site);
  const texts = [node.name, node.site_name, node.tunnel_address, ...(site?.subnets ?? []), ...Object.entries(site?.labels ?? {}).map(([key, value]) => `${key}=${value}`)];
  return texts.some((text) => text.toLowerCase().includes(words));
}

function troubled(mesh, node) {
  return node.problems.length > 0 || mesh.linksOf(node.id).some((link) => link.state !== "up");
}

function waiting(mesh) {
  return mesh.sitesInOrder.filter((site) => !site.nodes.length).map((site) => [
    h("span", { class: "badge waiting" }, "no gateway"),
    h("span", {}, place(site.name), " has no gateway yet: make a join token and run its command there"),
    since(site.created_at),
  ]);
}

function holding(mesh) {
  const nodes = mesh.nodesInOrder.filter((node) => node.held);
  const rows = nodes.slice(0, MOST_ROWS).map((node) => [
    h("span", { class: "badge degraded" }, "held peers"),
    h("span", {}, place(node.site_name, node.name), heldLine(node)),
    null,
  ]);
  return [...rows, ...andMore(nodes.length - rows.length)];
}

/** Nodes that gateways know as removed. */
function returned(mesh) {
  return mesh.nodesInOrder.filter((node) => node.removed_on).slice(0, MOST_ROWS).map((node) => [
    h("span", { class: "badge degraded" }, "removed before"),
    h("span", {}, place(node.site_name, node.name), " ", ...returnedInWords(node), " ",
      h("button", { type: "button", class: "danger changes", id: `again-${node.id}`, "aria-label": `Revoke ${node.name} again`, click: () => revokeAgain(node) }, "Revoke again")),
    null,
  ]);
}

async function revokeAgain(node) {
  if (!await confirmed(`Revoke ${node.name} again?`, "It was removed before, and came back with a backup. Its keys never join again.", "Revoke the gateway")) return;
  await request("DELETE", `/nodes/${node.id}`).then((answer) => informOfKept(node.name, answer), complain);
}

function away(mesh) {
  const silent = "no coordinator hears its agent: is the gateway on, and does wattle-agent run there? Its tunnels may work all the same";
  const behind = "its agent reports, but its host does not have the newest configuration: see its problems";
  const rows = mesh.nodesInOrder.filter(absence).map((node) => [
    h("span", { class: "badge degraded" }, node.connection.state),
    h("span", {}, place(node.site_name, node.name), `: ${node.connection.state === "silent" ? silent : behind}`),
    since(node.connection.since),
  ]);
  const problems = mesh.nodesInOrder.flatMap((node) => node.problems.map((problem) => [
    h("span", { class: "badge degraded" }, problem.lan ? `LAN ${problem.lan}` : "problem"),
    h("span", {}, place(node.site_name, node.name), ": ", problemInWords(problem)),
    since(problem.since),
  ]));
  return [...rows, ...problems].slice(0, MOST_ROWS);
}

function stale(mesh) {
  return mesh.nodesInOrder.filter((node) => node.unmanaged && !node.unmanaged.file_is_current).map((node) => [
    h("span", { class: "badge degraded" }, "old file"),
    h("span", {}, "the mesh is not what the file of ", place(node.site_name), " says any more: make another and put it on the gateway"),
    since(node.unmanaged.file_made_at),
  ]);
}

function trouble(mesh) {
  const order = ["down", "degraded", "never"];
  const links = mesh.links.filter((link) => link.state !== "up");
  links.sort((a, b) => order.indexOf(a.state) - order.indexOf(b.state) || ((b.since ?? "") < (a.since ?? "") ? -1 : 1));
  const rows = links.slice(0, MOST_ROWS).map((link) => {
    const [a, b] = link.ends.map((end) => mesh.nodes.get(end)).sort((a, b) => (a?.name < b?.name ? -1 : 1));
    const state = h("a", { id: `attention-${link.ends.join("")}`, href: mesh.href(link), "aria-label": `${link.fault ?? link.state}, the link ${a?.name} – ${b?.name}` }, badge(link.state, link.fault));
    return [state, h("span", {}, place(a?.site_name, a?.name), " – ", place(b?.site_name, b?.name)), since(link.since)];
  });
  return [...rows, ...andMore(links.length - rows.length)];
}

function andMore(number) {
  return number ? [[h("span", {}), h("span", { class: "faint" }, `and ${number} more`), h("span", {})]] : [];
}

function place(site, name = site) {
  return h("a", { href: `#/sites/${encodeURIComponent(site)}` }, name);
}

function list(rows) {
  return h("ul", { class: "attention" }, rows.map((cells) => h("li", {}, cells)));
}

function nothing(mesh) {
  if (!mesh.sites.size) return h("p", {}, "There is no site yet. ", h("a", { href: "#/add", class: "button changes" }, "Add the first"));
  return h("p", { class: "faint" }, mesh.links.length ? "Nothing: every link is up, every gateway is heard, and none of them keeps a LAN from others." : "Nothing.");
}
