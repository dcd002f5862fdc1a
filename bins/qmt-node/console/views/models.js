// Models: who serves them, how far they are loaded, what can be loaded, unloaded, brought here or stopped everywhere.

import { h } from "../dom.js";
import { get, post } from "../api.js";
import { people, state } from "../state.js";
import { bytes, empty, pill, trouble } from "../words.js";

const my = { error: null, done: null, pulls: [], pull: "", load: "", at: "", split: false, plan: null, busy: null, timer: null };

async function readPulls(page) {
  clearTimeout(my.timer);
  try {
    my.pulls = await get("/api/models/pulls");
  } catch (error) {
    my.error = error;
  }
  const runs = my.pulls.some((pull) => ["asking", "checking", "downloading", "waiting"].includes(pull.state));
  if (runs) my.timer = setTimeout(() => readPulls(page), 1000);
  page.draw();
}

// One thing at a time, with what came of it above the list.
async function act(page, what, work) {
  Object.assign(my, { busy: what, error: null, done: null });
  page.draw();
  try {
    my.done = await work();
  } catch (error) {
    my.error = error;
  }
  my.busy = null;
  page.draw();
}

function view(page) {
  const models = [...state.models.values()].sort((a, b) => a.name.localeCompare(b.name));
  return [
    trouble(my.error),
    my.done ? h("div", { class: "notice good", role: "status" }, my.done) : null,
    page.mayChange ? h("div", { class: "grid", key: "do" }, loading(page), pulling(page)) : null,
    my.plan ? h("section", { class: "card", key: "plan" }, h("div", { class: "row" }, h("h2", { class: "grow" }, `Where ${my.plan.model} would run`), h("button", { onclick: () => { my.plan = null; page.draw(); } }, "Close")), h("pre", null, my.plan.text)) : null,
    models.length
      ? models.map((model) => one(page, model))
      : h("section", { class: "card", key: "none" }, h("h2", null, "No model is served yet"), h("p", null, "Load one that is on a disk of this mesh, or pull one first. Every node's programs can then call it.")),
  ];
}

function loading(page) {
  const local = state.status.models ?? [];
  const wanted = () => my.load.trim();
  // A client loads nothing at others, and nobody at a client.
  const others = people().filter((node) => node.state === "alive" && node.role === "member");
  const at = others.find((node) => node.id === my.at);
  const body = () => ({ model: wanted(), split: my.split || undefined });
  return h("section", { class: "card", key: "load" }, h("h2", null, "Load a model"),
    h("form", { onsubmit: (event) => { event.preventDefault(); act(page, "load", async () => { const model = await post("/api/models/load", { ...body(), node: at?.id }); return at ? `${at.name} loads ${model.name}.` : `${model.name} is ${model.state}.`; }); } },
      h("div", { class: "row" },
        h("label", { class: "grow" }, "Name, path, org/repo/file.gguf or URL",
          h("input", { name: "model", list: "known-models", required: true, value: my.load, oninput: (event) => { my.load = event.target.value; page.draw(); } })),
        others.length ? h("label", null, "At", h("select", { value: at?.id ?? "", onchange: (event) => { my.at = event.target.value; page.draw(); } },
          h("option", { key: "", value: "" }, "this node"), others.map((node) => h("option", { key: node.id, value: node.id }, node.name)))) : null,
        h("label", { class: "inline" }, h("input", { type: "checkbox", checked: my.split, onchange: (event) => { my.split = event.target.checked; page.draw(); } }), "split over nodes")),
      h("datalist", { id: "known-models" }, [...new Set([...local, ...state.models.keys()])].map((name) => h("option", { key: name, value: name }))),
      h("div", { class: "row" },
        h("button", { class: "main", type: "submit", disabled: my.busy !== null || !wanted() }, my.busy === "load" ? "Loading …" : "Load"),
        h("button", { type: "button", disabled: my.busy !== null || !wanted() || at !== undefined, onclick: () => act(page, "plan", async () => { my.plan = await post("/api/models/plan", body()); return null; }) }, "Show the plan only"))));
}

function pulling(page) {
  const start = () => act(page, "pull", async () => { await post("/api/models/pull", { model: my.pull.trim() }); my.pull = ""; await readPulls(page); return null; });
  return h("section", { class: "card", key: "pull" }, h("h2", null, "Bring a model to this disk"),
    h("form", { onsubmit: (event) => { event.preventDefault(); start(); } }, h("div", { class: "row" },
      h("label", { class: "grow" }, "org/repo/file.gguf or URL", h("input", { name: "pull", required: true, value: my.pull, oninput: (event) => { my.pull = event.target.value; page.draw(); } })),
      h("button", { type: "submit", disabled: my.busy !== null || !my.pull.trim() }, "Pull"))),
    my.pulls.map((pull) => h("div", { key: pull.model },
      h("div", { class: "row" }, h("span", { class: "grow mono" }, pull.model), pill(pull.state),
        ["asking", "checking", "downloading", "waiting"].includes(pull.state) ? h("button", { onclick: () => act(page, "stop", async () => { await post("/api/models/pull/stop", { model: pull.model }); await readPulls(page); return null; }) }, "Stop") : null),
      pull.total_bytes ? h("progress", { max: pull.total_bytes, value: pull.bytes, "aria-label": `${pull.model}: ${bytes(pull.bytes)} of ${bytes(pull.total_bytes)}` }) : null,
      h("span", { class: "soft small" }, [bytes(pull.bytes), pull.total_bytes ? ` of ${bytes(pull.total_bytes)}` : "", pull.bytes_per_second ? `, ${bytes(pull.bytes_per_second)}/s` : "", pull.detail ? `, ${pull.detail}` : ""]),
      pull.error ? trouble(pull.error) : null)));
}

function one(page, model) {
  const facts = [model.size_bytes ? bytes(model.size_bytes) : null, model.context_tokens ? `${model.context_tokens.toLocaleString()} tokens of context` : null].filter(Boolean).join(", ");
  const drop = () => {
    if (!confirm(`Stop ${model.name} on every node of the mesh? Answers under way end. It can be loaded again.`)) return;
    act(page, model.name, async () => {
      const dropped = await post("/api/models/drop", { model: model.name });
      return dropped.unreached.length ? `Stopped, but not reached: ${dropped.unreached.join(", ")}.` : `Stopped on ${dropped.nodes.length} nodes.`;
    });
  };
  return h("section", { class: "card", key: `model-${model.name}` },
    h("div", { class: "row" }, h("h2", { class: "grow" }, model.name), pill(model.state),
      model.state === "ready" ? h("a", { href: `#chat/${encodeURIComponent(model.name)}` }, "Chat") : null,
      page.mayChange ? h("button", { class: "danger", disabled: my.busy !== null, onclick: drop }, my.busy === model.name ? "Stopping …" : "Drop everywhere") : null),
    facts ? h("p", { class: "soft small" }, facts) : null,
    model.providers.length
      ? h("ul", { class: "plain" }, model.providers.map((provider) => place(page, model, provider)))
      : empty("No node serves it now."));
}

function place(page, model, provider) {
  const names = new Map(people().map((node) => [node.id, node.name]));
  const workers = (provider.workers ?? []).map((id) => names.get(id) ?? id).join(", ");
  const canUnload = page.mayChange && provider.kind === "local" && ["ready", "loading"].includes(provider.state);
  const unload = () => act(page, model.name, async () => { await post("/api/models/drop", { model: model.name, node: provider.node }); return `${model.name} was unloaded at ${provider.node_name}.`; });
  return h("li", { key: provider.node, class: "row" }, h("strong", null, provider.node_name), pill(provider.state),
    provider.kind === "provider" ? h("span", { class: "pill soft" }, "another server's") : null,
    h("span", { class: "soft small" }, [provider.detail, workers ? `; split with ${workers}` : ""]),
    provider.state === "loading" ? h("progress", { "aria-label": `${model.name} is loading` }) : null,
    canUnload ? h("button", { class: "small", disabled: my.busy !== null, onclick: unload }, provider.local ? "Unload here" : `Unload at ${provider.node_name}`) : null);
}

export default { title: "Models", view, enter: readPulls, again: readPulls, leave: () => clearTimeout(my.timer) };
