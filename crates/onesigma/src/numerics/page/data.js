// The report, the state of the page, and small helpers.

const report = JSON.parse(document.getElementById("data").textContent);
const PASSES = ["weights", "forward", "backward", "update"];

/** What the page shows; kept in the address, so that a view can be linked. */
const state = {
  model: 0, at: 0, format: "own", tensor: 0, sort: "risk", dir: "desc", filter: "", pass: "", rows: 40, theme: "auto",
};
const DEFAULTS = { ...state };

const el = (id) => document.getElementById(id);
const model = () => report.models[state.model];

/** An element with attributes and children; text children are text. */
function node(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "path", "line", "text", "circle", "title", "defs", "pattern", "polygon"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-") && value != null) made.setAttribute(name, String(value));
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child != null));
  return made;
}

/** The chosen moment, or the last one that a model has. */
const at = (of) => (state.at === "predicted" || !of.snapshots.length ? "predicted" : Math.min(state.at, of.snapshots.length - 1));

/** Numbers of a tensor at the chosen moment; the expected ones where nothing was measured. */
function numbers(tensor, moment = at(model())) {
  return (moment === "predicted" ? tensor.predicted : tensor.measured[moment]) ?? tensor.predicted ?? null;
}

/** Losses in the chosen format. */
function losses(n) {
  const index = report.formats.findIndex((format) => format.name === state.format);
  return index < 0 ? n.own : n.formats[index];
}

/** The larger share of what is lost: elements flushed or clipped, or energy of the noise. */
function risk(loss) {
  const noise = loss.snr_db == null ? 0 : 10 ** (-loss.snr_db / 10);
  return Math.min(1, Math.max(loss.underflow + loss.overflow, noise));
}

/** `layers.0.mlp.up` and `grad(layers.0.mlp.up)` both stand at `mlp.up`. */
function place(tensor) {
  return tensor.name
    .replace(/^cast\((.*)\)$/, "$1 cast")
    .replace(/^grad\((.*)\)/, "$1")
    .replace(/\b(transformer\.)?(layers|layer|h)\.\d+\./, "");
}

function number(x) {
  if (x == null) return "–";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e4 || size < 1e-3) return x.toExponential(2).replace("e+", "e").replace("-", "−").replace("e-", "e−");
  return x.toPrecision(3).replace("-", "−");
}

function share(x) {
  if (x == null) return "–";
  if (x === 0) return "0";
  if (x < 1e-5) return "<0.001 %";
  const percent = 100 * x;
  return `${percent >= 99.995 ? "100" : percent.toPrecision(percent >= 10 ? 3 : 2)} %`;
}

/** A power of two with its exponent raised. */
const power = (exponent) => `2${String(exponent).replace(/./g, (c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]))}`;
const decibels = (x) => (x == null ? "exact" : `${x.toFixed(1)} dB`);
const log2 = (x) => (x > 0 ? Math.log2(x) : null);
const level = (x) => (x > 0.1 ? "bad" : x > 0.01 ? "warn" : "good");

function median(values) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  return sorted.length ? sorted[sorted.length >> 1] : null;
}

/** Measured over predicted root mean square at the start, for every tensor that has both. */
function accuracy(of) {
  if (!of.snapshots.length || of.snapshots[0].step !== 0) return [];
  return of.tensors.flatMap((tensor, index) => {
    const [found, expected] = [tensor.measured[0], tensor.predicted];
    return found && expected && found.rms > 0 && expected.rms > 0
      ? [{ index, tensor, found: found.rms, expected: expected.rms, factor: Math.max(found.rms / expected.rms, expected.rms / found.rms) }]
      : [];
  });
}

/** Text by the pointer. */
function tip(event, title, text) {
  const box = el("tip");
  if (!event) { box.hidden = true; return; }
  box.replaceChildren(node("b", {}, title), text);
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(8, Math.min(innerWidth - width - 8, event.clientX + 14))}px`;
  box.style.top = `${event.clientY + height + 24 > innerHeight ? event.clientY - height - 12 : event.clientY + 16}px`;
}
