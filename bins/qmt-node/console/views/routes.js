// Where requests go, and why; whose models the agents ask, and the change of it.

import { h } from "../dom.js";
import { get, post } from "../api.js";
import { people } from "../state.js";
import { empty, ms, pill, trouble } from "../words.js";

const EVERY = 5000;
const my = { routes: [], agents: [], error: null, timer: null };

async function read(page) {
  clearTimeout(my.timer);
  try {
    [my.routes, my.agents] = await Promise.all([get("/api/routes"), get("/api/routes/agents")]);
    my.error = null;
  } catch (error) {
    my.error = error;
  }
  my.timer = setTimeout(() => read(page), EVERY);
  page.draw();
}

async function set(page, agent, to) {
  try {
    await post("/api/routes/agents", { agent, to: to || undefined });
    await read(page);
  } catch (error) {
    my.error = error;
    page.draw();
  }
}

const table = (names, rows) => h("div", { class: "scroll" }, h("table", null, h("thead", null, h("tr", null, names.map((name) => h("th", { scope: "col" }, name)))), h("tbody", null, rows)));

function view(page) {
  const others = people().filter((node) => node.state !== "self");
  return [
    trouble(my.error),
    h("section", { class: "card", key: "models" }, h("h2", null, "Models"),
      my.routes.length
        ? table(["Model", "Rank", "Where", "Link", "State", "Why"], my.routes.map((route) => h("tr", { key: `${route.model} ${route.rank}` },
            h("td", null, route.model), h("td", { class: "number" }, route.rank + 1),
            h("td", null, route.target.type === "local" ? "this node" : route.target.name || route.target.node),
            h("td", null, route.target.type === "local" ? "" : [pill(route.path), ` ${ms(route.rtt_ms)}`]), h("td", null, pill(route.state)), h("td", { class: "soft" }, route.why))))
        : empty("No model is served in the mesh, so there is no route.")),
    h("section", { class: "card", key: "agents" }, h("h2", null, "Agents of this node"),
      my.agents.length
        ? table(["Agent", "Model", "Asks", "Change"], my.agents.map((route) => h("tr", { key: route.agent },
            h("td", null, route.agent), h("td", null, route.model), h("td", null, route.to, route.set ? " (set at runtime)" : ""),
            h("td", null, page.mayChange ? h("select", { "aria-label": `Route of ${route.agent}`, value: route.set ? route.to : "", onchange: (event) => set(page, route.agent, event.target.value) },
              h("option", { value: "" }, "as configured"), h("option", { value: "local" }, "this node only"), h("option", { value: "any" }, "any node"),
              others.map((node) => h("option", { key: node.id, value: node.name }, `only ${node.name}`))) : null))))
        : empty("This node hosts no agent.")),
  ];
}

export default { title: "Routes", view, enter: read, again: read, leave: () => clearTimeout(my.timer) };
