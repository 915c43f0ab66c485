// The list of sites.

import { count, h, refill } from "./dom.js";
import { tally } from "./mesh.js";

export function siteList(mesh) {
  const body = h("tbody");
  const filter = h("input", { type: "search", id: "filter", placeholder: "Name, label or address", "aria-label": "Show only sites with", input: () => update() });
  const heading = h("h1");
  const head = ["Site", "Links", "Subnets", "Endpoint", "Tunnel address", "Description"];
  const element = h("div", {},
    h("div", { class: "title" }, heading, h("div", { class: "tools" }, filter, h("a", { href: "#/add", class: "button changes" }, "Add a site"))),
    h("div", { class: "wide" }, h("table", { "aria-label": "Sites" }, h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))), body)));

  function update() {
    const words = filter.value.trim().toLowerCase();
    heading.textContent = count(mesh.sites.size, "site");
    refill(body, mesh.sitesInOrder.filter((site) => matches(site, words)).map((site) => row(mesh, site)));
  }

  update();
  return { title: () => "Sites – Wattle", element, update };
}

function matches(site, words) {
  const texts = [site.name, site.description, site.tunnel_address, site.endpoint ?? "", ...site.subnets, ...Object.entries(site.labels).map(([key, value]) => `${key}=${value}`)];
  return texts.some((text) => text.toLowerCase().includes(words));
}

function row(mesh, site) {
  return h("tr", {},
    h("th", { scope: "row" }, h("a", { href: `#/sites/${encodeURIComponent(site.name)}`, id: `row-${site.id}` }, site.name)),
    h("td", {}, health(mesh, site)),
    h("td", { class: "mono" }, site.subnets.join(" ")),
    h("td", { class: "mono" }, site.endpoint ?? h("span", { class: "faint" }, "speaks first")),
    h("td", { class: "mono" }, site.tunnel_address),
    h("td", { class: "free" }, site.description));
}

/** How many links of a site are up; what is wrong first. */
export function health(mesh, site) {
  if (!site.nodes.length) return h("span", { class: "badge waiting" }, "no gateway");
  const links = site.nodes.flatMap((node) => mesh.linksOf(node.id));
  const states = tally(links);
  const worst = ["down", "degraded", "never"].find((state) => states[state].count) ?? "up";
  if (!links.length) return h("span", { class: "faint" }, "no links");
  return h("span", { class: `badge ${worst}` }, `${states.up.count} of ${links.length} up`);
}
