// The form of a site, new or known, with what the coordinator says is wrong beside the field that it names.

import { Problem, request } from "./api.js";
import { copyable, h, refill } from "./dom.js";

const FIELDS = [
  { name: "name", label: "Name", hint: "Lower-case letters, digits and hyphens.", required: true, placeholder: "dublin" },
  { name: "endpoint", label: "Endpoint", hint: "Where its gateway answers WireGuard packets. Empty if it is behind NAT and speaks first.", placeholder: "203.0.113.10:51820", mono: true },
  { name: "subnets", label: "Subnets", hint: "The LANs of the site, one on each line.", placeholder: "10.10.0.0/24", mono: true, lines: true },
  { name: "description", label: "Description", hint: "Free text, at most 256 characters." },
  { name: "labels", label: "Labels", hint: "One on each line, written key=value.", placeholder: "region=emea", mono: true, lines: true },
];

/** A form that sends `method` to `path`; `done` gets the answer. */
export function siteForm({ method, path, site, action, done }) {
  const inputs = Object.fromEntries(FIELDS.map((field) => [field.name, input(field, site)]));
  const general = h("p", { class: "error", role: "alert", hidden: true });
  const button = h("button", { class: "primary" }, action);
  // For what an operator knows better than the coordinator.
  const forced = h("button", { type: "button", id: "force", class: "danger", hidden: true, click: () => save("?force=true") }, `${action} all the same`);
  const form = h("form", { class: "site", novalidate: true, submit }, FIELDS.map((field) => labelled(field, inputs[field.name])), general, h("div", { class: "actions" }, button, forced));

  function submit(event) {
    event.preventDefault();
    save("");
  }

  async function save(query) {
    FIELDS.forEach((field) => complain(inputs[field.name], ""));
    general.hidden = true;
    forced.hidden = true;
    button.disabled = true;
    try {
      done(await request(method, `${path}${query}`, body(inputs)));
    } catch (error) {
      show(error);
    } finally {
      button.disabled = false;
    }
  }

  function show(error) {
    forced.hidden = error.code !== "subnet_holds_coordinator";
    const text = error instanceof Problem ? words(error) : "The coordinator cannot be reached.";
    const named = inputs[(error.field ?? "").split(/[[.]/)[0]];
    if (named) {
      complain(named, text);
      named.focus();
    } else {
      general.textContent = text;
      general.hidden = false;
    }
  }

  return form;
}

/** What the answer to a change warns of. */
export function warnings(answer) {
  return answer.warnings.map((warning) => h("p", { class: "warning", role: "alert" }, warning.detail));
}

function words(problem) {
  const line = /\[(\d+)\]/.exec(problem.field ?? "");
  return `${line ? `Line ${Number(line[1]) + 1}: ` : ""}${problem.detail ?? problem.title}`;
}

function input({ name, required, placeholder, mono, lines }, site) {
  const value = site?.[name];
  const text = name === "labels" ? Object.entries(value ?? {}).map(([key, value]) => `${key}=${value}`).join("\n") : Array.isArray(value) ? value.join("\n") : value ?? "";
  const attributes = { id: `field-${name}`, name, "aria-describedby": `hint-${name} error-${name}`, "aria-required": required ? "true" : null, placeholder, class: mono ? "mono" : null, autocomplete: "off", autocapitalize: "off", spellcheck: "false" };
  const element = h(lines ? "textarea" : "input", lines ? { ...attributes, rows: "3" } : attributes);
  element.value = text;
  return element;
}

function labelled({ name, label, hint }, input) {
  return h("div", { class: "field" }, h("label", { for: input.id }, label), input, h("p", { id: `error-${name}`, class: "error" }), h("p", { id: `hint-${name}`, class: "hint" }, hint));
}

function complain(input, text) {
  const place = input.parentElement.querySelector(".error");
  place.textContent = text;
  if (text) input.setAttribute("aria-invalid", "true");
  else input.removeAttribute("aria-invalid");
}

function body(inputs) {
  const lines = (name) => inputs[name].value.split(/[\n,]/).map((line) => line.trim()).filter(Boolean);
  const labels = lines("labels").map((line) => {
    const [key, ...rest] = line.split("=");
    return [key.trim(), rest.join("=").trim()];
  });
  return {
    name: inputs.name.value.trim(),
    endpoint: inputs.endpoint.value.trim() || null,
    subnets: lines("subnets"),
    description: inputs.description.value.trim(),
    labels: Object.fromEntries(labels),
  };
}

export function addSite() {
  const place = h("div", {});
  const again = () => refill(place, h("h1", {}, "Add a site"), siteForm({ method: "POST", path: "/sites", action: "Add the site", done }));

  function done(created) {
    const heading = h("h1", { tabindex: "-1" }, `${created.name} is added`);
    refill(place, heading, ...warnings(created),
      h("p", {}, "Run this on its gateway, as root, within the hour. It is shown this once."),
      copyable(created.join_token.command, "the join command"),
      h("p", { class: "actions" }, h("a", { href: `#/sites/${encodeURIComponent(created.name)}`, class: "button" }, `Open ${created.name}`), h("button", { type: "button", click: again }, "Add another")));
    heading.focus();
  }

  again();
  return { title: () => "Add a site – Wattle", element: place, update() {} };
}
