// Agents' sessions, here and at peers: a tree of forks, and one of them live.

import { h } from "../dom.js";
import { get, post, uuid7, withQuery } from "../api.js";
import { clock, empty, pill, span, tone, trouble } from "../words.js";

// Lists are read anew so often, in milliseconds: sessions of others begin and end without telling us.
const LIST_EVERY = 5000;
// Events that are drawn of one session; the rest is a click away in the export.
const SHOWN_MAX = 500;

const my = { sessions: [], unreached: [], agents: [], error: null, agent: "", name: "", open: null, text: "", timer: null, hidden: true };
let live = null;

async function read(page) {
  clearTimeout(my.timer);
  try {
    const [listed, agents] = await Promise.all([get("/api/sessions", { all: true, limit: 500 }), get("/api/agents")]);
    my.sessions = listed.sessions;
    my.unreached = listed.unreached ?? [];
    my.agents = agents;
    if (!agents.some((agent) => address(agent) === my.agent)) my.agent = agents[0] ? address(agents[0]) : "";
    my.error = null;
  } catch (error) {
    my.error = error;
  }
  my.timer = setTimeout(() => read(page), LIST_EVERY);
  page.draw();
}

const address = (agent) => (agent.local ? agent.name : `${agent.name}@${agent.node}`);
const at = (session) => `${session.id}@${session.node}`;

async function act(page, work) {
  try {
    my.error = null;
    await work();
  } catch (error) {
    my.error = error;
  }
  await read(page);
}

function view(page) {
  return [trouble(my.error), h("div", { class: "two", key: "two" }, h("div", null, begin(page), tree(page)), my.open ? opened(page) : h("section", { class: "card" }, empty("Choose a session to see it live, or begin one.")))];
}

function begin(page) {
  if (!page.mayChange) return null;
  if (!my.agents.length) {
    return h("section", { class: "card", key: "begin" }, h("h2", null, "No agent is hosted"), h("p", null, "Put an [[agents]] table into a node's configuration, and start it again: its agents can be used from every node of the mesh."));
  }
  const start = (event) => {
    event.preventDefault();
    act(page, async () => {
      const session = await post("/api/sessions", { id: uuid7(), agent: my.agent, name: my.name.trim() || undefined });
      my.name = "";
      attach(page, session);
    });
  };
  return h("section", { class: "card", key: "begin" }, h("h2", null, "Begin a session"),
    h("form", { onsubmit: start },
      h("label", null, "Agent", h("select", { value: my.agent, onchange: (event) => { my.agent = event.target.value; page.draw(); } },
        my.agents.map((agent) => h("option", { key: address(agent), value: address(agent) }, `${agent.name} at ${agent.local ? "this node" : agent.node_name}${agent.state === "ready" ? "" : ` (${agent.state})`}`)))),
      h("label", null, "Name (optional)", h("input", { value: my.name, maxlength: 128, oninput: (event) => { my.name = event.target.value; } })),
      h("div", { class: "row end" }, h("button", { class: "main", type: "submit" }, "Begin"))));
}

// Forks stand below what they were forked from.
function tree(page) {
  const kept = my.hidden ? my.sessions.filter((session) => session.state !== "archived") : my.sessions;
  const ids = new Set(kept.map((session) => session.id));
  const below = Map.groupBy(kept, (session) => (session.parent && ids.has(session.parent.session) ? session.parent.session : ""));
  const list = (parent) => {
    const all = below.get(parent) ?? [];
    return all.length ? h("ul", { class: "plain" }, all.map((session) => leaf(page, session, list(session.id)))) : null;
  };
  return h("section", { class: "card", key: "tree" },
    h("div", { class: "row" }, h("h2", { class: "grow" }, `Sessions (${kept.length})`),
      h("label", { class: "inline" }, h("input", { type: "checkbox", checked: !my.hidden, onchange: (event) => { my.hidden = !event.target.checked; page.draw(); } }), "archived too")),
    list("") ?? empty("No session yet."),
    my.unreached.map((node) => h("p", { class: "soft small" }, `${node.node_name || node.node} did not answer: ${node.why}`)));
}

function leaf(page, session, forks) {
  const isOpen = my.open?.session.id === session.id;
  return h("li", { key: session.id, class: isOpen ? "chosen" : "" },
    h("button", { class: "plain", "aria-pressed": String(isOpen), onclick: () => attach(page, session) }, session.name ?? `${session.agent} ${session.id.slice(0, 13)}`),
    " ", pill(session.state), h("br"), h("span", { class: "soft small" }, `${session.agent} at ${session.node_name}, ${span((Date.now() - session.updated_ms) / 1000)} ago`), forks);
}

// ---- one session, live ---------------------------------------------------------------------------------------------

function attach(page, session) {
  detach();
  my.open = { session, items: [], text: "", thought: "", turn: null, calls: new Map(), asked: new Map(), last: 0, state: "reading", texts: new Map() };
  listen(page, my.open);
  page.draw();
}

function detach() {
  live?.close();
  live = null;
}

// The browser opens the stream again by itself, and says which event it has.
function listen(page, open) {
  const source = new EventSource(withQuery("/api/sessions/events", { session: at(open.session), after: open.last }));
  live = source;
  source.onopen = () => { open.state = "live"; page.draw(); };
  source.onerror = () => {
    if (my.open !== open) return;
    open.state = "the host is not reached; it goes on by itself";
    if (source.readyState === EventSource.CLOSED) setTimeout(() => { if (my.open === open && live === source) listen(page, open); }, 2000);
    page.draw();
  };
  const heard = (message) => {
    const event = JSON.parse(message.data);
    if (event.number <= open.last) return;
    open.last = event.number;
    take(open, event);
    page.draw();
  };
  for (const kind of Object.keys(KINDS)) source.addEventListener(kind, heard);
  source.addEventListener("end", (message) => {
    const end = JSON.parse(message.data);
    source.close();
    if (my.open !== open || live !== source) return;
    if (end.end === "moved" && end.node) {
      open.session = { ...open.session, node: end.node };
      listen(page, open);
    } else if (end.end === "archived") {
      open.state = "archived";
    } else {
      open.state = `${end.end}${end.why ? `: ${end.why}` : ""}`;
      if (end.end !== "gone") setTimeout(() => { if (my.open === open && live === source) listen(page, open); }, 2000);
    }
    page.draw();
  });
}

const put = (open, event, item) => open.items.push({ key: event.number, number: event.number, atMs: event.at_ms, ...item });

const words = (open, parts) => (parts ?? []).map((part) => (part.type === "text" ? text(open, part.text) : part.type === "image" ? `[image, ${part.bytes} bytes]` : "")).join("\n");

// A long text is fetched when it is drawn first.
function text(open, value) {
  if (typeof value === "string") return value;
  const known = open.texts.get(value.blob);
  if (known !== undefined) return known;
  open.texts.set(value.blob, "…");
  fetch(withQuery("/api/sessions/content", { session: at(open.session), blob: value.blob }))
    .then((response) => (response.ok ? response.text() : `[${value.bytes} bytes that could not be read]`))
    .then((all) => open.texts.set(value.blob, all));
  return "…";
}

const KINDS = {
  created: () => {},
  forked: (open, event) => put(open, event, { kind: "note", text: `forked from ${event.parent.slice(0, 13)} behind event ${event.cut}` }),
  delegated: (open, event) => put(open, event, { kind: "note", text: "begun for another agent" }),
  named: (open, event) => { open.session.name = event.name ?? null; },
  labelled: () => {},
  shared: (open, event) => put(open, event, { kind: "note", text: `shared with ${event.shares.length}` }),
  prompted: (open, event) => put(open, event, { kind: "mine", parts: event.parts }),
  steered: (open, event) => put(open, event, { kind: "mine", parts: event.parts, note: "in the middle of a turn" }),
  turn_started: (open, event) => { open.turn = event.turn; },
  model_called: (open) => { open.text = ""; open.thought = ""; },
  text_added: (open, event) => { open.text += event.text; },
  reasoning_added: (open, event) => { open.thought += event.text; },
  answered: (open, event) => {
    open.text = "";
    open.thought = "";
    put(open, event, { kind: "agent", whole: event.text, thought: event.reasoning ?? null });
    for (const call of event.tool_calls ?? []) open.calls.set(call.id, call);
  },
  model_failed: (open, event) => { open.text = ""; put(open, event, { kind: "note", tone: "bad", text: `the model failed: ${event.why}${event.retry_ms ? `; again in ${span(event.retry_ms / 1000)}` : ""}` }); },
  tool_asked: (open, event) => open.asked.set(event.call, event),
  tool_decided: (open, event) => { open.asked.delete(event.call); },
  tool_started: (open, event) => put(open, event, { kind: "tool", call: event.call, printed: "" }),
  tool_printed: (open, event) => {
    const item = open.items.findLast((one) => one.kind === "tool" && one.call === event.call);
    if (item) item.printed = (item.printed + event.text).slice(-8000);
  },
  tool_ended: (open, event) => {
    open.asked.delete(event.call);
    const item = open.items.findLast((one) => one.kind === "tool" && one.call === event.call);
    if (item) item.result = event.result;
    else put(open, event, { kind: "tool", call: event.call, printed: "", result: event.result });
  },
  compacted: (open, event) => put(open, event, { kind: "note", text: "what came before is told to the model by a summary" }),
  turn_ended: (open, event) => {
    open.turn = null;
    open.asked.clear();
    if (event.outcome.type !== "done") put(open, event, { kind: "note", tone: "warn", text: `the turn ended: ${event.outcome.why ?? event.outcome.limit ?? event.outcome.type}` });
  },
  suspended: (open, event) => put(open, event, { kind: "note", tone: "warn", text: `rests: ${event.why}` }),
  resumed: (open, event) => put(open, event, { kind: "note", text: "goes on" }),
  archived: (open, event) => { open.state = "archived"; put(open, event, { kind: "note", text: "archived" }); },
  handed_over: (open, event) => put(open, event, { kind: "note", text: `moved to another node (epoch ${event.epoch})` }),
};

function take(open, event) {
  KINDS[event.kind]?.(open, event);
  if (open.items.length > SHOWN_MAX) open.items.splice(0, open.items.length - SHOWN_MAX);
}

function opened(page) {
  const { open } = my;
  const { session } = open;
  const over = open.state === "archived" || session.state === "archived";
  const mine = { session: at(session) };
  return h("section", { class: "card", key: session.id },
    h("div", { class: "row" }, h("h2", { class: "grow" }, session.name ?? session.id), pill(open.turn ? "streaming" : open.state === "live" ? "ok" : tone(open.state) === "soft" ? "warn" : open.state, open.turn ? "at work" : open.state),
      page.mayChange && open.turn ? h("button", { class: "danger", onclick: () => act(page, () => post("/api/sessions/cancel", { ...mine, turn: open.turn })) }, "Cancel the turn") : null,
      page.mayChange && !over ? h("button", { onclick: () => confirm("Archive this session? It can be read and forked from then on, and not prompted.") && act(page, () => post("/api/sessions/archive", mine)) }, "Archive") : null),
    h("p", { class: "soft small mono" }, `${session.id} at ${session.node_name || session.node}`),
    h("div", { class: "talk", role: "log", "aria-live": "polite", "aria-label": "Events of the session" },
      open.items.map((item) => drawn(page, open, item)),
      open.thought ? h("div", { class: "said thought" }, open.thought) : null,
      open.text ? h("div", { class: "said" }, h("span", { class: "who" }, session.agent), open.text, " …") : null,
      !open.items.length && open.state === "live" ? empty("Nothing was said yet.") : null),
    [...open.asked.values()].map((asked) => decision(page, open, asked)),
    page.mayChange && !over ? prompt(page, open) : null);
}

function drawn(page, open, item) {
  if (item.kind === "note") return h("p", { key: item.key, class: `small ${item.tone ?? "soft"}` }, clock(item.atMs), " ", item.text);
  if (item.kind === "tool") {
    const call = open.calls.get(item.call);
    const result = item.result ? words(open, item.result.parts) : item.printed;
    return h("details", { key: item.key, class: "said tool" },
      h("summary", null, `${call?.name ?? "tool"} `, pill(item.result ? (item.result.outcome === "done" ? "ok" : "failed") : "loading", item.result?.outcome ?? "runs")),
      call ? h("pre", null, JSON.stringify(call.arguments, null, 1)) : null, result ? h("pre", null, result) : null);
  }
  const isMine = item.kind === "mine";
  const fork = () => act(page, async () => {
    const fork = await post("/api/sessions/fork", { session: at(open.session), at: item.number, id: uuid7() });
    attach(page, fork);
  });
  return h("div", { key: item.key, class: `said ${isMine ? "mine" : ""}` },
    h("span", { class: "who" }, isMine ? "Prompt" : open.session.agent, " ", clock(item.atMs), item.note ? ` (${item.note})` : "",
      page.mayChange && !isMine ? [" ", h("button", { class: "plain small", onclick: fork, title: "A new session that shares all up to here" }, "Fork here")] : null),
    item.thought ? h("details", null, h("summary", { class: "soft small" }, "Thoughts"), text(open, item.thought)) : null,
    isMine ? words(open, item.parts) : text(open, item.whole));
}

function decision(page, open, asked) {
  const call = open.calls.get(asked.call);
  const decide = (allowed) => act(page, () => post("/api/sessions/decide", { session: at(open.session), turn: asked.turn, call: asked.call, allowed }));
  return h("div", { key: asked.call, class: "notice", role: "alert" }, h("strong", null, `May ${call?.name ?? "the tool"} run?`), h("p", null, asked.why),
    call ? h("pre", null, JSON.stringify(call.arguments, null, 1)) : null,
    page.mayChange ? h("div", { class: "row" }, h("button", { class: "main", onclick: () => decide(true) }, "Allow"), h("button", { class: "danger", onclick: () => decide(false) }, "Deny")) : null);
}

function prompt(page, open) {
  const say = (event) => {
    event?.preventDefault();
    const said = my.text.trim();
    if (!said) return;
    my.text = "";
    act(page, () => post("/api/sessions/prompt", { session: at(open.session), prompt: uuid7(), parts: [{ type: "text", text: said }] }));
  };
  return h("form", { key: "prompt", onsubmit: say },
    h("label", null, open.turn ? "Next prompt (waits for its turn)" : "Prompt",
      h("textarea", { rows: 2, value: my.text, placeholder: "Enter sends, Shift+Enter begins a line", oninput: (event) => { my.text = event.target.value; },
        onkeydown: (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) say(event); } })),
    h("div", { class: "row end" }, h("button", { class: "main", type: "submit" }, "Send")));
}

export default {
  title: "Sessions",
  view,
  enter(page) {
    read(page);
    if (my.open) listen(page, my.open);
  },
  again: read,
  leave() {
    clearTimeout(my.timer);
    detach();
  },
};
