// Values as people read them.

import { h } from "./dom.js";

export function bytes(count) {
  if (count === null || count === undefined) return "";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (count >= 1000 && at < units.length - 1) {
    count /= 1000;
    at += 1;
  }
  return `${count >= 100 || at === 0 ? Math.round(count) : count.toFixed(1)} ${units[at]}`;
}

export const ms = (value) =>
  value === null || value === undefined ? "" : value < 1 ? "< 1 ms" : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

export function span(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

export const ago = (unixSeconds) => (unixSeconds ? `${span(Date.now() / 1000 - unixSeconds)} ago` : "");

export const until = (unixSeconds) => {
  if (!unixSeconds) return "never";
  const left = unixSeconds - Date.now() / 1000;
  return left > 0 ? `in ${span(left)}` : `${span(-left)} ago`;
};

export function clock(atMs) {
  const date = new Date(atMs);
  return h("time", { datetime: date.toISOString(), title: date.toLocaleString() }, date.toLocaleTimeString());
}

export const day = (unixSeconds) => new Date(unixSeconds * 1000).toLocaleString();

export const short = (id) => (id ?? "").slice(0, 10);

const TONES = {
  self: "good", alive: "good", ready: "good", ok: "good", done: "good", healthy: "good", streaming: "good",
  suspect: "warn", loading: "warn", warn: "warn", waiting: "warn", warning: "warn", suspended: "warn", relayed: "warn",
  down: "bad", failed: "bad", fail: "bad", error: "bad", critical: "bad",
};

export const tone = (word) => TONES[word] ?? "soft";

export const pill = (word, text) => h("span", { class: `pill ${tone(word)}` }, text ?? word);

// What went wrong, with what mends it.
export function trouble(error) {
  if (!error) return null;
  return h("div", { class: "notice bad", role: "alert" }, h("strong", null, error.message), error.mend ? h("p", null, error.mend) : null);
}

export const empty = (...said) => h("p", { class: "empty" }, ...said);
