// Elements as values, and the smallest change of the page that makes it show them. Text is only ever text: nothing that
// comes from a node is read as HTML.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "g", "circle", "line", "path", "text", "title", "rect"]);

// An element; `key` keeps its identity when its neighbours come and go, `ref` is called once with the real element.
export function h(tag, props, ...children) {
  return { tag, props: props ?? {}, children };
}

// An element that stays as it is until one of `from` is another value: then it is what `make` returns.
export function kept(tag, key, from, make) {
  return { tag, props: { key }, from, make };
}

const same = (a, b) => a !== undefined && a.length === b.length && a.every((one, at) => Object.is(one, b[at]));

// Makes the children of `parent` those of the list.
export function patch(parent, list) {
  const wanted = list.flat(Infinity).filter((v) => v !== null && v !== undefined && v !== false && v !== "");
  const keyed = new Map();
  const plain = [];
  for (const node of parent.childNodes) {
    if (node.ofKey !== undefined) keyed.set(node.ofKey, node);
    else plain.push(node);
  }
  const nodes = wanted.map((value) => found(value, keyed, plain) ?? made(value, parent));
  // What goes, goes first: then nothing that stays has to move, and what is typed into keeps the focus.
  const stays = new Set(nodes);
  for (const node of [...parent.childNodes]) if (!stays.has(node)) node.remove();
  let next = parent.firstChild;
  for (const node of nodes) {
    if (node === next) next = next.nextSibling;
    else parent.insertBefore(node, next);
  }
}

// The node that already stands for the value: of its key, or the next one of its kind.
function found(value, keyed, plain) {
  const key = value.props?.key;
  if (key !== undefined) {
    const node = keyed.get(key);
    if (!node || node.ofTag !== value.tag) return null;
    keyed.delete(key);
    renew(node, value);
    return node;
  }
  const isText = typeof value !== "object";
  const at = plain.findIndex((node) => (isText ? node.nodeType === Node.TEXT_NODE : node.ofTag === value.tag));
  if (at < 0) return null;
  const [node] = plain.splice(at, 1);
  if (!isText) renew(node, value);
  else if (node.data !== String(value)) node.data = String(value);
  return node;
}

function made(value, parent) {
  if (typeof value !== "object") return document.createTextNode(String(value));
  const isSvg = SVG_TAGS.has(value.tag) && (value.tag !== "title" || parent.namespaceURI === SVG);
  const node = isSvg ? document.createElementNS(SVG, value.tag) : document.createElement(value.tag);
  node.ofTag = value.tag;
  node.ofKey = value.props.key;
  node.ofProps = {};
  renew(node, value);
  value.props.ref?.(node);
  return node;
}

function renew(node, value) {
  if (value.make) {
    if (same(node.ofFrom, value.from)) return;
    node.ofFrom = value.from;
    update(node, value.make());
  } else {
    update(node, value);
  }
}

function update(node, value) {
  // Choices first: what is chosen must be there to be chosen.
  patch(node, value.children);
  const before = node.ofProps;
  for (const name of Object.keys(before)) if (!(name in value.props)) put(node, name, undefined);
  for (const [name, to] of Object.entries(value.props)) if (before[name] !== to) put(node, name, to);
  node.ofProps = value.props;
}

function put(node, name, to) {
  if (name === "key" || name === "ref") return;
  if (name.startsWith("on")) {
    node[name] = to ?? null;
  } else if (name === "value" || name === "checked" || name === "disabled" || name === "open" || name === "selected") {
    if (node[name] !== (to ?? "")) node[name] = to ?? (name === "value" ? "" : false);
  } else if (to === undefined || to === null || to === false) {
    node.removeAttribute(name);
  } else {
    node.setAttribute(name, to === true ? "" : to);
  }
}
