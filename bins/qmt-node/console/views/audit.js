// Who let whom in, when, and what a revocation ended.

import { h } from "../dom.js";
import { get } from "../api.js";
import { day, empty, pill, short, trouble } from "../words.js";

const my = { view: null, error: null };

async function read(page) {
  try {
    my.view = await get("/api/audit", { limit: 500, verify: true });
    my.error = null;
  } catch (error) {
    my.error = error;
  }
  page.draw();
}

function view() {
  const entries = my.view?.entries ?? [];
  const chain = my.view?.chain;
  const named = (name, id) => [name || null, name ? " " : null, h("span", { class: "soft small mono", title: id }, short(id))];
  return [
    trouble(my.error),
    chain ? h("div", { class: `notice ${chain.holds ? "good" : "bad"}` }, chain.holds ? `Unbroken: each row follows from the one before (${chain.first} to ${chain.last}).` : `Broken at row ${chain.row}: ${chain.fault}`) : null,
    h("section", { class: "card" }, entries.length
      ? h("div", { class: "scroll" }, h("table", null,
          h("thead", null, h("tr", null, ["", "When", "What", "Whom", "By", "Mesh", "Details"].map((name) => h("th", { scope: "col" }, name)))),
          h("tbody", null, [...entries].sort((a, b) => b.number - a.number).map((entry) => h("tr", { key: entry.number },
            h("td", { class: "number soft" }, entry.number), h("td", null, day(entry.at)), h("td", null, pill(entry.kind === "revoked" ? "failed" : "soft", entry.kind)),
            h("td", null, named(entry.subject_name, entry.subject)), h("td", null, entry.actor ? named(entry.actor_name, entry.actor) : ""), h("td", null, entry.scope_name),
            h("td", { class: "soft small" }, Object.entries(entry.details).map(([key, value]) => `${key} ${value}`).join(", ")))))))
      : empty("Nothing yet: invites, joins, renewals and revocations are written here.")),
  ];
}

export default { title: "Audit", view, enter: read, again: read };
