// Signs in, follows the mesh, and shows the page that the address names.

import { Problem, request, token } from "./api.js";
import { h, refill, since } from "./dom.js";
import { eventPage } from "./events.js";
import { addSite } from "./form.js";
import { linkPage } from "./link.js";
import { Mesh } from "./mesh.js";
import { overview } from "./overview.js";
import { sitePage } from "./site.js";
import { siteList } from "./sites.js";
import { tokenPage } from "./tokens.js";

const main = document.getElementById("main");
const connection = document.getElementById("connection");
const nav = document.getElementById("nav");
const signOut = document.getElementById("sign-out");

let mesh = null;
/** The api token of this tab, as the coordinator knows it. */
let own = null;
let page = null;
let drawing = false;

function signIn(error = "") {
  stop();
  const input = h("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false", "aria-describedby": "token-hint token-error", "aria-invalid": error ? "true" : null, required: true });
  const complaint = h("p", { id: "token-error", class: "error", role: "alert" }, error);
  const submit = async (event) => {
    event.preventDefault();
    token.set(input.value.trim());
    try {
      await start();
    } catch (problem) {
      token.clear();
      signIn(problem instanceof Problem && problem.status === 401 ? "This is not a valid api token." : "The coordinator cannot answer now; try again.");
    }
  };
  refill(main, h("form", { class: "sign-in card", submit },
    h("h1", {}, "Sign in"),
    h("label", { for: "token" }, "Api token"), input, complaint,
    h("p", { id: "token-hint", class: "hint" }, "The first is in the file api-token of the coordinator's data directory; `wattle-server token create` makes more. It is kept in this tab only."),
    h("div", { class: "actions" }, h("button", { class: "primary" }, "Sign in"))));
  document.title = "Sign in – Wattle";
  input.focus();
}

/** Whoever may only look sees nothing that changes the mesh: the style sheet hides it. */
async function start() {
  own = await request("GET", "/api-tokens/self");
  document.documentElement.classList.toggle("viewer", own.role === "viewer");
  mesh = new Mesh();
  mesh.addEventListener("change", () => { showConnection(); draw(); });
  mesh.addEventListener("ended", () => { token.clear(); signIn("The api token is not valid any more."); });
  mesh.follow();
  nav.hidden = false;
  signOut.hidden = false;
  refill(main, h("p", { class: "faint" }, "Reading the mesh…"));
}

function stop() {
  mesh?.stop();
  mesh = null;
  leave();
  nav.hidden = true;
  signOut.hidden = true;
  refill(connection);
}

function leave() {
  page?.leave?.();
  page = null;
}

/** At most once a frame, however much is new. */
function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    if (!mesh?.position) return;
    if (page) page.update();
    else route();
    if (page) document.title = page.title();
  });
}

function route() {
  if (!mesh?.position) return;
  leave();
  const mayChange = own.role !== "viewer";
  const [kind = "", name = "", other = ""] = location.hash.slice(2).split("/").map(decodeURIComponent);
  if (kind === "sites" && name) page = sitePage(mesh, name);
  else if (kind === "sites") page = siteList(mesh);
  else if (kind === "links" && other) page = linkPage(mesh, name, other);
  else if (kind === "events") page = eventPage(mesh);
  else if (kind === "tokens" && mayChange) page = tokenPage(own);
  else if (kind === "add" && mayChange) page = addSite();
  else page = overview(mesh);
  refill(main, page.element);
  document.title = page.title();
  for (const link of nav.querySelectorAll("a")) {
    const current = link.hash === (kind ? `#/${kind}` : "#/");
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function showConnection() {
  connection.className = mesh?.connection ?? "";
  if (mesh?.connection === "live") refill(connection, "live");
  else if (mesh?.connection === "lost") refill(connection, "no connection: as it was ", since(mesh.lostSince));
  else refill(connection, "connecting");
}

addEventListener("hashchange", () => {
  if (!location.hash.startsWith("#/")) return;
  route();
  scrollTo(0, 0);
  main.focus();
});
signOut.addEventListener("click", () => { token.clear(); signIn(); });

if (token.get()) start().catch(() => signIn("The coordinator cannot answer now, or the api token is not valid any more."));
else signIn();
