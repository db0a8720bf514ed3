// The chosen tensor: its numbers, its exponents, and the range of every format below them.

const SPAN = { low: -44, high: 20 };

function bins(n) {
  return n ? n.exponents.map((value, index) => [n.first_exponent + index, value]) : [];
}

/** The format that bars are coloured by. */
function chosenFormat(tensor) {
  const name = state.format === "own" ? tensor.format : state.format;
  return report.formats.find((format) => format.name === name) ?? null;
}

/** Whether a binade of a format is flushed, subnormal, normal or clipped. */
function zone(format, exponent) {
  if (!format) return "";
  if (exponent + 1 <= format.log2_min_subnormal - 1 || exponent > format.log2_max) return " lost";
  return exponent < format.log2_min_normal ? " sub" : "";
}

function drawDetail() {
  const tensor = model().tensors[state.tensor];
  const n = tensor && numbers(tensor);
  if (!n) {
    el("detail").replaceChildren(node("p", { class: "hint" }, "Nothing is known of this tensor."));
    return;
  }
  const expected = tensor.predicted;
  const pair = (title, pick, format) => node("div", {},
    node("dt", {}, title),
    node("dd", {}, format(pick(n)), expected && n !== expected && pick(expected) != null ? node("small", {}, `expected ${format(pick(expected))}`) : null));
  const loss = losses(n);
  const lossOf = (pick) => (x) => pick(losses(x));
  el("detail").replaceChildren(
    node("p", { class: "tensor-name" }, tensor.name),
    node("p", { class: "tensor-kind" }, `${tensor.role} of ${tensor.op}, [${tensor.shape.join(", ")}], stored as ${tensor.format}; risk ${share(risk(loss))}`),
    node("dl", { class: "numbers" },
      pair("σ", (x) => x.sigma, number), pair("mean", (x) => x.mean, number), pair("largest", (x) => x.max_abs, number),
      pair("zeros", (x) => x.zeros, share),
      pair("flushed", lossOf((x) => x.underflow), share), pair("clipped", lossOf((x) => x.overflow), share),
      pair("subnormal", lossOf((x) => x.subnormal), share), pair("SNR", lossOf((x) => x.snr_db), decibels)),
    histogram(tensor, n, n === expected ? null : expected),
    node("ul", { class: "keys" },
      node("li", {}, node("i", { style: "background:var(--bar)" }), "normal"),
      node("li", {}, node("i", { style: "background:var(--warn)" }), "subnormal"),
      node("li", {}, node("i", { style: "background:var(--bad)" }), "flushed or clipped"),
      n === expected ? null : node("li", {}, node("i", { class: "line" }), "expected")));
}

function histogram(tensor, n, expected) {
  const all = [...bins(n), ...bins(expected)].filter(([, value]) => value > 0).map(([exponent]) => exponent);
  const low = Math.max(SPAN.low - 20, Math.min(-27, ...all)), high = Math.max(SPAN.high - 3, ...all.map((e) => e + 1));
  const width = 640, left = 64, right = 128, top = 14, plot = 170, row = 21;
  const height = top + plot + 30 + row * report.formats.length;
  const x = (exponent) => left + ((exponent - low) / (high - low)) * (width - left - right);
  const clamp = (exponent) => x(Math.max(low, Math.min(high, exponent)));
  const most = Math.max(0.05, ...bins(n).map(([, value]) => value), ...bins(expected).map(([, value]) => value));
  const y = (value) => top + plot * (1 - value / most);
  const format = chosenFormat(tensor);
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Shares of the elements of ${tensor.name} by exponent, above the range of each format` });
  svg.append(node("defs", {}, node("pattern", { id: "hatch", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    node("rect", { width: 5, height: 5, fill: "var(--sunken)" }), node("rect", { width: 2, height: 5, fill: "var(--warn)" }))));
  for (let exponent = Math.ceil(low / 8) * 8; exponent <= high; exponent += 8) {
    svg.append(node("line", { class: exponent ? "axis" : "one", x1: x(exponent), x2: x(exponent), y1: top, y2: height - 6 }),
      node("text", { x: x(exponent), y: top + plot + 15, "text-anchor": "middle" }, power(exponent)));
  }
  for (const part of [0.5, 1]) {
    svg.append(node("line", { class: "axis", x1: left, x2: width - right, y1: y(most * part), y2: y(most * part) }),
      node("text", { x: left - 6, y: y(most * part) + 4, "text-anchor": "end" }, share(most * part)));
  }
  for (const [exponent, value] of bins(n)) {
    if (!value) continue;
    svg.append(node("rect", { class: `bar${zone(format, exponent)}`, x: clamp(exponent) + 0.5, width: Math.max(1, clamp(exponent + 1) - clamp(exponent) - 1), y: y(value), height: Math.max(0.7, top + plot - y(value)) },
      node("title", {}, `${power(exponent)} to ${power(exponent + 1)}: ${share(value)}`)));
  }
  if (expected) {
    const line = bins(expected).map(([exponent, value], i) => `${i ? "L" : `M${clamp(exponent)},${top + plot}L`}${clamp(exponent)},${y(value)}L${clamp(exponent + 1)},${y(value)}`).join("");
    svg.append(node("path", { class: "curve", d: line }));
  }
  svg.append(node("line", { class: "axis", x1: left, x2: width - right, y1: top + plot, y2: top + plot }));
  report.formats.forEach((candidate, index) => svg.append(strip(candidate, index, n, { clamp, left, width, right, row, y: top + plot + 26 + row * index, chosen: candidate === format })));
  return svg;
}

/** The range of a format: subnormal and normal numbers. */
function strip(format, index, n, at) {
  const loss = n.formats[index];
  const from = at.clamp(format.log2_min_subnormal), normal = at.clamp(format.log2_min_normal), to = at.clamp(format.log2_max);
  const lost = loss.underflow + loss.overflow;
  const text = lost > 0.0005 ? `${share(lost)} lost` : decibels(loss.snr_db);
  return node("g", { class: `strip${at.chosen ? " chosen" : ""}`, onclick: () => set({ format: format.name }) },
    node("title", {}, `${format.name}: subnormal from ${power(format.log2_min_subnormal)}, normal from ${power(format.log2_min_normal)} to ${number(2 ** format.log2_max)}; flushed ${share(loss.underflow)}, clipped ${share(loss.overflow)}, subnormal ${share(loss.subnormal)}, SNR ${decibels(loss.snr_db)}`),
    node("rect", { x: 0, width: at.width, y: at.y - 4, height: at.row, fill: "transparent" }),
    node("text", { x: at.left - 6, y: at.y + 10, "text-anchor": "end" }, format.name),
    node("rect", { class: "subnormal", x: from, width: Math.max(0, normal - from), y: at.y, height: 13, rx: 2 }),
    node("rect", { class: "normal", x: normal, width: Math.max(0, to - normal), y: at.y, height: 13, rx: 2 }),
    node("text", { x: at.width - at.right + 8, y: at.y + 10 }, text));
}
