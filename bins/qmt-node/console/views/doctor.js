// What is missing or wrong on this machine, and the command that mends it.

import { h } from "../dom.js";
import { get } from "../api.js";
import { empty, pill, trouble } from "../words.js";

const my = { findings: null, error: null, busy: false };

async function read(page) {
  my.busy = true;
  page.draw();
  try {
    my.findings = await get("/api/doctor");
    my.error = null;
  } catch (error) {
    my.error = error;
  }
  my.busy = false;
  page.draw();
}

const ORDER = { fail: 0, warn: 1, ok: 2 };

function view(page) {
  const findings = [...(my.findings ?? [])].sort((a, b) => (ORDER[a.state] ?? 3) - (ORDER[b.state] ?? 3));
  return [
    trouble(my.error),
    h("div", { class: "row card", key: "again" }, h("span", { class: "grow" }, my.busy ? "Looking …" : `${findings.filter((one) => one.state !== "ok").length} of ${findings.length} checks need a look`), h("button", { disabled: my.busy, onclick: () => read(page) }, "Look again")),
    h("section", { class: "card", key: "found" }, findings.length
      ? h("table", null, h("thead", null, h("tr", null, ["Check", "", "Finding"].map((name) => h("th", { scope: "col" }, name)))),
          h("tbody", null, findings.map((one, at) => h("tr", { key: at }, h("td", null, one.check), h("td", null, pill(one.state)), h("td", null, one.detail, one.mend ? h("pre", null, one.mend) : null)))))
      : my.busy ? null : empty("Nothing was looked at yet.")),
  ];
}

export default { title: "Doctor", view, enter: read };
