// The page around the views: who this is, how it goes, where to.

import { h, patch } from "./dom.js";
import { post, Refused } from "./api.js";
import { changed, enter, onChange, rest, state } from "./state.js";
import { pill, span, trouble } from "./words.js";
import audit from "./views/audit.js";
import chat from "./views/chat.js";
import doctor from "./views/doctor.js";
import invites from "./views/invites.js";
import logs from "./views/logs.js";
import models from "./views/models.js";
import overview from "./views/overview.js";
import routes from "./views/routes.js";
import sessions from "./views/sessions.js";

const VIEWS = { overview, models, chat, sessions, invites, routes, audit, logs, doctor };

const app = document.getElementById("app");
let shown = null;
let epoch = 0;

function named() {
  const name = location.hash.slice(1).split("/")[0];
  return Object.hasOwn(VIEWS, name) ? name : "overview";
}

// One object goes through all views: what they may do, and how they ask to be drawn again.
const page = {
  get mayChange() {
    return state.access === "full";
  },
  draw: changed,
};

function draw() {
  const name = named();
  if (state.access === "none") return patch(app, [signedOut()]);
  if (!state.status) return patch(app, [h("p", { class: "wait", role: "status" }, "Reading the mesh …")]);
  if (shown !== name) {
    VIEWS[shown]?.leave?.();
    shown = name;
    epoch = state.epoch;
    VIEWS[name].enter?.(page);
  } else if (epoch !== state.epoch) {
    epoch = state.epoch;
    VIEWS[name].again?.(page);
  }
  document.title = `${VIEWS[name].title} · ${state.status.node_name} · QMT mesh`;
  patch(app, [top(), nav(name), main(name)]);
}

function top() {
  const { status } = state;
  const meshes = status.scopes.map((scope) => scope.name).join(", ") || "in no mesh yet";
  return h("header", { class: "top" },
    h("strong", null, status.node_name), h("span", { class: "soft" }, meshes),
    h("span", { class: "right" },
      (status.health ?? []).length ? health(status.health) : null,
      state.access === "watch" ? pill("soft", "watching only") : null,
      h("span", { role: "status" }, state.connected ? pill("ok", "live") : pill("down", "no answer from the node")),
      h("span", { class: "soft small wide" }, `version ${status.version}, up ${span(status.uptime_secs + (Date.now() - state.statusAt) / 1000)}`),
      h("button", { class: "plain", onclick: leave }, "Sign out")));
}

const ORDER = ["healthy", "warning", "critical"];

// The worst of all grades, and each of them to whoever looks closer.
function health(all) {
  const worst = all.reduce((worst, one) => (ORDER.indexOf(one.grade) > ORDER.indexOf(worst) ? one.grade : worst), "healthy");
  const told = all.map((one) => `${one.name}: ${one.text} (${one.grade})`).join("\n");
  return h("span", { title: told }, pill(worst, worst));
}

function nav(name) {
  const links = Object.entries(VIEWS).map(([key, view]) =>
    h("a", { key, href: `#${key}`, "aria-current": key === name ? "page" : null }, view.title));
  return h("nav", { class: "views", "aria-label": "Views" }, links);
}

function main(name) {
  const warnings = state.status.warnings.map((warning) => h("div", { class: "notice", key: warning }, warning));
  return h("main", { id: "main", key: name, tabindex: "-1" }, h("h1", null, VIEWS[name].title), warnings, VIEWS[name].view(page));
}

function signedOut() {
  return h("main", { class: "alone", key: "out" },
    h("h1", null, "This browser is not signed in"),
    h("p", null, "The console opens by a link that works once. On the machine of this node, run"),
    h("pre", null, "qmt-cli console"),
    h("p", null, "and open the link that it prints, in this browser."));
}

async function leave() {
  try {
    const response = await fetch("/console/leave", { method: "POST", credentials: "same-origin" });
    if (!response.ok) throw new Refused("", "the node did not take the sign-out");
    rest();
    state.access = "none";
  } catch {
    state.connected = false;
  }
  changed();
}

onChange(draw);
addEventListener("hashchange", () => {
  draw();
  document.getElementById("main")?.focus({ preventScroll: true });
  scrollTo(0, 0);
});
enter();
draw();
