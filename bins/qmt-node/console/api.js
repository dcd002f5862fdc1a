// The node's own API. A failure is an error with what went wrong and what mends it.

export class Refused extends Error {
  constructor(code, message, mend) {
    super(message);
    this.code = code;
    this.mend = mend;
  }
}

async function answered(response) {
  if (response.ok) {
    const text = await response.text();
    return text ? JSON.parse(text) : null;
  }
  throw await refusal(response);
}

// Both the control API and the gateway put what went wrong into `error`.
export async function refusal(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // No JSON: the status is all there is.
  }
  const code = error.code ?? String(response.status);
  return new Refused(code, error.message ?? `the node answered ${response.status}`, error.mend);
}

async function asked(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch {
    throw new Refused("no_node", "the node does not answer", "start it again with `qmt-node`; this page goes on by itself");
  }
  return response;
}

export const get = async (path, query) => answered(await asked(withQuery(path, query)));

export const post = async (path, body) => answered(await asked(path, sent(body)));

export const sent = (body) => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(body),
});

export async function postText(path, text) {
  const response = await asked(path, { method: "POST", headers: { "content-type": "text/x-qmt" }, body: text });
  if (!response.ok) throw await refusal(response);
  return response.text();
}

export function withQuery(path, query) {
  const set = Object.entries(query ?? {}).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return set.length ? `${path}?${new URLSearchParams(set)}` : path;
}

// Server-sent events of a response of `fetch`, as {id, event, data}.
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value.replaceAll("\r", "")).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) yield parsed(block);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(block) {
  const event = { id: undefined, event: "message", data: [], comments: [] };
  for (const line of block.split("\n")) {
    if (line.startsWith(":")) event.comments.push(line.slice(1).trim());
    const at = line.indexOf(":");
    const name = at < 0 ? line : line.slice(0, at);
    const value = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
    if (name === "data") event.data.push(value);
    else if (name === "id" || name === "event") event[name] = value;
  }
  event.data = event.data.join("\n");
  return event;
}

// A UUID of version 7: its first 48 bits are the time, so that ids sort as they were made.
export function uuid7() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  let ms = Date.now();
  for (let at = 5; at >= 0; at--) {
    bytes[at] = ms % 256;
    ms = Math.floor(ms / 256);
  }
  bytes[6] = (bytes[6] & 0x0f) | 0x70;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
