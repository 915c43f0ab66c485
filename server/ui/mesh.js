// The mesh as the coordinator tells it: one stream, followed for as long as the page is open.

import { Problem, send } from "./api.js";

/** No word from the coordinator for so long means that the connection is dead; it shows a sign of life every ten seconds. */
const SILENCE_MS = 30_000;
const RETRY_MS = [500, 1000, 2000, 5000, 10_000];

/** States from the worst to the best. */
export const STATES = ["down", "degraded", "never", "up"];

export class Mesh extends EventTarget {
  sites = new Map();
  nodes = new Map();
  #links = new Map();
  /** `connecting`, `live` or `lost`. */
  connection = "connecting";
  /** Since when the connection is lost. */
  lostSince = null;
  #last = null;
  #stop = new AbortController();

  /** Nodes in the order of their sites' names, the active one of each first. */
  get nodesInOrder() {
    const rank = (node) => `${node.site_name} ${node.state === "active" ? 0 : 1} ${node.name}`;
    return [...this.nodes.values()].sort((a, b) => (rank(a) < rank(b) ? -1 : 1));
  }

  get sitesInOrder() {
    return [...this.sites.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  get links() {
    return [...this.#links.values()];
  }

  site(name) {
    return [...this.sites.values()].find((site) => site.name === name);
  }

  node(name) {
    return [...this.nodes.values()].find((node) => node.name === name);
  }

  /** The page of a link. */
  href(link) {
    const names = link.ends.map((end) => this.nodes.get(end)?.name ?? "?").sort();
    return `#/links/${names.map(encodeURIComponent).join("/")}`;
  }

  nodesOf(site) {
    return this.nodesInOrder.filter((node) => node.site === site.id);
  }

  /** The link of two nodes; nodes of one site have none. */
  link(a, b) {
    return this.#links.get(a < b ? a + b : b + a);
  }

  linksOf(node) {
    return this.links.filter((link) => link.ends.includes(node));
  }

  /** Follows the stream until `stop`; an `ended` event tells that the token is not valid any more. */
  async follow() {
    for (let failures = 0; !this.#stop.signal.aborted;) {
      try {
        await this.#listen(() => { failures = 0; });
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        if (error instanceof Problem && (error.status === 401 || error.status === 403)) {
          this.dispatchEvent(new CustomEvent("ended", { detail: error }));
          return;
        }
      }
      this.#become("lost");
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]));
      failures += 1;
    }
  }

  stop() {
    this.#stop.abort();
  }

  async #listen(succeeded) {
    const silent = new AbortController();
    const signal = AbortSignal.any([this.#stop.signal, silent.signal]);
    const headers = this.#last ? { "last-event-id": this.#last } : {};
    let timer = setTimeout(() => silent.abort(), SILENCE_MS);
    try {
      const response = await send("GET", "/events/stream", { headers, signal });
      succeeded();
      this.#become("live");
      let rest = "";
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
        clearTimeout(timer);
        timer = setTimeout(() => silent.abort(), SILENCE_MS);
        const events = (rest + piece.value).split("\n\n");
        rest = events.pop();
        events.forEach((event) => this.#receive(event));
      }
    } finally {
      clearTimeout(timer);
    }
  }

  #receive(text) {
    const field = (name) => text.split("\n").filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trimStart()).join("\n");
    const data = field("data");
    if (!data) return;
    this.#take(JSON.parse(data));
    this.#last = field("id") || this.#last;
    this.dispatchEvent(new Event("change"));
  }

  #take(news) {
    if (news.complete) {
      this.sites.clear();
      this.nodes.clear();
      this.#links.clear();
    }
    for (const site of news.sites ?? []) this.sites.set(site.id, site);
    for (const node of news.nodes ?? []) this.nodes.set(node.id, node);
    for (const link of news.links ?? []) this.#links.set(link.ends.join(""), link);
    for (const id of news.removed_sites ?? []) this.sites.delete(id);
    for (const id of news.removed_nodes ?? []) this.nodes.delete(id);
    if (news.removed_nodes) {
      for (const [key, link] of this.#links) if (!link.ends.every((end) => this.nodes.has(end))) this.#links.delete(key);
    }
    this.position = news.position;
  }

  #become(connection) {
    if (this.connection === connection) return;
    this.connection = connection;
    this.lostSince = connection === "lost" ? new Date().toISOString() : null;
    this.dispatchEvent(new Event("change"));
  }
}

/** How many links are in each state, and since when the first of them. */
export function tally(links) {
  const states = Object.fromEntries(STATES.map((state) => [state, { count: 0, since: null }]));
  for (const { state, since } of links) {
    const entry = states[state];
    entry.count += 1;
    if (since && (!entry.since || since < entry.since)) entry.since = since;
  }
  return states;
}
