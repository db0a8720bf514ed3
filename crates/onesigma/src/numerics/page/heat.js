// The heat map: one table for each model, ops down, layers across.

const GROUPS = [
  ["weights", "Weights", (t) => t.pass === "weights"],
  ["forward", "Forward: activations", (t) => t.pass === "forward"],
  ["backward", "Backward: gradients of activations", (t) => t.pass === "backward" && t.role !== "weight-grad"],
  ["gradients", "Backward: gradients of weights", (t) => t.role === "weight-grad"],
  ["update", "Update: moments and new weights", (t) => t.pass === "update"],
];
/** Where colours end: beyond 2^±16 no 16-bit format helps. */
const LIMIT = 16;

/** A colour for log2 sigma: blue below one, orange above. */
function shade(value) {
  const part = Math.min(1, Math.abs(value) / LIMIT) ** 0.6;
  const end = value < 0 ? "var(--cold)" : "var(--hot)";
  return { color: `color-mix(in oklab, ${end} ${Math.round(100 * part)}%, var(--mid))`, strong: part > 0.55 };
}

function heatLegend() {
  const steps = [-16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16];
  el("heat-legend").replaceChildren(...steps.map((value) => {
    const { color, strong } = shade(value);
    return node("span", { style: `background:${color}${strong ? ";color:var(--strong)" : ""}` }, String(value).replace("-", "−"));
  }));
}

/** Rows of a group: tensors by place, in the order of the step, with one cell for each layer. */
function heatRows(of, belongs) {
  const rows = new Map();
  of.tensors.forEach((tensor, index) => {
    if (!belongs(tensor)) return;
    const name = place(tensor);
    let key = `${tensor.role} ${name} ${tensor.op}`;
    const column = tensor.layer ?? "all";
    while (rows.get(key)?.cells.has(column)) key += "'";
    if (!rows.has(key)) rows.set(key, { name, cells: new Map() });
    rows.get(key).cells.set(column, index);
  });
  return [...rows.values()];
}

function heatCell(of, which, index, span) {
  const tensor = of.tensors[index];
  const n = numbers(tensor);
  const chosen = which === state.model && index === state.tensor;
  const attributes = {
    class: "cell", role: "gridcell", colspan: span > 1 ? span : null, tabindex: chosen ? 0 : -1, "aria-selected": chosen,
    "data-model": which, "data-tensor": index,
  };
  let text = "–";
  if (n && n.not_finite > 0) { attributes.class += " broken"; text = "∞"; }
  else if (n && n.sigma > 0) {
    const value = Math.log2(n.sigma);
    const { color, strong } = shade(value);
    attributes.style = `background:${color}`;
    if (strong) attributes.class += " strong";
    text = (Math.abs(value) < 0.05 ? "0" : value.toFixed(Math.abs(value) < 9.95 ? 1 : 0)).replace("-", "−");
  } else if (n) { attributes.class += " zero"; text = n.rms > 0 ? "const" : "0"; }
  attributes["aria-label"] = `${tensor.role} ${tensor.name}: ${n && n.sigma > 0 ? `log2 sigma ${text}` : text}`;
  return node("td", attributes, text);
}

function heatTable(of, which) {
  const layers = 1 + Math.max(-1, ...of.tensors.map((tensor) => tensor.layer ?? -1));
  const columns = Math.max(1, layers);
  const head = node("tr", {}, node("td"), ...Array.from({ length: columns }, (_, layer) => node("th", { scope: "col" }, String(layer))));
  const body = node("tbody");
  for (const [, title, belongs] of GROUPS) {
    const rows = heatRows(of, belongs);
    if (!rows.length) continue;
    body.append(node("tr", { class: "group" }, node("th", { scope: "rowgroup", colspan: columns + 1 }, title)));
    for (const { name, cells } of rows) {
      const row = node("tr", {}, node("th", { scope: "row", title: name }, name));
      if (cells.has("all")) row.append(heatCell(of, which, cells.get("all"), columns));
      else for (let layer = 0; layer < columns; layer++) {
        row.append(cells.has(layer) ? heatCell(of, which, cells.get(layer), 1) : node("td"));
      }
      body.append(row);
    }
  }
  const table = node("table", { class: `heat${columns > 16 ? " dense" : ""}`, role: "grid", "aria-label": `log2 sigma of ${of.name}` },
    node("caption", {}, of.name), node("thead", {}, head), body);
  return node("div", { class: "heat-scroll" }, table);
}

function drawHeat() {
  el("heat").replaceChildren(heatTable(model(), state.model));
}

/** Arrow keys go from cell to cell. */
function moveInHeat(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const cell = event.target.closest(".cell");
  if (!step || !cell) return;
  event.preventDefault();
  const rows = [...cell.closest("table").querySelectorAll("tr")].map((row) => [...row.querySelectorAll(".cell")]).filter((cells) => cells.length);
  const at = rows.findIndex((cells) => cells.includes(cell));
  const next = step[0]
    ? rows[at + step[0]]?.[Math.min(rows[at].indexOf(cell), (rows[at + step[0]]?.length ?? 1) - 1)]
    : rows[at][rows[at].indexOf(cell) + step[1]];
  if (next) choose(Number(next.dataset.tensor), true);
}
