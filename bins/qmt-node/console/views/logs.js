// The node's log as it grows, by level and by what stands in it.

import { h, kept } from "../dom.js";
import { withQuery } from "../api.js";
import { clock, empty, tone } from "../words.js";

const LINES_MAX = 10000;
// More at once would freeze the page; others are gone to by the buttons above them.
const DRAWN_MAX = 200;

// `end` is the number behind the last line that is drawn; none for the newest.
const my = { lines: [], end: null, level: "info", text: "", lost: 0, follows: true, source: null, typing: null, state: "reading" };

// The filter is the node's work: what does not fit is not sent.
function listen(page) {
  my.source?.close();
  Object.assign(my, { lines: [], end: null, lost: 0, state: "reading" });
  const source = new EventSource(withQuery("/api/logs/events", { level: my.level, text: my.text.trim(), limit: LINES_MAX }));
  my.source = source;
  source.addEventListener("lines", (message) => {
    const told = JSON.parse(message.data);
    const last = my.lines.at(-1)?.number ?? 0;
    // A node that was started again counts from one.
    if (told.through < last) my.lines = [];
    my.lost += told.lost;
    my.lines.push(...told.lines);
    if (my.lines.length > LINES_MAX) my.lines.splice(0, my.lines.length - LINES_MAX);
    my.state = "live";
    page.draw();
  });
  source.onerror = () => { my.state = "waiting for the node"; page.draw(); };
  page.draw();
}

function view(page) {
  const retyped = (event) => {
    my.text = event.target.value;
    clearTimeout(my.typing);
    my.typing = setTimeout(() => listen(page), 250);
  };
  // What is gone is not gone to any more.
  const last = my.end === null ? my.lines.length : my.lines.findLastIndex((line) => line.number < my.end) + 1;
  const end = Math.max(last, Math.min(DRAWN_MAX, my.lines.length));
  const begin = Math.max(0, end - DRAWN_MAX);
  const drawn = my.lines.slice(begin, end);
  const go = (to) => {
    my.end = to >= my.lines.length ? null : my.lines[Math.max(to, DRAWN_MAX)].number;
    my.follows = my.end === null;
    page.draw();
  };
  const download = () => {
    const text = my.lines.map((line) => JSON.stringify(line)).join("\n");
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text])), download: "qmt-node-log.jsonl" });
    link.click();
    URL.revokeObjectURL(link.href);
  };
  return [
    h("div", { class: "row card", key: "filter" },
      h("label", null, "Level", h("select", { value: my.level, onchange: (event) => { my.level = event.target.value; listen(page); } }, ["error", "warn", "info", "debug", "trace"].map((level) => h("option", { key: level, value: level }, `${level} and graver`)))),
      h("label", { class: "grow" }, "Contains", h("input", { type: "search", value: my.text, oninput: retyped })),
      h("label", { class: "inline" }, h("input", { type: "checkbox", checked: my.follows, onchange: (event) => { my.follows = event.target.checked; if (my.follows) my.end = null; page.draw(); } }), "follow"),
      h("button", { disabled: begin === 0, onclick: () => go(end - DRAWN_MAX) }, "Earlier"),
      h("button", { disabled: end === my.lines.length, onclick: () => go(end + DRAWN_MAX) }, "Later"),
      h("button", { onclick: download, disabled: !my.lines.length }, "Save"),
      h("span", { class: "soft small" }, `${my.lines.length} lines, ${my.state}`)),
    my.lost ? h("p", { class: "soft small" }, `${my.lost} older lines are not kept any more.`) : null,
    h("div", { class: "lines mono", key: "lines", tabindex: "0", role: "log", "aria-label": "Log lines", ref: stick },
      my.lines.length > drawn.length ? h("p", { class: "soft small", key: "more" }, `Lines ${begin + 1} to ${end} of ${my.lines.length}: go to others, narrow the filter, or save them all.`) : null,
      drawn.map((line) => kept("div", line.number, [line], () => h("div", null, clock(line.at_ms), " ", h("span", { class: tone(line.level) }, line.level.padEnd(5)), " ", line.message, line.fields.map(([name, value]) => [" ", h("span", { class: "soft" }, `${name}=`), value])))),
      my.lines.length ? null : empty("No line fits. Lines below the node's own level (RUST_LOG) are not written at all.")),
  ];
}

// The last line stays in sight for whoever follows.
function stick(element) {
  new MutationObserver(() => {
    if (my.follows) element.scrollTop = element.scrollHeight;
  }).observe(element, { childList: true });
}

export default { title: "Logs", view, enter: listen, leave: () => { my.source?.close(); my.source = null; } };
