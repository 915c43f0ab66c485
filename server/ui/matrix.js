// The matrix of all links, drawn on a canvas: of 300 nodes it has 90,000 cells, and only those in sight are drawn.

import { request } from "./api.js";
import { h, milliseconds, moment, percent } from "./dom.js";

/** Sizes of a cell, in pixels. */
const ZOOMS = [2, 3, 4, 6, 8, 11, 14, 18, 23, 29, 36];
/** From this size on there is room for names. */
const NAMED = 11;
/** From this size on there is room for marks, which tell the states without their colours. */
const MARKED = 11;
const LONGEST_NAME = 130;
const HEIGHT = 640;
/** A link that is not up is drawn at least so large, in pixels, over its neighbours if need be. */
const SEEN = 5;
/** How long the cursor rests on a link before it is asked what probes found there. */
const REST_MS = 200;

export class Matrix {
  #mesh;
  #nodes = [];
  #zoom = null;
  #cursor = null;
  #canvas;
  #space;
  #scroll;
  #readout;
  #sizes;
  #rest = null;
  #dark = matchMedia("(prefers-color-scheme: dark)");
  #redraw = () => this.#draw();

  constructor(mesh) {
    this.#mesh = mesh;
    this.#canvas = h("canvas", {
      id: "matrix",
      tabindex: "0",
      role: "application",
      "aria-roledescription": "link matrix",
      "aria-describedby": "matrix-help",
      keydown: (event) => this.#key(event),
      pointermove: (event) => this.#point(event),
      pointerleave: () => { if (document.activeElement !== this.#canvas) this.#move(null); },
      click: (event) => { this.#point(event); this.#open(); },
      wheel: (event) => this.#wheel(event),
      focus: () => this.#move(this.#cursor ?? [0, Math.min(1, this.#nodes.length - 1)]),
    });
    this.#space = h("div", { class: "space" }, this.#canvas);
    this.#scroll = h("div", { class: "matrix", scroll: () => this.#draw() }, this.#space);
    this.#readout = h("p", { id: "cell", class: "readout", role: "status" });
    const zoom = (by, label, sign) => h("button", { type: "button", "aria-label": label, title: label, click: () => this.#zoomBy(by) }, sign);
    this.tools = h("span", { class: "zoom" }, zoom(-1, "Zoom out", "−"), zoom(1, "Zoom in", "+"), h("button", { type: "button", click: () => { this.#zoom = null; this.#layout(); } }, "Fit"));
    this.element = h("div", {}, this.#scroll,
      h("div", { class: "under" }, this.#readout, legend()),
      h("p", { id: "matrix-help", class: "visually-hidden" }, "Arrow keys move from link to link, N goes to the next one that is not up, Enter opens it, plus and minus zoom."));
    this.#sizes = new ResizeObserver(() => this.#layout());
    this.#sizes.observe(this.#scroll);
    this.#dark.addEventListener("change", this.#redraw);
  }

  /** Shows the links between these nodes. */
  show(nodes) {
    const [row, column] = (this.#cursor ?? []).map((index) => this.#nodes[index]?.id);
    this.#nodes = nodes;
    const again = [row, column].map((id) => nodes.findIndex((node) => node.id === id));
    this.#cursor = again.every((index) => index >= 0) ? again : null;
    this.#scroll.hidden = nodes.length < 2;
    this.#canvas.setAttribute("aria-label", `Links between ${nodes.length} gateways`);
    this.#layout();
    this.#tell();
  }

  leave() {
    clearTimeout(this.#rest);
    this.#sizes.disconnect();
    this.#dark.removeEventListener("change", this.#redraw);
  }

  get #cell() {
    if (this.#zoom !== null) return ZOOMS[this.#zoom];
    return ZOOMS[this.#fitting()];
  }

  /** The largest zoom at which all fit into the width, names included. */
  #fitting() {
    const width = this.#scroll.clientWidth;
    const fits = (size) => this.#nodes.length * size + this.#gutter(size) <= width;
    return Math.max(0, ZOOMS.findLastIndex(fits));
  }

  /** Room for the names, in pixels. */
  #gutter(cell) {
    if (cell < NAMED) return 0;
    const context = this.#canvas.getContext("2d");
    context.font = font(cell);
    return Math.min(LONGEST_NAME, Math.max(0, ...this.#nodes.map((node) => context.measureText(node.name).width))) + 10;
  }

  #layout() {
    const cell = this.#cell;
    const size = this.#nodes.length * cell + this.#gutter(cell);
    this.#space.style.width = `${size}px`;
    this.#space.style.height = `${size}px`;
    this.#scroll.style.height = `${Math.min(size, HEIGHT) + 2}px`;
    this.#draw();
  }

  #draw() {
    const [width, height] = [this.#scroll.clientWidth, this.#scroll.clientHeight];
    if (!width || !this.#nodes.length) return;
    const canvas = this.#canvas;
    const ratio = devicePixelRatio || 1;
    [canvas.width, canvas.height] = [width * ratio, height * ratio];
    [canvas.style.width, canvas.style.height] = [`${width}px`, `${height}px`];
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);

    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const colours = Object.fromEntries(["up-soft", "degraded", "down", "never", "ink", "muted", "mark", "line", "accent"].map((name) => [name, colour(name)]));
    const cell = this.#cell;
    const gutter = this.#gutter(cell);
    const gap = cell >= 6 ? 1 : 0;
    const [left, top] = [this.#scroll.scrollLeft, this.#scroll.scrollTop];
    const first = (from) => Math.max(0, Math.floor(from / cell));
    const last = (from, room) => Math.min(this.#nodes.length, Math.ceil((from + room - gutter) / cell));
    const [firstRow, lastRow, firstColumn, lastColumn] = [first(top), last(top, height), first(left), last(left, width)];

    context.save();
    context.beginPath();
    context.rect(gutter, gutter, width, height);
    context.clip();
    const troubles = [];
    for (let row = firstRow; row < lastRow; row += 1) {
      const y = gutter + row * cell - top;
      for (let column = firstColumn; column < lastColumn; column += 1) {
        const x = gutter + column * cell - left;
        const link = this.#mesh.link(this.#nodes[row].id, this.#nodes[column].id);
        if (link && link.state !== "up") troubles.push([link.state, x, y]);
        context.fillStyle = link ? colours["up-soft"] : colours.line;
        if (!link) context.globalAlpha = 0.45;
        context.fillRect(x, y, cell - gap, cell - gap);
        context.globalAlpha = 1;
      }
    }
    const more = Math.max(0, SEEN - cell) / 2;
    for (const [state, x, y] of troubles) {
      context.fillStyle = colours[state];
      context.fillRect(x - more, y - more, cell - gap + 2 * more, cell - gap + 2 * more);
      if (cell >= MARKED) mark(context, state, x, y, cell - gap, colours.mark);
    }
    if (this.#cursor) {
      const [row, column] = this.#cursor;
      context.strokeStyle = colours.ink;
      context.lineWidth = 2;
      context.strokeRect(gutter + column * cell - left - 1, gutter + row * cell - top - 1, cell - gap + 2, cell - gap + 2);
    }
    context.restore();

    if (!gutter) return;
    context.font = font(cell);
    context.textBaseline = "middle";
    const name = (index, along) => {
      context.fillStyle = this.#cursor?.includes(index) ? colours.ink : colours.muted;
      context.fillText(short(context, this.#nodes[index].name), 0, along);
    };
    context.save();
    context.beginPath();
    context.rect(0, gutter, gutter, height);
    context.clip();
    for (let row = firstRow; row < lastRow; row += 1) name(row, gutter + (row + 0.5) * cell - top);
    context.restore();
    context.save();
    context.beginPath();
    context.rect(gutter, 0, width, gutter);
    context.clip();
    context.translate(0, gutter - 6);
    context.rotate(-Math.PI / 2);
    for (let column = firstColumn; column < lastColumn; column += 1) name(column, gutter + (column + 0.5) * cell - left);
    context.restore();
  }

  #at(event) {
    const box = this.#canvas.getBoundingClientRect();
    const gutter = this.#gutter(this.#cell);
    const index = (place) => Math.floor((place - gutter) / this.#cell);
    const row = index(event.clientY - box.top + this.#scroll.scrollTop);
    const column = index(event.clientX - box.left + this.#scroll.scrollLeft);
    const inside = [row, column].every((index) => index >= 0 && index < this.#nodes.length);
    return inside ? [row, column] : null;
  }

  #point(event) {
    const at = this.#at(event);
    if (at) this.#move(at);
  }

  #move(cursor) {
    this.#cursor = cursor;
    this.#tell();
    this.#draw();
  }

  /** Says what is under the cursor. */
  #tell() {
    this.#readout.textContent = this.#cursor ? this.#words(...this.#cursor) : this.#nodes.length < 2 ? "Fewer than two gateways: no link to show." : "";
    clearTimeout(this.#rest);
    if (this.#cursor && this.#link(...this.#cursor)?.since) this.#rest = setTimeout(() => this.#tellProbes(), REST_MS);
  }

  /** Says what probes found of the link under the cursor; with all links that would be too much to be told all the time. */
  async #tellProbes() {
    const cursor = this.#cursor;
    const [a, b] = cursor.map((index) => this.#nodes[index]);
    const link = await request("GET", `/links/${a.id}/${b.id}`).catch(() => null);
    const measured = (link?.ends ?? []).filter((end) => end.round_trip_ms !== null);
    if (this.#cursor !== cursor || !measured.length) return;
    const found = measured.map((end) => `${milliseconds(end)}, ${percent(end)} lost`);
    const same = new Set(found).size === 1 ? [found[0]] : measured.map((end, index) => `${found[index]} from ${end.name}`);
    this.#readout.textContent = `${this.#words(...cursor)}; ${same.join("; ")}`;
  }

  #link(row, column) {
    const [a, b] = [this.#nodes[row], this.#nodes[column]];
    return a && b && a !== b ? this.#mesh.link(a.id, b.id) : null;
  }

  #words(row, column) {
    const [a, b] = [this.#nodes[row], this.#nodes[column]];
    if (!a || !b) return "";
    if (a === b) return `${a.name}, ${a.tunnel_address}`;
    const link = this.#link(row, column);
    if (!link) return `${a.name} – ${b.name}: same site, no link`;
    return `${a.name} – ${b.name}: ${link.state}${link.fault ? ` (${link.fault})` : ""}${link.since ? ` since ${moment(link.since)}` : ""}`;
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || this.#nodes.length < 2) return;
    const end = this.#nodes.length - 1;
    const [row, column] = this.#cursor ?? [0, 1];
    const keep = (index) => Math.min(end, Math.max(0, index));
    const moves = {
      ArrowUp: () => [keep(row - 1), column],
      ArrowDown: () => [keep(row + 1), column],
      ArrowLeft: () => [row, keep(column - 1)],
      ArrowRight: () => [row, keep(column + 1)],
      Home: () => [row, 0],
      End: () => [row, end],
      PageUp: () => [keep(row - 10), column],
      PageDown: () => [keep(row + 10), column],
      n: () => this.#nextTrouble(row, column),
    };
    if (moves[event.key]) {
      this.#move(moves[event.key]());
      this.#reveal();
    } else if (event.key === "+" || event.key === "-") this.#zoomBy(event.key === "+" ? 1 : -1);
    else if (event.key === "Enter") this.#open();
    else return;
    event.preventDefault();
  }

  /** The next link that is not up, row by row, each link once. */
  #nextTrouble(row, column) {
    const size = this.#nodes.length;
    for (let step = 1; step <= size * size; step += 1) {
      const place = (row * size + column + step) % (size * size);
      const [nextRow, nextColumn] = [Math.floor(place / size), place % size];
      const link = nextRow < nextColumn && this.#mesh.link(this.#nodes[nextRow].id, this.#nodes[nextColumn].id);
      if (link && link.state !== "up") return [nextRow, nextColumn];
    }
    return [row, column];
  }

  /** Scrolls so that the cursor is in sight. */
  #reveal() {
    const cell = this.#cell;
    const [room, scroll] = [this.#gutter(cell), this.#scroll];
    const [row, column] = this.#cursor;
    const into = (index, from, space) => Math.min(index * cell, Math.max(from, (index + 1) * cell + room - space));
    scroll.scrollTo(into(column, scroll.scrollLeft, scroll.clientWidth), into(row, scroll.scrollTop, scroll.clientHeight));
  }

  #wheel(event) {
    if (!event.ctrlKey) return;
    event.preventDefault();
    this.#zoomBy(event.deltaY < 0 ? 1 : -1);
  }

  #zoomBy(steps) {
    const now = this.#zoom ?? this.#fitting();
    this.#zoom = Math.min(ZOOMS.length - 1, Math.max(0, now + steps));
    this.#layout();
    if (this.#cursor) this.#reveal();
  }

  #open() {
    const link = this.#cursor && this.#link(...this.#cursor);
    const node = this.#cursor && this.#nodes[this.#cursor[0]];
    if (link) location.hash = this.#mesh.href(link);
    else if (node) location.hash = `#/sites/${encodeURIComponent(node.site_name)}`;
  }
}

function font(cell) {
  return `${Math.min(12, cell - 1)}px system-ui, sans-serif`;
}

function short(context, name) {
  if (context.measureText(name).width <= LONGEST_NAME) return name;
  let end = name.length;
  while (end > 1 && context.measureText(`${name.slice(0, end)}…`).width > LONGEST_NAME) end -= 1;
  return `${name.slice(0, end)}…`;
}

/** Down is crossed, degraded is half, never is a dot; up needs no mark. */
function mark(context, state, x, y, size, colour) {
  const inset = size * 0.3;
  context.strokeStyle = colour;
  context.fillStyle = colour;
  context.lineWidth = Math.max(1, size / 12);
  context.beginPath();
  if (state === "down") {
    context.moveTo(x + inset, y + inset);
    context.lineTo(x + size - inset, y + size - inset);
    context.moveTo(x + size - inset, y + inset);
    context.lineTo(x + inset, y + size - inset);
    context.stroke();
  } else if (state === "degraded") {
    context.moveTo(x + inset, y + size / 2);
    context.lineTo(x + size - inset, y + size / 2);
    context.stroke();
  } else if (state === "never") {
    context.arc(x + size / 2, y + size / 2, Math.max(1, size / 10), 0, 2 * Math.PI);
    context.fill();
  }
}

function legend() {
  const entry = (state, words) => h("li", {}, h("span", { class: `swatch ${state}` }), words);
  return h("ul", { class: "legend", "aria-label": "Colours" }, entry("up", "up"), entry("degraded", "degraded: asymmetric, lossy, slow, or one gateway is silent"), entry("down", "down"), entry("never", "never up"));
}
