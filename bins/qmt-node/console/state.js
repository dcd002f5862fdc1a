// What the node tells, as it tells it: one stream, a snapshot first, then what changes.

const HAPPENED_MAX = 200;

export const state = {
  access: null, // null: not known yet; "full", "watch" or "none"
  connected: false,
  status: null,
  statusAt: 0, // when it was told, for what goes on since
  nodes: new Map(),
  models: new Map(),
  happened: [],
  epoch: 0, // counts what the stream tells of and does not hold: views that show more read it anew
};

const listeners = new Set();
let drawing = false;
let restsUntil = 0;
const RESTS_MAX_MS = 200;

export const onChange = (listener) => listeners.add(listener);

// All that happens within one frame is drawn once. Where drawing takes long it is done less often, so that the page answers in
// between: at most half of the time goes into it.
export function changed() {
  if (drawing) return;
  drawing = true;
  const rests = Math.min(Math.max(0, restsUntil - performance.now()), RESTS_MAX_MS);
  setTimeout(() => requestAnimationFrame(() => {
    drawing = false;
    const begin = performance.now();
    for (const listener of listeners) listener();
    const end = performance.now();
    restsUntil = end + (end - begin);
  }), rests);
}

const nodeKey = (node) => `${node.scope}/${node.id}`;

function happened(atMs, tone, text) {
  const last = state.happened[0];
  if (last && last.text === text && atMs - last.atMs < 1000) return;
  state.happened.unshift({ atMs, tone, text, key: `${atMs}-${state.happened.length}-${text}` });
  state.happened.length = Math.min(state.happened.length, HAPPENED_MAX);
}

const WORDS = { alive: "is there", suspect: "is not heard of", down: "is down", self: "runs" };
const TONES = { alive: "good", suspect: "warn", down: "bad", self: "good" };

function takeNode(node, atMs, told) {
  const before = state.nodes.get(nodeKey(node));
  state.nodes.set(nodeKey(node), node);
  if (!told) return;
  if (!before || before.state !== node.state) {
    const why = node.unreached ? ` (${node.unreached})` : "";
    happened(atMs, TONES[node.state] ?? "soft", `${node.name} ${WORDS[node.state] ?? node.state}${why}`);
  } else if (before.path !== node.path && node.path !== "none") {
    happened(atMs, node.path === "relayed" ? "warn" : "good", `the link to ${node.name} is ${node.path} now`);
  }
}

function takeModel(model, atMs, told) {
  const before = state.models.get(model.name);
  state.models.set(model.name, model);
  if (told && before?.state !== model.state) happened(atMs, "soft", `${model.name} is ${model.state}`);
}

function takeStatus(event) {
  state.status = event.status;
  state.statusAt = Date.now();
}

const takers = {
  snapshot(event) {
    const isFirst = state.epoch === 0;
    if (!isFirst) happened(event.at_ms, "soft", "the node answers again");
    takeStatus(event);
    const [nodes, models] = [state.nodes, state.models];
    if (!isFirst) {
      // What happened while nobody listened is told too.
      for (const node of event.nodes) takeNode(node, event.at_ms, true);
      for (const model of event.models) takeModel(model, event.at_ms, true);
    }
    nodes.clear();
    models.clear();
    for (const node of event.nodes) takeNode(node, event.at_ms, false);
    for (const model of event.models) takeModel(model, event.at_ms, false);
    state.epoch += 1;
  },
  node: (event) => takeNode(event.node, event.at_ms, true),
  node_gone(event) {
    const key = `${event.scope}/${event.id}`;
    const name = state.nodes.get(key)?.name;
    state.nodes.delete(key);
    if (name) happened(event.at_ms, "soft", `${name} has left`);
  },
  link(event) {
    const node = state.nodes.get(`${event.scope}/${event.id}`);
    if (node) takeNode({ ...node, path: event.path, rtt_ms: event.rtt_ms }, event.at_ms, true);
  },
  model: (event) => takeModel(event.model, event.at_ms, true),
  model_gone(event) {
    state.models.delete(event.name);
    happened(event.at_ms, "soft", `nobody serves ${event.name} any more`);
  },
  invite_used(event) {
    happened(event.at_ms, "good", `${event.name} joined by an invite`);
    state.epoch += 1;
  },
  revoked(event) {
    happened(event.at_ms, "bad", `${event.revoked.name || event.revoked.id} was revoked`);
    state.epoch += 1;
  },
  status: takeStatus,
};

let source = null;

// Follows the node for as long as the page is looked at; a page in the background holds no connection.
export function follow() {
  if (source) return;
  source = new EventSource("/api/events");
  for (const [type, take] of Object.entries(takers)) {
    source.addEventListener(type, (message) => {
      take(JSON.parse(message.data));
      state.connected = true;
      changed();
    });
  }
  source.onerror = () => {
    state.connected = false;
    // A refusal closes the stream for good, where a lost connection is tried again by the browser.
    if (source?.readyState === EventSource.CLOSED) {
      rest();
      setTimeout(() => enter(), 2000);
    }
    changed();
  };
}

export function rest() {
  source?.close();
  source = null;
}

// Asks who we are, then follows.
export async function enter() {
  try {
    const response = await fetch("/console/access", { credentials: "same-origin" });
    if (response.status === 401) {
      state.access = "none";
      return changed();
    }
    if (!response.ok) throw new Error();
    state.access = (await response.json()).access;
    follow();
  } catch {
    state.connected = false;
    setTimeout(() => enter(), 2000);
  }
  changed();
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) rest();
  else if (state.access === "full" || state.access === "watch") follow();
});

// The nodes once each, whatever scopes they are seen in; the own one first.
export function people() {
  const all = new Map();
  for (const node of state.nodes.values()) if (!all.has(node.id)) all.set(node.id, node);
  return [...all.values()];
}
