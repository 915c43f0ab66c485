// The api tokens: who may use the coordinator, and the way to let others.

import { all, Problem, request } from "./api.js";
import { complain, confirmed, copyable, h, moment, refill, since, table } from "./dom.js";

/** From the least to the most that one may do. */
const ROLES = ["viewer", "operator", "owner"];
const DAY_S = 86_400;
const LIFETIMES = [[DAY_S, "a day"], [30 * DAY_S, "30 days"], [365 * DAY_S, "a year"], [null, "as long as the mesh"]];

/** `own` is the token of this tab: nobody makes one that may do more. */
export function tokenPage(own) {
  const name = h("input", { id: "token-name", autocomplete: "off", maxlength: "256", "aria-describedby": "token-error", "aria-required": "true", placeholder: "backup script" });
  const roles = ROLES.slice(0, ROLES.indexOf(own.role) + 1);
  const role = h("select", { id: "token-role" }, roles.map((role) => h("option", {}, role)));
  const left = own.expires_at ? (new Date(own.expires_at) - Date.now()) / 1000 : Infinity;
  // A token that ends gives none that outlives it: a minute is for clocks that differ.
  const lifetimes = LIFETIMES.filter(([seconds]) => (seconds ?? Infinity) <= left);
  if (!lifetimes.length) lifetimes.push([Math.max(60, Math.floor(left) - 60), "as long as yours"]);
  const lifetime = h("select", { id: "token-lifetime" }, lifetimes.map(([seconds, words]) => h("option", { value: String(seconds) }, words)));
  const error = h("p", { class: "error", id: "token-error", role: "alert" });
  const fresh = h("div", { "aria-live": "polite" });
  const list = h("section", { "aria-labelledby": "list-title" });
  const element = h("div", {}, h("h1", {}, "Api tokens"),
    h("p", { class: "faint" }, "Whoever has one may use this page and the REST interface, as far as its role goes. Join tokens, for gateways, are on the page of each site."),
    h("form", { class: "inline", submit, novalidate: true },
      h("label", { for: name.id }, "For"), name, h("label", { for: role.id }, "with the role"), role, h("label", { for: lifetime.id }, "valid for"), lifetime, h("button", { class: "primary", id: "make-token" }, "New api token")),
    error, fresh, list);

  async function submit(event) {
    event.preventDefault();
    error.textContent = "";
    name.removeAttribute("aria-invalid");
    try {
      const created = await request("POST", "/api-tokens", { name: name.value.trim(), role: role.value, expires_in_s: JSON.parse(lifetime.value) });
      refill(fresh, h("p", {}, `The api token for ${created.name}. It is shown this once.`), copyable(created.token, "the api token"));
      name.value = "";
      await read();
    } catch (problem) {
      error.textContent = problem instanceof Problem ? problem.message : "The coordinator cannot be reached.";
      if (problem.field === "name") {
        name.setAttribute("aria-invalid", "true");
        name.focus();
      }
    }
  }

  async function revoke(token) {
    if (!await confirmed(`Revoke the token for ${token.name}?`, "Whoever uses it is signed out at once.", "Revoke the token")) return;
    await request("DELETE", `/api-tokens/${token.id}`).then(read, complain);
  }

  async function read() {
    const tokens = await all("/api-tokens").catch((problem) => { complain(problem); return null; });
    if (!tokens) return;
    const mine = (token) => token.id === own.id;
    const rows = tokens.map((token) => h("tr", {},
      h("th", { scope: "row", class: "free" }, token.name, mine(token) ? h("span", { class: "faint" }, " (this tab's)") : null),
      h("td", {}, token.role),
      h("td", {}, moment(token.created_at)),
      h("td", {}, token.expires_at ? moment(token.expires_at) : h("span", { class: "faint" }, "never")),
      h("td", {}, since(token.last_used_at)),
      h("td", {}, roles.includes(token.role) && !mine(token) ? h("button", { type: "button", class: "danger", "aria-label": `Revoke the token for ${token.name}`, click: () => revoke(token) }, "Revoke") : null)));
    refill(list, h("h2", { id: "list-title" }, "Valid now"), table("Api tokens", ["For", "Role", "Made", "Ends", "Last used", ""], rows));
  }

  read();
  return { title: () => "Api tokens – Wattle", element, update() {} };
}
