// Who is linked to whom, as a picture; the table below it says the same in words.

import { h, kept } from "../dom.js";
import { ms } from "../words.js";

const WIDTH = 900;
// As many on the inner ring as have room for a name each.
const RING = 14;

// Places of `count` nodes around the middle, on as many rings as they need. They depend on nothing but the order, so that
// nothing jumps when a link changes.
function places(count, height) {
  const rings = [];
  for (let left = count, room = RING; left > 0; left -= room, room += RING) rings.push(Math.min(left, room));
  return rings.flatMap((on, ring) =>
    Array.from({ length: on }, (_, at) => {
      const angle = (2 * Math.PI * at) / on - Math.PI + ring * 0.12;
      const share = (ring + 1) / rings.length;
      return [WIDTH / 2 + Math.cos(angle) * 370 * share, height / 2 + Math.sin(angle) * (height / 2 - 40) * share];
    }));
}

// Of many nodes the first `drawn`.
export function topology(nodes, drawn) {
  const me = nodes.find((node) => node.state === "self");
  const others = nodes.filter((node) => node !== me).sort((a, b) => (a.id < b.id ? -1 : 1));
  // A few stand on a line or a small circle, many need the room.
  const height = others.length <= 2 ? 120 : others.length <= 6 ? 260 : 420;
  const at = places(others.length, height);
  const small = others.length > 2 * RING;
  const radius = small ? 6 : 14;
  const count = (wanted) => others.filter(wanted).length;
  const said = `${others.length} other nodes: ${count((n) => n.path === "direct")} linked directly, ` +
    `${count((n) => n.path === "relayed")} through a relay, ${count((n) => n.state === "down")} down`;
  return h("svg", { class: "topology", viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": said },
    h("g", { key: "links" }, others.slice(0, drawn).map((node, index) => link(node, at[index], height, small))),
    h("g", { key: "nodes" },
      others.slice(0, drawn).map((node, index) => circle(node, at[index], radius, small)),
      me ? circle(me, [WIDTH / 2, height / 2], 18, false) : null));
}

function link(node, [x, y], height, small) {
  const kind = node.state === "down" ? "none" : node.path;
  const [middleX, middleY] = [(x + WIDTH / 2) / 2, (y + height / 2) / 2];
  const told = small || kind === "none" ? null : ms(node.rtt_ms);
  return kept("g", node.id, [kind, x, y, height, told], () => h("g", null,
    h("line", { class: `link ${kind}`, x1: WIDTH / 2, y1: height / 2, x2: x, y2: y }),
    told ? h("text", { class: "small", x: middleX, y: middleY - 4, "text-anchor": "middle" }, told) : null));
}

function circle(node, [x, y], radius, small) {
  const link = node.state === "self" ? "this node" : node.path === "none" ? "no link now" : `${node.path}, ${ms(node.rtt_ms)}`;
  return kept("g", node.id, [node.name, node.state, node.role, link, x, y, radius, small], () => h("g", null,
    h("circle", { class: `node ${node.state} ${node.role}`, cx: x, cy: y, r: radius }, h("title", null, `${node.name}: ${node.state}, ${link}`)),
    small ? null : h("text", { x, y: y + radius + 14, "text-anchor": "middle" }, node.name)));
}
