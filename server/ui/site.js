// The page of one site: what it is, its gateways, its links, and the ways to join it.

import { all, Problem, request } from "./api.js";
import { Conflict, patch, remove as removeAsShown, tagged, told } from "./change.js";
import { badge, bytes, complain, confirmed, copyable, h, milliseconds, moment, percent, refill, since, table } from "./dom.js";
import { joinSteps, NAMES, siteForm, warnings } from "./form.js";
import { heldPeers, informOfKept, returnedInWords } from "./held.js";
import { absence } from "./overview.js";
import { problemInWords } from "./problem.js";
import { health } from "./sites.js";

/** How often numbers of bytes and handshakes are read again while the page is in sight. */
const NUMBERS_MS = 15_000;

export function sitePage(mesh, name) {
  const head = h("div", {});
  const edit = h("div", {});
  const gateways = h("section", { "aria-labelledby": "gateways-title" });
  const links = h("section", { "aria-labelledby": "links-title" });
  const join = h("section", { "aria-labelledby": "join-title" });
  const file = h("section", { class: "changes", "aria-labelledby": "file-title" });
  const element = h("div", {}, head, edit, gateways, links, join, file);
  let details = new Map();
  let told = "";

  function update() {
    const site = mesh.site(name);
    if (!site) {
      refill(element, h("h1", {}, name), h("p", {}, "There is no such site. ", h("a", { href: "#/sites" }, "All sites")));
      return;
    }
    const nodes = mesh.nodesOf(site);
    refill(head, ...about(mesh, site, () => change(site)));
    refill(gateways, h("h2", { id: "gateways-title" }, "Gateways"), nodes.length ? gatewayTable(mesh, nodes, rename) : h("p", { class: "faint" }, "None yet. Make a join token and run its command on the gateway, or a file for one that takes no agent."));
    const unmanaged = nodes.some((node) => node.unmanaged);
    file.hidden = nodes.length > 0 && !unmanaged;
    file.classList.toggle("made", unmanaged);
    refill(links, h("h2", { id: "links-title" }, "Links"), linkTable(mesh, nodes, details));
    const states = nodes.flatMap((node) => mesh.linksOf(node.id)).map((link) => link.state).join();
    if (states !== told) {
      told = states;
      read();
    }
  }

  async function read() {
    const site = mesh.site(name);
    if (!site || document.hidden) return;
    const found = await Promise.all(site.nodes.map((node) => all(`/links?node=${node.id}`))).catch(() => null);
    if (!found) return;
    details = new Map(found.flat().map((link) => [link.ends.map((end) => end.node).join(""), link]));
    refill(links, h("h2", { id: "links-title" }, "Links"), linkTable(mesh, mesh.nodesOf(site), details));
  }

  async function change(site) {
    const known = await shown(`/sites/${site.id}`);
    if (!known) return;
    const done = (changed, others) => {
      refill(edit, ...warnings(changed), others ? h("p", { class: "warning", role: "status" }, `Saved. Meanwhile ${others}. Both changes are kept.`) : null);
      if (changed.name !== name) location.hash = `#/sites/${encodeURIComponent(changed.name)}`;
    };
    refill(edit, h("section", { class: "card", "aria-labelledby": "edit-title" }, h("h2", { id: "edit-title" }, "Change the site"), siteForm({ path: `/sites/${site.id}`, known, action: "Save", done }),
      h("button", { type: "button", click: () => refill(edit) }, "Cancel")));
    edit.querySelector("input").focus();
  }

  async function rename(node) {
    const known = await shown(`/nodes/${node.id}`);
    if (!known) return;
    refill(edit, renameForm(known, () => refill(edit)));
    edit.querySelector("input").select();
  }

  update();
  const site = mesh.site(name);
  if (site) {
    refill(join, ...joinTokens(site));
    refill(file, ...wgQuick(site));
  }
  const timer = setInterval(read, NUMBERS_MS);
  return { title: () => `${name} – Wattle`, element, update, leave: () => clearInterval(timer) };
}

/** What a person is shown who is about to change it; null, with a complaint, when it cannot be read. */
function shown(path) {
  return tagged(path).catch((problem) => { complain(problem); return null; });
}

function about(mesh, site, change) {
  const facts = [
    ["Subnets", h("span", { class: "mono" }, site.subnets.length ? site.subnets.join(", ") : "none")],
    ["Endpoint", site.endpoint ? h("span", { class: "mono" }, site.endpoint) : h("span", {}, "none: it speaks first")],
    ["Tunnel address", h("span", { class: "mono" }, site.tunnel_address)],
    ["Labels", h("span", { class: "mono" }, Object.entries(site.labels).map(([key, value]) => `${key}=${value}`).join(", ") || "none")],
    ["Added", h("span", {}, moment(site.created_at))],
  ];
  return [
    h("div", { class: "title" }, h("h1", {}, site.name, " ", health(mesh, site)),
      h("div", { class: "tools" },
        h("button", { type: "button", id: "change", class: "changes", click: change }, "Change"),
        h("button", { type: "button", id: "remove", class: "danger changes", click: () => remove(site) }, "Remove"))),
    site.description ? h("p", { class: "free" }, site.description) : null,
    h("dl", { class: "facts" }, facts.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value)))),
  ];
}

/** The form of a gateway's name; `done` is called when it is not needed any more. */
function renameForm(known, done) {
  const node = known.object;
  const name = h("input", { id: "node-name", autocomplete: "off", autocapitalize: "off", spellcheck: "false", "aria-describedby": "node-name-hint node-name-error" });
  name.value = node.name;
  const error = h("p", { class: "error", id: "node-name-error", role: "alert" });
  const form = h("form", { class: "site", novalidate: true, submit },
    h("div", { class: "field" }, h("label", { for: name.id }, "Name"), name, error, h("p", { class: "hint", id: "node-name-hint" }, "Empty: it is named after its site, and follows that.")),
    h("div", { class: "actions" }, h("button", { class: "primary", id: "save-name" }, "Save"), h("button", { type: "button", click: done }, "Cancel")));

  async function submit(event) {
    event.preventDefault();
    error.textContent = "";
    try {
      await patch(`/nodes/${node.id}`, "", known, { name: name.value.trim() || null }, ["name"]);
      done();
    } catch (problem) {
      if (problem instanceof Conflict) {
        error.textContent = `Nothing is saved: ${await told(node, problem.fields)}. Save again to have yours in its place, or cancel.`;
        known = problem.now;
        return;
      }
      error.textContent = problem instanceof Problem ? problem.message : "The coordinator cannot be reached.";
      name.focus();
    }
  }

  return h("section", { class: "card changes", "aria-labelledby": "rename-title" }, h("h2", { id: "rename-title" }, `Rename ${node.name}`), form);
}

function gatewayTable(mesh, nodes, rename) {
  const revision = mesh.position;
  // Nobody who does not use the lock needs to read of it.
  const locked = [...mesh.nodes.values()].some((node) => node.admission);
  const rows = nodes.map((node) => {
    const report = node.last_report;
    return h("tr", {},
      h("th", { scope: "row" }, node.name),
      h("td", {}, node.state, absence(node) ? h("span", { class: "badge degraded" }, absence(node)) : null, node.unmanaged ? h("span", { class: "faint" }, ", no agent") : null, node.rotation ? h("span", { class: "faint" }, `, new key ${node.rotation.phase}`) : null, locked ? h("span", { class: "faint" }, node.admitted ? ", admitted" : ", not admitted by an operator") : null),
      h("td", { class: "mono" }, node.tunnel_address),
      h("td", {}, report ? (report.device ?? "no interface") : "–"),
      h("td", {}, node.unmanaged ? fileState(node.unmanaged) : report ? (report.applied === revision ? "current" : `at ${report.applied} of ${revision}`) : "–"),
      h("td", {}, node.unmanaged ? "–" : since(report?.at)),
      h("td", {}, node.agent_version ?? "none"),
      h("td", { class: "free" }, node.problems.length ? h("ul", { class: "problems" }, node.problems.map((problem) => h("li", {}, problemInWords(problem)))) : h("span", { class: "faint" }, "none"), node.held ? heldPeers(node) : null, node.removed_on ? h("p", {}, "It ", ...returnedInWords(node)) : null),
      h("td", {}, h("button", { type: "button", id: `rename-${node.id}`, class: "changes", "aria-label": `Rename ${node.name}`, click: () => rename(node) }, "Rename"), " ",
        h("button", { type: "button", id: `revoke-${node.id}`, class: "danger changes", "aria-label": `Revoke ${node.name}`, click: () => revoke(node) }, "Revoke")));
  });
  return table("Gateways", ["Name", "State", "Tunnel address", "WireGuard", "Configuration", "Last report", "Agent", "Problems", ""], rows);
}

/** Whether the file of a gateway without an agent says what the mesh is now. */
function fileState({ file_made_at, file_is_current }) {
  if (file_is_current) return h("span", {}, `file of ${moment(file_made_at)}`);
  return [h("span", { class: "badge degraded" }, "file out of date"), h("span", { class: "faint" }, ` of ${moment(file_made_at)}: make another`)];
}

function linkTable(mesh, nodes, details) {
  const order = ["down", "degraded", "never", "up"];
  const links = nodes.flatMap((node) => mesh.linksOf(node.id).map((link) => ({ node, link, peer: mesh.nodes.get(link.ends.find((end) => end !== node.id)) })));
  links.sort((a, b) => order.indexOf(a.link.state) - order.indexOf(b.link.state) || ((a.peer?.name ?? "") < (b.peer?.name ?? "") ? -1 : 1));
  if (!links.length) return h("p", { class: "faint" }, "None yet: there is no other gateway to reach.");
  const rows = links.map(({ node, link, peer }) => {
    const detail = details.get(link.ends.join(""));
    const here = detail?.ends.find((end) => end.node === node.id);
    const there = detail?.ends.find((end) => end.node !== node.id);
    const end = (side) => (side?.reported_at ? since(side.last_handshake_at) : h("span", { class: "faint" }, side ? "no word" : "…"));
    return h("tr", {},
      h("th", { scope: "row" }, h("a", { id: `peer-${node.id}-${peer?.id}`, href: `#/sites/${encodeURIComponent(peer?.site_name ?? "")}` }, peer?.name ?? "?"), nodes.length > 1 ? h("span", { class: "faint" }, ` with ${node.name}`) : null),
      h("td", {}, h("a", { id: `link-${node.id}-${peer?.id}`, href: mesh.href(link), "aria-label": `${link.fault ?? link.state}, the link with ${peer?.name}` }, badge(link.state, link.fault))),
      h("td", {}, since(link.since)),
      h("td", { class: "number" }, milliseconds(here)),
      h("td", { class: here?.loss_percent ? "number degraded" : "number" }, percent(here)),
      h("td", {}, end(here)),
      h("td", {}, end(there)),
      h("td", { class: "number" }, here ? bytes(here.received_bytes) : "…"),
      h("td", { class: "number" }, here ? bytes(here.sent_bytes) : "…"),
      h("td", { class: "mono" }, here?.peer_endpoint ?? "–", here?.endpoint_source === "learned" ? h("span", { class: "faint" }, " learned") : null));
  });
  return table("Links", ["Peer", "State", "Since", "#Round trip", "#Lost", "Handshake here", "Handshake there", "#Received", "#Sent", "Peer's endpoint"], rows);
}

/** The join tokens of a site, and the way to a new one. */
function joinTokens(site) {
  const uses = h("input", { id: "uses", type: "number", min: "1", max: "100", value: "1" });
  const lifetime = h("select", { id: "lifetime" }, [["3600", "an hour"], ["86400", "a day"], ["604800", "7 days"]].map(([value, text]) => h("option", { value }, text)));
  const fresh = h("div", { "aria-live": "polite" });
  const error = h("p", { class: "error", role: "alert" });
  const existing = h("div", {});
  const form = h("form", { class: "inline changes", submit },
    h("label", { for: "uses" }, "For"), uses, h("label", { for: "lifetime" }, "machines, valid for"), lifetime, h("button", { id: "new-token" }, "New join token"));

  async function submit(event) {
    event.preventDefault();
    error.textContent = "";
    try {
      const created = await request("POST", `/sites/${site.id}/join-tokens`, { uses: Number(uses.value), expires_in_s: Number(lifetime.value) });
      refill(fresh, ...joinSteps(created, `Run this on the gateway of ${site.name}, as root, before ${moment(created.expires_at)}. It is shown this once.`));
      await list();
    } catch (problem) {
      error.textContent = problem instanceof Problem ? problem.message : "The coordinator cannot be reached.";
    }
  }

  async function list() {
    const tokens = await all(`/sites/${site.id}/join-tokens`).catch(() => []);
    const usable = tokens.filter((token) => token.uses_left > 0 && new Date(token.expires_at) > new Date());
    const rows = usable.map((token) => h("tr", {},
      h("th", { scope: "row", class: "mono" }, token.id.slice(0, 13)),
      h("td", {}, `${token.uses_left} left`),
      h("td", {}, `until ${moment(token.expires_at)}`),
      h("td", {}, h("button", { type: "button", class: "danger changes", "aria-label": `Revoke the join token ${token.id}`, click: async () => { await request("DELETE", `/join-tokens/${token.id}`).catch(() => null); await list(); } }, "Revoke"))));
    refill(existing, rows.length ? table("Join tokens", ["Token", "Machines", "Valid", ""], rows) : h("p", { class: "faint" }, "No join token is valid now."));
  }

  list();
  return [h("h2", { id: "join-title" }, "Join a gateway"), form, error, fresh, existing];
}

/** The way to a file for a gateway that takes no agent. */
function wgQuick(site) {
  const key = h("input", { id: "file-key", class: "mono", autocomplete: "off", spellcheck: "false", placeholder: "made for it if empty", "aria-describedby": "file-error" });
  const fresh = h("div", { "aria-live": "polite" });
  const error = h("p", { class: "error", id: "file-error", role: "alert" });
  const form = h("form", { class: "inline changes", submit },
    h("span", { class: "key" }, h("label", { for: key.id }, "Its public key"), key), h("button", { id: "new-file" }, "New wg-quick file"));

  async function submit(event) {
    event.preventDefault();
    error.textContent = "";
    try {
      const created = await request("POST", `/sites/${site.id}/wg-quick`, { wireguard_key: key.value.trim() || null });
      key.value = "";
      refill(fresh, h("p", {}, `Put this in place of the file that the gateway of ${site.name} has, if any. It holds secrets and is shown this once.`), copyable(created.file, "the wg-quick file"));
    } catch (problem) {
      error.textContent = problem instanceof Problem ? problem.message : "The coordinator cannot be reached.";
    }
  }

  return [h("h2", { id: "file-title" }, "Without an agent"),
    h("p", { class: "faint" }, "For a router, a phone or a cloud appliance that takes a wg-quick file. Nothing updates it there: when it is out of date, make another."), form, error, fresh];
}

async function remove(site) {
  const path = `/sites/${site.id}`;
  const known = await shown(path);
  if (!known) return;
  if (!await confirmed(`Remove ${site.name}?`, "Its gateways are revoked for good and its subnets become free. Its tunnels end at every other site.", "Remove the site")) return;
  await removeAsShown(path, known, [...NAMES, "nodes"]).then((answer) => { location.hash = "#/sites"; informOfKept(site.name, answer); }, complain);
}

async function revoke(node) {
  const path = `/nodes/${node.id}`;
  const known = await shown(path);
  if (!known) return;
  if (!await confirmed(`Revoke ${node.name}?`, "Its keys never join again. A further gateway of its site takes its place.", "Revoke the gateway")) return;
  await removeAsShown(path, known, ["name", "state", "endpoint"]).then((answer) => informOfKept(node.name, answer), complain);
}
