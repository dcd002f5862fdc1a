// The mesh at a glance: who is there, how they are linked, what has just happened.

import { h, kept } from "../dom.js";
import { post } from "../api.js";
import { people, state } from "../state.js";
import { ago, bytes, clock, empty, ms, pill, short, trouble } from "../words.js";
import { topology } from "./topology.js";

// Nodes that are drawn at once; more follow in as many frames as they need, so that the page never stands still for them.
const STEP = 20;

const my = { filter: "", error: null, drawn: STEP };

// Draws some more, until all are there.
function grow(page, count) {
  my.drawn = Math.min(my.drawn, count + STEP);
  if (my.drawn >= count) return;
  my.drawn += STEP;
  setTimeout(page.draw);
}

function view(page) {
  const nodes = people();
  const { drawn } = my;
  grow(page, nodes.length);
  return [
    my.error ? trouble(my.error) : null,
    nodes.length < 2
      ? h("section", { class: "card", key: "alone" }, h("h2", null, "This node is alone"),
          h("p", null, "Invite another machine: ", h("a", { href: "#invites" }, "make an invite"), ", or join a mesh you were invited to there."))
      : h("section", { class: "card", key: "topology" }, h("h2", null, "Links"), topology(nodes, drawn)),
    h("div", { class: "grid", key: "grid" }, health(), traffic(), happened()),
    members(page, nodes, drawn),
  ];
}

function health() {
  const all = state.status.health ?? [];
  if (!all.length) return null;
  return h("section", { class: "card", key: "health" }, h("h2", null, "Health"),
    h("dl", { class: "facts" }, all.map((one) => [h("dt", null, one.name), h("dd", null, pill(one.grade), ` ${one.text}`)])));
}

function traffic() {
  const { status } = state;
  const fact = (name, value) => [h("dt", null, name), h("dd", null, value)];
  return h("section", { class: "card", key: "traffic" }, h("h2", null, "This node"),
    h("dl", { class: "facts" },
      fact("id", h("span", { class: "mono" }, status.node_id)),
      fact("gateway", h("span", { class: "mono" }, `${status.gateway_url}/v1`)),
      fact("links", `${status.links.direct} direct, ${status.links.relayed} relayed`),
      fact("tunnels", `${bytes(status.tunnels.sent_bytes)} sent, ${bytes(status.tunnels.received_bytes)} received`),
      fact("weights", `${bytes(status.tunnels.weights_sent_bytes)} sent, ${bytes(status.tunnels.weights_by_reference_bytes)} not needed to be`),
      fact("answers", `${status.answers.continued} went on elsewhere, ${status.answers.lost} lost`),
      status.scopes.map((scope) => fact(`mesh ${scope.name}`,
        `${scope.members_alive} here, as ${scope.role}; gossip ${bytes(scope.gossip_bytes_sent)} sent, ${bytes(scope.gossip_bytes_received)} received`))));
}

function happened() {
  return h("section", { class: "card", key: "happened" }, h("h2", null, "What happened"),
    state.happened.length
      ? h("ol", { class: "happened", "aria-live": "polite", tabindex: "0", "aria-label": "What happened, the latest first" },
          state.happened.map((one) => kept("li", one.key, [], () => h("li", null, clock(one.atMs), " ", h("span", { class: one.tone }, one.text)))))
      : empty("Nothing since this page was opened. Nodes that come, go or change their link appear here."));
}

function members(page, nodes, drawn) {
  const words = my.filter.toLowerCase();
  const fits = (node) => !words || [node.name, node.id, node.state, node.role, ...(node.capabilities ?? []), ...node.models].some((text) => text.toLowerCase().includes(words));
  const found = nodes.filter(fits);
  return h("section", { class: "card", key: "members" },
    h("div", { class: "row" }, h("h2", { class: "grow" }, `Nodes (${nodes.length})`),
      h("input", { type: "search", placeholder: "Filter by name, label, model", "aria-label": "Filter nodes", value: my.filter, oninput: (event) => { my.filter = event.target.value; page.draw(); } })),
    h("div", { class: "scroll" }, h("table", { class: "members" },
      h("thead", null, h("tr", null, ["Node", "State", "Link", "Memory", "Models", ""].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", null, found.slice(0, drawn).map((node) => row(page, node))))),
    found.length ? null : empty("No node fits the filter."));
}

function row(page, node) {
  const isMe = node.state === "self";
  const link = isMe ? "this node" : node.path === "none" ? node.unreached ?? "opened on use" : [pill(node.path), ` ${ms(node.rtt_ms)} `, h("span", { class: "soft small" }, node.transport ?? "")];
  const since = node.since ? ago(node.since) : "";
  return kept("tr", `${node.scope}/${node.id}`, [node, since, page.mayChange], () => h("tr", null,
    h("td", null, h("strong", null, node.name), h("br"), h("span", { class: "soft small mono", title: node.id }, short(node.id)),
      (node.capabilities ?? []).map((label) => [" ", h("span", { class: "pill soft" }, label)])),
    h("td", null, pill(node.state), " ", h("span", { class: "soft small" }, since), node.role === "client" ? [h("br"), h("span", { class: "soft small" }, "client")] : null),
    h("td", null, link),
    h("td", null, memory(node.memory)),
    h("td", null, node.models.join(", ")),
    h("td", null, page.mayChange && !isMe ? h("button", { class: "danger small", onclick: () => revoke(page, node) }, "Revoke") : null)));
}

function memory(memory) {
  if (!memory) return null;
  const cap = memory.cap_bytes ?? memory.total_bytes;
  const used = memory.total_bytes - memory.free_bytes;
  const said = `${bytes(used)} of ${bytes(memory.total_bytes)} used${cap < memory.total_bytes ? `, ${bytes(cap)} for models` : ""}`;
  return [h("meter", { min: 0, max: memory.total_bytes, value: used, title: said, "aria-label": said }), h("span", { class: "soft small" }, said)];
}

async function revoke(page, node) {
  if (!confirm(`Revoke ${node.name}? It loses its membership everywhere within seconds, and needs a new invite to come back.`)) return;
  try {
    my.error = null;
    await post("/api/revoke", { subject: node.id, scope: node.scope });
  } catch (error) {
    my.error = error;
  }
  page.draw();
}

export default { title: "Overview", view };
