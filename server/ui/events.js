// The audit log, newest first, which goes on by itself.

import { request } from "./api.js";
import { complain, h, moment, refill, table } from "./dom.js";

/** What is no configuration moves no revision, and is looked for so often. */
const LOOK_MS = 5_000;
const AT_A_TIME = 50;

export function eventPage(mesh) {
  const list = h("div", {});
  const more = h("button", { type: "button", id: "older", hidden: true, click: () => older() }, "Older");
  const element = h("div", {}, h("h1", {}, "Events"), list, h("p", { class: "actions" }, more));
  let events = [];
  let cursor = null;
  let position = null;

  async function page(after = "") {
    return request("GET", `/events?limit=${AT_A_TIME}${after}`).catch((problem) => { complain(problem); return null; });
  }

  async function newest() {
    if (document.hidden) return;
    const found = await page();
    if (!found) return;
    const last = events[0]?.number ?? 0;
    const unknown = found.items.filter((event) => event.number > last);
    // After a gap what is older is shown anew, so that nothing is left out.
    const whole = unknown.length < found.items.length;
    if (!whole || !events.length) cursor = found.next_cursor ?? null;
    events = whole ? [...unknown, ...events] : unknown;
    if (unknown.length) show();
  }

  async function older() {
    const found = await page(`&cursor=${cursor}`);
    if (!found) return;
    cursor = found.next_cursor ?? null;
    events = [...events, ...found.items];
    show();
  }

  function show() {
    more.hidden = cursor === null;
    const rows = events.map((event) => h("tr", {},
      h("th", { scope: "row" }, String(event.number)),
      h("td", {}, h("time", { datetime: event.at }, moment(event.at))),
      h("td", { class: "free" }, event.sentence, " ", h("span", { class: "faint" }, event.action)),
      h("td", { class: "free" }, named(mesh, event.object, event.object_name)),
      h("td", { class: "free" }, named(mesh, event.actor, event.actor_name), event.actor_site ? h("span", { class: "faint" }, ` of ${event.actor_site}`) : null),
      h("td", { class: "number" }, event.revision === null ? "–" : String(event.revision))));
    refill(list, table("Events", ["Number", "When", "What", "Of", "By", "#Revision"], rows));
  }

  function update() {
    if (mesh.position === position) return;
    position = mesh.position;
    newest();
  }

  update();
  const timer = setInterval(newest, LOOK_MS);
  return { title: () => "Events – Wattle", element, update, leave: () => clearInterval(timer) };
}

/** What had this name then, with the way to what it is now. */
function named(mesh, text, name) {
  const id = text.split(":").at(-1);
  const site = mesh.sites.get(id)?.name ?? mesh.nodes.get(id)?.site_name;
  if (site) return h("a", { href: `#/sites/${encodeURIComponent(site)}`, title: text }, name);
  return h("span", { title: text }, name);
}
