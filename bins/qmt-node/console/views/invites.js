// Invites: make one with its link and QR code, see who used it, take it back. And the way in: join by somebody else's.

import { h } from "../dom.js";
import { get, post, postText } from "../api.js";
import { state } from "../state.js";
import { ago, day, empty, pill, trouble, until } from "../words.js";

const my = { all: [], error: null, made: null, qr: null, copied: false, role: "member", ttl: "24h", uses: "1", name: "", canInvite: false, scope: "", token: "", joined: null, busy: false };

async function read(page) {
  try {
    my.all = await get("/api/invites");
  } catch (error) {
    my.error = error;
  }
  page.draw();
}

async function act(page, work) {
  Object.assign(my, { busy: true, error: null });
  page.draw();
  try {
    await work();
  } catch (error) {
    my.error = error;
  }
  my.busy = false;
  await read(page);
}

function view(page) {
  return [
    trouble(my.error),
    my.joined ? h("div", { class: "notice good", role: "status" }, `Joined ${my.joined.name} as ${my.joined.role}.`) : null,
    page.mayChange ? h("div", { class: "grid", key: "do" }, make(page), join(page)) : null,
    my.made ? made(page) : null,
    list(page),
  ];
}

function make(page) {
  const field = (name) => ({ value: my[name], oninput: (event) => { my[name] = event.target.value; } });
  const submit = (event) => {
    event.preventDefault();
    act(page, async () => {
      const made = await post("/api/invites", { name: my.name.trim() || undefined, ttl: my.ttl.trim(), uses: Number(my.uses), role: my.role, can_invite: my.canInvite, scope: my.scope || undefined });
      Object.assign(my, { made, qr: null, copied: false });
      my.qr = await postText("/console/qr", made.url);
    });
  };
  const scopes = state.status.scopes.filter((scope) => scope.trust === undefined);
  return h("section", { class: "card", key: "make" }, h("h2", null, "Invite a machine"),
    h("form", { onsubmit: submit },
      h("div", { class: "row" },
        h("label", null, "Role", h("select", { value: my.role, onchange: (event) => { my.role = event.target.value; page.draw(); } }, h("option", { value: "member" }, "member: everything"), h("option", { value: "client" }, "client: uses what is shared"))),
        h("label", null, "Lives for", h("input", { size: 6, required: true, ...field("ttl") })),
        h("label", null, "Uses (0: any number)", h("input", { type: "number", min: 0, max: 4294967295, required: true, ...field("uses") })),
        scopes.length > 1 ? h("label", null, "Mesh", h("select", { value: my.scope, onchange: (event) => { my.scope = event.target.value; } }, h("option", { value: "" }, "the first"), scopes.map((scope) => h("option", { key: scope.id, value: scope.id }, scope.name)))) : null,
        scopes.length ? null : h("label", null, "Name of the new mesh", h("input", { maxlength: 64, ...field("name") })),
        h("label", { class: "inline" }, h("input", { type: "checkbox", checked: my.canInvite, onchange: (event) => { my.canInvite = event.target.checked; } }), "may invite others")),
      h("div", { class: "row end" }, h("button", { class: "main", type: "submit", disabled: my.busy }, "Make the invite"))));
}

function join(page) {
  const submit = (event) => {
    event.preventDefault();
    act(page, async () => {
      my.joined = await post("/api/join", { token: my.token.trim() });
      my.token = "";
    });
  };
  return h("section", { class: "card", key: "join" }, h("h2", null, "Join a mesh"),
    h("form", { onsubmit: submit },
      h("label", null, "Token or qmt:// link of an invite", h("textarea", { value: my.token, required: true, spellcheck: "false", autocomplete: "off", oninput: (event) => { my.token = event.target.value; } })),
      h("div", { class: "row end" }, h("button", { type: "submit", disabled: my.busy }, "Join"))));
}

function made(page) {
  const { made } = my;
  const copy = async () => {
    await navigator.clipboard.writeText(`qmt-cli join ${made.token}`);
    my.copied = true;
    page.draw();
  };
  return h("section", { class: "card", key: "made" }, h("h2", null, `An invite to ${made.scope_name}`),
    h("p", null, "Whoever has this text can join: give it to nobody else. It is shown once."),
    h("div", { class: "row" },
      my.qr ? h("img", { class: "qr", alt: "QR code of the invite", src: `data:image/svg+xml,${encodeURIComponent(my.qr)}` }) : null,
      h("div", { class: "grow" },
        h("p", null, "On the other machine:"), h("pre", { id: "invite-command" }, `qmt-cli join ${made.token}`),
        h("div", { class: "row" }, h("button", { onclick: copy }, my.copied ? "Copied" : "Copy"), h("button", { onclick: () => { my.made = null; page.draw(); } }, "Hide it")),
        h("p", { class: "soft small" }, `Ends ${made.expires_at ? until(made.expires_at) : "never"}; ${made.max_uses || "any number of"} use${made.max_uses === 1 ? "" : "s"}.`),
        made.recovery_key_file ? h("div", { class: "notice" }, `The mesh's recovery key was made: move ${made.recovery_key_file} to a safe place.`) : null)));
}

const standing = (invite) =>
  invite.revoked ? "revoked" : invite.expires_at && invite.expires_at * 1000 < Date.now() ? "ended" : invite.max_uses && invite.uses >= invite.max_uses ? "used up" : "pending";

function list(page) {
  const names = new Map([...state.nodes.values()].map((node) => [node.id, node.name]));
  const revoke = (invite) => confirm("Revoke this invite? Nobody can join by it any more, and who joined by it loses the membership.") && act(page, () => post("/api/revoke", { subject: invite.id, scope: invite.scope }));
  return h("section", { class: "card", key: "list" }, h("h2", null, `Invites of this node (${my.all.length})`),
    my.all.length
      ? h("div", { class: "scroll" }, h("table", null,
          h("thead", null, h("tr", null, ["Mesh", "State", "Role", "Uses", "Used by", "Made", "Ends", ""].map((name) => h("th", { scope: "col" }, name)))),
          h("tbody", null, my.all.map((invite) => h("tr", { key: invite.id },
            h("td", null, invite.scope_name, h("br"), h("span", { class: "soft small mono" }, invite.id.slice(0, 13))),
            h("td", null, pill(standing(invite) === "pending" ? "ok" : "soft", standing(invite))),
            h("td", null, invite.role, invite.can_invite ? ", may invite" : ""),
            h("td", { class: "number" }, `${invite.uses} / ${invite.max_uses || "∞"}`),
            h("td", null, (invite.holders ?? []).map((id) => names.get(id) ?? id.slice(0, 10)).join(", ")),
            h("td", { title: day(invite.created_at) }, ago(invite.created_at)),
            h("td", null, invite.expires_at ? until(invite.expires_at) : "never"),
            h("td", null, page.mayChange && standing(invite) !== "revoked" ? h("button", { class: "danger small", onclick: () => revoke(invite) }, "Revoke") : null))))))
      : empty("None yet. An invite is a text that lets one machine join; make one above."));
}

export default { title: "Invites", view, enter: read, again: read };
