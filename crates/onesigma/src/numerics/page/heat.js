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

/** Groups that are folded. */
const folded = new Set(["update"]);

/** What a tensor's row is known by, and its column: a layer, or all of them. */
function heatKeys(of, belongs) {
  const seen = new Set();
  return of.tensors.flatMap((tensor, index) => {
    if (!belongs(tensor)) return [];
    const column = tensor.layer ?? "all";
    let key = `${tensor.role} ${place(tensor)}`;
    while (seen.has(`${key} ${column}`)) key += "'";
    seen.add(`${key} ${column}`);
    return [{ key, column, index, name: place(tensor) }];
  });
}

/** Rows of a group over all models, each model's in the order of its step. */
function heatRows(belongs) {
  const rows = [];
  const known = new Map();
  report.models.forEach((of, which) => {
    let after = -1;
    for (const { key, column, index, name } of heatKeys(of, belongs)) {
      if (!known.has(key)) {
        const row = { name, cells: report.models.map(() => new Map()) };
        known.set(key, row);
        rows.splice(after + 1, 0, row);
      }
      const row = known.get(key);
      after = Math.max(after, rows.indexOf(row));
      row.cells[which].set(column, index);
    }
  });
  return rows;
}

function heatCell(of, which, index, span) {
  const tensor = of.tensors[index];
  const n = numbers(tensor, at(of));
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
  const title = `${of.name}: ${tensor.role} ${tensor.name}, ${n && n.sigma > 0 ? `log2 sigma ${text}` : text}`;
  return node("td", { ...attributes, title, "aria-label": title }, text);
}

/** Columns of a model: one for each layer. */
const layers = (of) => Math.max(1, 1 + Math.max(-1, ...of.tensors.map((tensor) => tensor.layer ?? -1)));

function drawHeat() {
  const widths = report.models.map(layers);
  const total = widths.reduce((a, b) => a + b, 0) + widths.length - 1;
  const gap = () => node("td", { class: "gap" });
  const between = (cells) => cells.flatMap((part, which) => (which ? [gap(), ...part] : part));
  const names = node("tr", {}, node("td"), ...between(report.models.map((of, which) => [
    node("th", { scope: "colgroup", colspan: widths[which], class: which === state.model ? "chosen" : null }, of.name)])));
  const numbersRow = node("tr", {}, node("td"), ...between(widths.map((width) =>
    Array.from({ length: width }, (_, layer) => node("th", { scope: "col" }, String(layer))))));
  const body = node("tbody");
  for (const [group, title, belongs] of GROUPS) {
    const rows = heatRows(belongs);
    if (!rows.length) continue;
    const toggle = () => { folded.has(group) ? folded.delete(group) : folded.add(group); drawHeat(); };
    body.append(node("tr", { class: "group" }, node("th", { scope: "rowgroup", colspan: total + 1 },
      node("button", { type: "button", "aria-expanded": !folded.has(group), onclick: toggle }, `${title} (${rows.length})`))));
    if (folded.has(group)) continue;
    for (const { name, cells } of rows) {
      body.append(node("tr", {}, node("th", { scope: "row", title: name }, name), ...between(cells.map((own, which) => {
        const of = report.models[which];
        if (own.has("all")) return [heatCell(of, which, own.get("all"), widths[which])];
        return Array.from({ length: widths[which] }, (_, layer) => (own.has(layer) ? heatCell(of, which, own.get(layer), 1) : node("td")));
      }))));
    }
  }
  const table = node("table", { class: `heat${total > 30 ? " dense" : ""}`, role: "grid", "aria-labelledby": "heat-title" },
    node("thead", {}, names, numbersRow), body);
  el("heat").replaceChildren(node("div", { class: "heat-scroll" }, table));
}

/** Arrow keys go from cell to cell. */
function moveInHeat(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const cell = event.target.closest(".cell");
  if (!step || !cell) return;
  event.preventDefault();
  const rows = [...cell.closest("table").querySelectorAll("tr")].map((row) => [...row.querySelectorAll(".cell")]).filter((cells) => cells.length);
  const row = rows.findIndex((cells) => cells.includes(cell));
  const column = rows[row].indexOf(cell);
  const near = (cells) => {
    const middle = (one) => one.getBoundingClientRect().left + one.getBoundingClientRect().width / 2;
    return cells.reduce((best, one) => (Math.abs(middle(one) - middle(cell)) < Math.abs(middle(best) - middle(cell)) ? one : best));
  };
  const next = step[0] ? rows[row + step[0]] && near(rows[row + step[0]]) : rows[row][column + step[1]];
  if (next) choose(next, true);
}
