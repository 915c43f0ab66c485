// The form of a site, new or known, with what the coordinator says is wrong beside the field that it names.

import { Problem, request } from "./api.js";
import { Conflict, differences, patch, told, words as valueWords } from "./change.js";
import { copyable, h, refill } from "./dom.js";

const FIELDS = [
  { name: "name", label: "Name", hint: "Lower-case letters, digits and hyphens.", required: true, placeholder: "dublin" },
  { name: "endpoint", label: "Endpoint", hint: "Where its gateway answers WireGuard packets. Empty if it is behind NAT and speaks first.", placeholder: "203.0.113.10:51820", mono: true },
  { name: "subnets", label: "Subnets", hint: "The LANs of the site, one on each line.", placeholder: "10.10.0.0/24", mono: true, lines: true },
  { name: "description", label: "Description", hint: "Free text, at most 256 characters." },
  { name: "labels", label: "Labels", hint: "One on each line, written key=value.", placeholder: "region=emea", mono: true, lines: true },
];

/** What people change of a site. */
export const NAMES = FIELDS.map((field) => field.name);

/**
 * The form of a new site, or of one that was shown: `known` has it, with its tag. `done` gets the
 * answer, and in words what others changed meanwhile.
 */
export function siteForm({ path, known, action, done }) {
  const inputs = Object.fromEntries(FIELDS.map((field) => [field.name, input(field, known?.object)]));
  const general = h("p", { class: "error", role: "alert", hidden: true });
  const conflict = h("div", { id: "conflict", class: "warning", role: "alert", hidden: true });
  const button = h("button", { class: "primary" }, action);
  // For what an operator knows better than the coordinator.
  const forced = h("button", { type: "button", id: "force", class: "danger", hidden: true, click: () => save("?force=true") }, `${action} all the same`);
  const form = h("form", { class: "site", novalidate: true, submit }, FIELDS.map((field) => labelled(field, inputs[field.name])), general, conflict, h("div", { class: "actions" }, button, forced));

  function submit(event) {
    event.preventDefault();
    save("");
  }

  async function save(query) {
    FIELDS.forEach((field) => complain(inputs[field.name], ""));
    general.hidden = true;
    forced.hidden = true;
    conflict.hidden = true;
    button.disabled = true;
    try {
      if (known) await change(query);
      else done(await request("POST", `${path}${query}`, body(inputs)));
    } catch (error) {
      if (error instanceof Conflict) await showConflict(error);
      else show(error);
    } finally {
      button.disabled = false;
    }
  }

  /** Sends what is not as it was shown, and nothing else. */
  async function change(query) {
    const typed = body(inputs);
    const mine = differences(NAMES, known.object, typed);
    if (!mine.length) return done({ ...known.object, warnings: [] }, "");
    const wanted = Object.fromEntries(mine.map(({ field, after }) => [field, after]));
    const { answer, others } = await patch(path, query, known, wanted, NAMES);
    return done(answer, others.length ? await told(known.object, others) : "");
  }

  /** Says what somebody else made of the fields that were changed here. What was typed stays in sight. */
  async function showConflict({ now, fields }) {
    const typed = body(inputs);
    const own = fields.map(({ field }) => `${field}: ${valueWords(typed[field])}`).join("; ");
    const take = (names) => {
      const shown = known.object;
      known = now;
      const untouched = NAMES.filter((name) => !differences([name], shown, typed).length);
      [...untouched, ...names].forEach((name) => { inputs[name].value = text(name, now.object[name]); });
    };
    const load = h("button", { type: "button", id: "load-theirs", click: () => { take(fields.map(({ field }) => field)); load.remove(); keep.remove(); inputs[fields[0].field].focus(); } }, "Load it into the form");
    const keep = h("button", { type: "button", id: "keep-mine", class: "danger", click: () => { take([]); save(""); } }, "Save yours in its place");
    refill(conflict, h("p", {}, `Nothing is saved: ${await told(known.object, fields)}.`), h("p", {}, `You wrote: ${own}`), h("div", { class: "actions" }, load, keep));
    conflict.hidden = false;
    load.focus();
  }

  function show(error) {
    forced.hidden = error.code !== "subnet_holds_coordinator";
    const said = error instanceof Problem ? words(error) : "The coordinator cannot be reached.";
    const named = inputs[(error.field ?? "").split(/[[.]/)[0]];
    if (named) {
      complain(named, said);
      named.focus();
    } else {
      general.textContent = said;
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
  const attributes = { id: `field-${name}`, name, "aria-describedby": `hint-${name} error-${name}`, "aria-required": required ? "true" : null, placeholder, class: mono ? "mono" : null, autocomplete: "off", autocapitalize: "off", spellcheck: "false" };
  const element = h(lines ? "textarea" : "input", lines ? { ...attributes, rows: "3" } : attributes);
  element.value = text(name, site?.[name]);
  return element;
}

/** A value as its field has it. */
function text(name, value) {
  if (name === "labels") return Object.entries(value ?? {}).map(([key, value]) => `${key}=${value}`).join("\n");
  return Array.isArray(value) ? value.join("\n") : value ?? "";
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

/** What to run on a new gateway. */
export function joinSteps(token, words) {
  const install = token.install ? [
    h("p", {}, "Without an agent, install it first. On Debian or Ubuntu:"), copyable(token.install.deb, "the command for Debian or Ubuntu"),
    h("p", {}, "On Fedora or RHEL:"), copyable(token.install.rpm, "the command for Fedora or RHEL")] : [];
  return [...install, h("p", {}, words), copyable(token.command, "the join command")];
}

export function addSite() {
  const place = h("div", {});
  const again = () => refill(place, h("h1", {}, "Add a site"), siteForm({ path: "/sites", action: "Add the site", done }));

  function done(created) {
    const heading = h("h1", { tabindex: "-1" }, `${created.name} is added`);
    refill(place, heading, ...warnings(created),
      ...joinSteps(created.join_token, "Run this on its gateway, as root, within the hour. It is shown this once."),
      h("p", { class: "actions" }, h("a", { href: `#/sites/${encodeURIComponent(created.name)}`, class: "button" }, `Open ${created.name}`), h("button", { type: "button", click: again }, "Add another")));
    heading.focus();
  }

  again();
  return { title: () => "Add a site – Wattle", element: place, update() {} };
}
