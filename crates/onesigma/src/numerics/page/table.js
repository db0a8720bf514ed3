// The table of tensors, sorted by any column.

/** Key, title, whether it is a number, value to sort by, cell. */
const COLUMNS = [
  ["risk", "Risk", true, (r) => r.risk, (r) => [node("span", { class: "meter", "aria-hidden": "true" }, node("i", { class: level(r.risk), style: `width:${Math.max(2, 100 * meter(r.risk))}%` })), share(r.risk)]],
  ["name", "Tensor", false, (r) => r.tensor.name, (r) => node("button", { type: "button" }, r.tensor.name)],
  ["role", "Role", false, (r) => r.tensor.role, (r) => r.tensor.role],
  ["layer", "Layer", true, (r) => r.tensor.layer ?? -1, (r) => r.tensor.layer ?? "–"],
  ["format", "Format", false, (r) => r.format, (r) => r.format],
  ["sigma", "σ", true, (r) => r.n.sigma, (r) => number(r.n.sigma)],
  ["predicted", "σ predicted", true, (r) => r.tensor.predicted?.sigma ?? -1, (r) => number(r.tensor.predicted?.sigma)],
  ["max", "Largest", true, (r) => r.n.max_abs ?? -1, (r) => number(r.n.max_abs)],
  ["underflow", "Flushed", true, (r) => r.loss.underflow, (r) => share(r.loss.underflow)],
  ["overflow", "Clipped", true, (r) => r.loss.overflow, (r) => share(r.loss.overflow)],
  ["subnormal", "Subnormal", true, (r) => r.loss.subnormal, (r) => share(r.loss.subnormal)],
  ["snr", "SNR", true, (r) => -(r.loss.snr_db ?? 1e9), (r) => decibels(r.loss.snr_db)],
];

/** Risks span many orders of magnitude: 1e-6 to 1. */
const meter = (x) => (x > 0 ? Math.max(0, 1 + Math.log10(x) / 6) : 0);

function rows() {
  const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
  const list = model().tensors.flatMap((tensor, index) => {
    const n = numbers(tensor);
    if (!n || (state.pass && tensor.pass !== state.pass)) return [];
    const text = `${tensor.name} ${tensor.role} ${tensor.op} ${tensor.pass} ${tensor.format}`.toLowerCase();
    if (!words.every((word) => text.includes(word))) return [];
    const loss = losses(n);
    return [{ index, tensor, n, loss, risk: risk(loss), format: state.format === "own" ? tensor.format : state.format }];
  });
  const [, , , value] = COLUMNS.find(([key]) => key === state.sort) ?? COLUMNS[0];
  const sign = state.dir === "asc" ? 1 : -1;
  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  // Equal values stay in the order of the step.
  return list.sort((a, b) => sign * compare(value(a), value(b)) || a.index - b.index);
}

function sortBy(key, isNumber) {
  const dir = state.sort === key ? (state.dir === "desc" ? "asc" : "desc") : isNumber ? "desc" : "asc";
  set({ sort: key, dir });
  document.querySelector(`#table th[data-key="${key}"] button`)?.focus();
}

function drawTable() {
  const list = rows();
  const head = node("tr", {}, ...COLUMNS.map(([key, title, isNumber]) => node("th", {
    scope: "col", class: isNumber ? "n" : null, "data-key": key,
    "aria-sort": state.sort === key ? (state.dir === "desc" ? "descending" : "ascending") : null,
  }, node("button", { type: "button", onclick: () => sortBy(key, isNumber) }, title))));
  const body = list.slice(0, state.rows).map((row) => node("tr", { "data-tensor": row.index, "aria-selected": row.index === state.tensor },
    ...COLUMNS.map(([key, , isNumber, , cell]) => node("td", { class: key === "name" ? "name" : isNumber ? "n" : null, title: key === "name" ? row.tensor.name : null }, cell(row)))));
  el("table").replaceChildren(
    node("caption", { class: "hidden" }, `Tensors of ${model().name}, sorted by ${state.sort}`),
    node("thead", {}, head), node("tbody", {}, ...body));
  el("table-count").textContent = `${list.length} of ${model().tensors.length}`;
  el("more").hidden = list.length <= state.rows;
  el("more").textContent = `Show all ${list.length}`;
}
