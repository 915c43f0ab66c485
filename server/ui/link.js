// The page of one link: how it is from both ends, and how it was.

import { request } from "./api.js";
import { badge, bytes, h, milliseconds, moment, percent, refill, since, span, table } from "./dom.js";
import { problemInWords } from "./problem.js";

/** How often what the two ends say is read again while the page is in sight. */
const NUMBERS_MS = 5_000;
/** As many changes are shown as somebody reads; the coordinator remembers up to 500. */
const MOST_CHANGES = 100;

export function linkPage(mesh, first, second) {
  const head = h("div", {});
  const ends = h("section", { "aria-labelledby": "ends-title" });
  const history = h("section", { "aria-labelledby": "history-title" });
  const element = h("div", {}, head, ends, history);
  const pace = new Pace();
  let told = "";

  function update() {
    const [a, b] = [first, second].map((name) => mesh.node(name));
    const link = a && b && mesh.link(a.id, b.id);
    if (!link) {
      refill(element, h("h1", {}, `${first} – ${second}`), h("p", {}, "There is no such link. ", h("a", { href: "#/" }, "All links")));
      return;
    }
    refill(head,
      h("h1", {}, place(a), " – ", place(b), " ", badge(link.state, link.fault)),
      h("p", { class: "faint" }, link.since ? `${link.state} since ${moment(link.since)}` : "Neither end has said anything of it yet."));
    const state = [link.state, link.fault, link.since].join();
    if (state !== told) {
      told = state;
      read();
    }
  }

  async function read() {
    if (document.hidden) return;
    const path = `/links/${encodeURIComponent(first)}/${encodeURIComponent(second)}`;
    const answers = await Promise.all([request("GET", path), request("GET", `${path}/history?limit=${MOST_CHANGES}`)]).catch(() => null);
    if (!answers) return;
    const [link, changes] = answers;
    link.ends.sort((a) => (a.name === first ? -1 : 1));
    refill(ends, h("h2", { id: "ends-title" }, "Both ends"), ...lans(mesh, link), endTable(link.ends, link.ends.map((end) => pace.of(end))));
    refill(history, h("h2", { id: "history-title" }, "The last 30 days"), historyTable(changes.items));
  }

  update();
  const timer = setInterval(read, NUMBERS_MS);
  return { title: () => `${first} – ${second} – Wattle`, element, update, leave: () => clearInterval(timer) };
}

function place(node) {
  return h("a", { id: `end-${node.id}`, href: `#/sites/${encodeURIComponent(node.site_name)}` }, node.name);
}

/** Whether the LANs at its ends get each other's packets, and what is in the way. */
function lans(mesh, link) {
  const words = {
    ok: "Nothing on the two gateways is between their LANs.",
    unknown: "Whether their LANs reach each other is not known: a gateway is silent, or has no agent.",
    unproven: "Something may be between their LANs:",
    degraded: "Their LANs are kept from each other:",
  };
  const whole = ({ node, code, subject }) => mesh.nodes.get(node)?.problems.find((problem) => problem.code === code && (problem.subject ?? "") === subject);
  const problems = (link.lan_problems ?? []).map((named) => {
    const node = mesh.nodes.get(named.node);
    const problem = whole(named);
    return h("li", {}, node ? place(node) : "?", ": ", problem ? problemInWords(problem) : `${named.code} ${named.subject}`);
  });
  return [
    h("p", { id: "lan", class: link.lan === "ok" ? "faint" : "" }, words[link.lan]),
    problems.length ? h("ul", { class: "problems" }, problems) : null,
  ];
}

function endTable(ends, rates) {
  const words = { up: "up", lossy: "lossy", slow: "slow", one_way: "hears, and is not answered", down: "down" };
  const flow = (count, rate) => `${bytes(count)}${rate === null ? "" : `, ${bytes(rate)}/s`}`;
  const facts = [
    ["It finds the link", (end) => words[end.state] ?? (end.up ? "no agent: as the other end says" : "–")],
    ["Round trip", milliseconds],
    ["Lost", percent],
    ["Last handshake", (end) => since(end.last_handshake_at)],
    ["Received", (end, rate) => flow(end.received_bytes, rate.received)],
    ["Sent", (end, rate) => flow(end.sent_bytes, rate.sent)],
    ["Sends to", (end) => [h("span", { class: "mono" }, end.peer_endpoint ?? "–"), end.endpoint_source ? h("span", { class: "faint" }, ` ${end.endpoint_source}`) : null]],
    ["MTU", (end) => (end.mtu ? `${end.mtu} bytes` : "–")],
    ["Last word", (end) => since(end.reported_at)],
  ];
  const rows = facts.map(([name, fact]) => h("tr", {}, h("th", { scope: "row" }, name), ends.map((end, index) => h("td", {}, fact(end, rates[index])))));
  return table("Both ends", ["", ...ends.map((end) => end.name)], rows, "narrow");
}

function historyTable(changes) {
  if (!changes.length) return h("p", { class: "faint" }, "It has not changed.");
  const rows = changes.map((change, index) => {
    const end = changes[index - 1]?.at;
    return h("tr", {},
      h("th", { scope: "row" }, h("time", { datetime: change.at }, moment(change.at))),
      h("td", {}, badge(change.state, change.fault)),
      h("td", {}, end ? span(change.at, end) : "until now"));
  });
  return table("History", ["From", "State", "For"], rows, "narrow");
}

/** Bytes per second between the last two words of each end. */
class Pace {
  #words = new Map();

  of({ node, reported_at: at, received_bytes: received, sent_bytes: sent }) {
    const { last, rate } = this.#words.get(node) ?? { rate: { received: null, sent: null } };
    if (!at || at === last?.at) return rate;
    const seconds = last ? (new Date(at) - new Date(last.at)) / 1000 : 0;
    // A device that is new counts from nothing.
    const per = (now, before) => (seconds > 0 && now >= before ? Math.round((now - before) / seconds) : null);
    const fresh = { received: per(received, last?.received), sent: per(sent, last?.sent) };
    this.#words.set(node, { last: { at, received, sent }, rate: fresh });
    return fresh;
  }
}
