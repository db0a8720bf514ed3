// Predicted against measured root mean square, every tensor a dot.

function drawScatter() {
  const points = accuracy(model());
  if (!points.length) {
    el("scatter").replaceChildren(node("p", { class: "hint" }, "Nothing was measured before the first step, where the prediction holds."));
    return;
  }
  const all = points.flatMap((p) => [Math.log2(p.expected), Math.log2(p.found)]);
  const low = Math.floor(Math.min(...all) - 1), high = Math.ceil(Math.max(...all) + 1);
  const width = 720, height = 520, left = 54, bottom = 40, top = 10;
  const x = (value) => left + ((value - low) / (high - low)) * (width - left - 10);
  const y = (value) => height - bottom - ((value - low) / (high - low)) * (height - bottom - top);
  const within = points.filter((p) => p.factor <= 1.25).length;
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Measured against predicted root mean square of ${points.length} tensors; ${within} agree within a factor of 1.25` });
  const off = Math.log2(1.25);
  svg.append(node("polygon", { class: "band", points: [[low, low + off], [high - off, high], [high, high], [high, high - off], [low + off, low], [low, low]].map(([a, b]) => `${x(a)},${y(b)}`).join(" ") }));
  const step = Math.max(1, Math.round((high - low) / 10));
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) {
    const text = power(value);
    svg.append(node("line", { class: "axis", x1: x(value), x2: x(value), y1: top, y2: height - bottom }),
      node("line", { class: "axis", x1: left, x2: width - 10, y1: y(value), y2: y(value) }),
      node("text", { x: x(value), y: height - bottom + 16, "text-anchor": "middle" }, text),
      node("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, text));
  }
  svg.append(node("line", { class: "ideal", x1: x(low), y1: y(low), x2: x(high), y2: y(high) }),
    node("text", { x: (width + left) / 2, y: height - 4, "text-anchor": "middle", class: "label" }, "predicted"),
    node("text", { x: 12, y: height / 2, "text-anchor": "middle", class: "label", transform: `rotate(-90 12 ${height / 2})` }, "measured"));
  for (const p of points) {
    svg.append(node("circle", {
      class: `dot${p.index === state.tensor ? " on" : ""}`, r: p.index === state.tensor ? 6 : 4, cx: x(Math.log2(p.expected)), cy: y(Math.log2(p.found)),
      fill: `var(--${p.tensor.pass})`, "data-tensor": p.index,
      onmousemove: (event) => tip(event, `${p.tensor.role} ${p.tensor.name}`, `predicted ${number(p.expected)}, measured ${number(p.found)}: a factor of ${p.factor.toFixed(2)}`),
      onmouseleave: () => tip(null),
    }));
  }
  const colours = PASSES.filter((pass) => points.some((p) => p.tensor.pass === pass));
  el("scatter").replaceChildren(
    node("p", { class: "hint" }, `${within} of ${points.length} tensors within a factor of 1.25 (the band); median factor ${median(points.map((p) => p.factor)).toFixed(3)}.`),
    svg,
    node("ul", { class: "keys" }, ...colours.map((pass) => node("li", {}, node("i", { style: `background:var(--${pass})` }), pass))));
}
