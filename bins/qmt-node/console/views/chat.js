// A conversation with a model, wherever it runs. When its node dies in the middle, another one goes on; when this page loses
// its connection, it takes the answer up again behind the last piece it has.

import { h } from "../dom.js";
import { events, refusal, sent } from "../api.js";
import { state } from "../state.js";
import { empty, pill, trouble } from "../words.js";

// Attempts to take an answer up again, and what lies between them, in milliseconds.
const [AGAIN_MAX, AGAIN_EVERY] = [40, 1500];

const my = { model: "", talk: [], text: "", error: null, answering: null };

const ready = () => [...state.models.values()].filter((model) => model.state !== "failed" && model.state !== "stopped");

function chosen() {
  const asked = decodeURIComponent(location.hash.split("/").slice(1).join("/"));
  if (asked && state.models.has(asked)) {
    my.model = asked;
    history.replaceState(null, "", "#chat");
  }
  const all = ready();
  if (!all.some((model) => model.name === my.model)) my.model = (all.find((model) => model.state === "ready") ?? all[0])?.name ?? "";
  return my.model;
}

function view(page) {
  const all = ready();
  if (!all.length) {
    return h("section", { class: "card" }, h("h2", null, "There is no model to talk to"), h("p", null, h("a", { href: "#models" }, "Load one"), ", here or at any node of the mesh, and it appears here."));
  }
  const model = chosen();
  return [
    h("section", { class: "card row", key: "head" },
      h("label", null, "Model", h("select", { value: model, disabled: my.answering !== null, onchange: (event) => { my.model = event.target.value; page.draw(); } },
        all.map((one) => h("option", { key: one.name, value: one.name }, `${one.name}${one.state === "ready" ? "" : ` (${one.state})`}`)))),
      h("span", { class: "soft small grow" }, where(model)),
      h("button", { disabled: my.answering !== null || !my.talk.length, onclick: () => { my.talk = []; my.error = null; page.draw(); } }, "New conversation")),
    h("div", { class: "talk", key: "talk", role: "log", "aria-live": "polite", "aria-label": "Conversation" },
      my.talk.length ? my.talk.map((one, at) => said(one, at)) : empty("Ask something. The answer streams as it is made, on whichever node has the model.")),
    trouble(my.error),
    page.mayChange ? form(page) : h("p", { class: "soft" }, "Watching only: asking needs a link for everything."),
  ];
}

function where(name) {
  const model = state.models.get(name);
  const places = (model?.providers ?? []).filter((provider) => provider.state === "ready").map((provider) => provider.node_name);
  return places.length ? `answers on ${places.join(", ")}` : "";
}

function said(one, at) {
  const note = one.note ? h("span", { class: "who" }, pill("warn", one.note)) : null;
  return h("div", { key: at, class: `said ${one.role === "user" ? "mine" : ""}` },
    h("span", { class: "who" }, one.role === "user" ? "You" : one.model),
    one.thought ? h("details", null, h("summary", { class: "soft small" }, "Thoughts"), h("span", { class: "soft" }, one.thought)) : null,
    one.content, one.ends ? null : " …", note);
}

function form(page) {
  const ask = (event) => {
    event?.preventDefault();
    if (my.text.trim() && my.answering === null) answer(page);
  };
  return h("form", { key: "form", onsubmit: ask },
    h("label", { class: "grow" }, "Your message",
      h("textarea", { value: my.text, rows: 3, placeholder: "Enter sends, Shift+Enter begins a line", oninput: (event) => { my.text = event.target.value; },
        onkeydown: (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) ask(event); } })),
    h("div", { class: "row end" },
      my.answering !== null
        ? h("button", { type: "button", class: "danger", onclick: () => my.answering.abort() }, "Stop")
        : h("button", { type: "submit", class: "main" }, "Send")));
}

async function answer(page) {
  const messages = [...my.talk, { role: "user", content: my.text, ends: true }];
  const reply = { role: "assistant", model: my.model, content: "", thought: "", note: null, ends: false };
  Object.assign(my, { talk: [...messages, reply], text: "", error: null, answering: new AbortController() });
  page.draw();
  const asked = messages.map(({ role, content }) => ({ role, content }));
  try {
    await streamed(page, reply, { model: my.model, messages: asked, stream: true });
  } catch (error) {
    if (error.name !== "AbortError") my.error = error;
    else reply.note = "stopped";
  }
  reply.ends = true;
  my.answering = null;
  page.draw();
}

// Reads the answer over as many connections as it takes.
async function streamed(page, reply, body) {
  const signal = my.answering.signal;
  const options = sent(body);
  let response = await fetch("/v1/chat/completions", { ...options, headers: { ...options.headers, "x-mesh-resumable": "1" }, signal });
  if (!response.ok) throw await refusal(response);
  const id = response.headers.get("x-mesh-response-id");
  let last = null;
  for (let attempt = 0; ; attempt++) {
    try {
      for await (const event of events(response.body)) {
        attempt = 0;
        if (event.id !== undefined) last = event.id;
        if (take(page, reply, event)) return;
      }
    } catch (error) {
      if (signal.aborted || error.code) throw error;
    }
    if (!id || attempt >= AGAIN_MAX) throw new Error("the answer broke off and could not be taken up again");
    reply.note = "the connection broke; taking the answer up again";
    page.draw();
    response = await again(id, last, signal);
  }
}

async function again(id, last, signal) {
  for (let left = AGAIN_MAX; ; left--) {
    await new Promise((wake) => setTimeout(wake, AGAIN_EVERY));
    signal.throwIfAborted();
    try {
      const response = await fetch(`/v1/resume/${id}`, { headers: last === null ? {} : { "last-event-id": last }, signal });
      if (response.ok) return response;
      if (response.status === 404) throw await refusal(response);
    } catch (error) {
      if (error.code || signal.aborted || left === 0) throw error;
    }
  }
}

// One event of the answer; true at its end.
function take(page, reply, event) {
  const waits = event.comments.find((comment) => comment.includes("goes on"));
  if (waits) reply.note = "the node that answered is gone; another one goes on";
  if (event.data === "[DONE]") return true;
  if (event.data) {
    const data = JSON.parse(event.data);
    if (data.error) throw Object.assign(new Error(data.error.message), { code: data.error.code ?? "error" });
    const delta = data.choices?.[0]?.delta ?? {};
    const text = (delta.content ?? "") + (delta.reasoning_content ?? "");
    if (text && reply.note && !waits) reply.note = "went on after a pause";
    reply.content += delta.content ?? "";
    reply.thought += delta.reasoning_content ?? "";
  }
  page.draw();
  return false;
}

export default { title: "Chat", view };
