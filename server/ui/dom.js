// Elements, times and numbers as people read them.

/**
 * Makes an element. A child that is a string becomes a text node: nothing that comes from the mesh is ever read as HTML.
 * An attribute that is a function listens to the event of its name; one that is true, false or null is there or not.
 */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Replaces the children of an element; the focus stays where it was if what had it is there again, by its id. */
export function refill(element, ...children) {
  const focused = element.contains(document.activeElement) ? document.activeElement.id : "";
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
  if (focused) document.getElementById(focused)?.focus();
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const dayAndClock = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

/** A moment: the time of day if it was today, else with its date. */
export function moment(text) {
  const then = new Date(text);
  return (then.toDateString() === new Date().toDateString() ? clock : dayAndClock).format(then);
}

/** How long from one moment to another, in words that need no seconds hand. */
export function span(from, to) {
  const seconds = Math.max(0, Math.round((new Date(to) - new Date(from)) / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

/** How long ago. */
export function ago(text) {
  return `${span(text, Date.now())} ago`;
}

/** A <time> that says how long ago it was, and goes on saying so. */
export function since(text) {
  if (!text) return h("span", { class: "faint" }, "never");
  return h("time", { datetime: text, title: moment(text), class: "ago" }, ago(text));
}

setInterval(() => {
  for (const time of document.querySelectorAll("time.ago")) time.textContent = ago(time.dateTime);
}, 5000);

/** A number of bytes. */
export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${unit ? count.toFixed(1) : count} ${units[unit]}`;
}

/** The round trip of probes from one end of a link. */
export function milliseconds(end) {
  return end?.round_trip_ms == null ? "–" : `${end.round_trip_ms.toFixed(1)} ms`;
}

/** How many probes from one end of a link were lost. */
export function percent(end) {
  return end?.loss_percent == null ? "–" : `${end.loss_percent} %`;
}

/** `1 site`, `2,000 sites`. */
export function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

/** The state of a link, told by its word and its shape as much as by its colour. */
export function badge(state, fault) {
  return h("span", { class: `badge ${state}` }, fault ?? state);
}

/** A table; the name of a column of numbers begins with #. */
export function table(name, head, rows, style = "") {
  const cell = (text) => (text.startsWith("#") ? h("th", { scope: "col", class: "number" }, text.slice(1)) : text ? h("th", { scope: "col" }, text) : h("td", {}));
  return h("div", { class: "wide" }, h("table", { "aria-label": name, class: style || null }, h("thead", {}, h("tr", {}, head.map(cell))), h("tbody", {}, rows)));
}

/** Says for a while what could not be done. */
export function complain(problem) {
  const bar = h("p", { class: "error toast", role: "alert" }, problem.title ? problem.message : "The coordinator cannot be reached.");
  document.getElementById("main").prepend(bar);
  setTimeout(() => bar.remove(), 10_000);
}

/** Says something that is to be read. */
export function inform(title, ...words) {
  const dialog = h("dialog", { "aria-labelledby": "told", close: () => dialog.remove() },
    h("form", { method: "dialog" },
      h("h2", { id: "told" }, title),
      h("p", {}, ...words),
      h("div", { class: "actions" }, h("button", { value: "yes", autofocus: true }, "OK"))));
  document.body.append(dialog);
  dialog.showModal();
}

/** A text with a button that copies it. */
export function copyable(text, label) {
  const code = h("code", {}, text);
  const button = h("button", {
    type: "button",
    "aria-label": `Copy ${label}`,
    click: async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        // Without TLS the browser has no clipboard to give: the text is marked, for Ctrl-C.
        getSelection().selectAllChildren(code);
        button.textContent = "Press Ctrl-C";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 3000);
    },
  }, "Copy");
  return h("div", { class: "copyable" }, code, button);
}

/** Asks before something that cannot be taken back. Resolves to whether it was wanted. */
export function confirmed(question, detail, action) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { "aria-labelledby": "question", close: () => { resolve(dialog.returnValue === "yes"); dialog.remove(); } },
      h("form", { method: "dialog" },
        h("h2", { id: "question" }, question),
        h("p", {}, detail),
        h("div", { class: "actions" },
          h("button", { value: "no", autofocus: true }, "Keep it"),
          h("button", { value: "yes", class: "danger" }, action))));
    document.body.append(dialog);
    dialog.showModal();
  });
}
