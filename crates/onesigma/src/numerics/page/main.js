// Cards, controls, and the address.

function cards() {
  el("models").replaceChildren(...report.models.map((of, index) => {
    const last = of.snapshots.length ? of.snapshots.length - 1 : "predicted";
    const alive = of.tensors.map((tensor) => ({ tensor, n: numbers(tensor, last) })).filter(({ n }) => n && n.sigma > 0);
    const flow = alive.filter(({ tensor }) => tensor.pass === "forward" || tensor.pass === "backward");
    const near = flow.filter(({ n }) => n.sigma >= 0.5 && n.sigma <= 2).length / Math.max(1, flow.length);
    const size = ({ tensor }) => tensor.shape.reduce((a, b) => a * b, 1);
    const gradients = alive.filter(({ tensor }) => tensor.pass === "backward");
    const flushed = gradients.reduce((sum, g) => sum + size(g) * g.n.own.underflow, 0) / Math.max(1, gradients.reduce((sum, g) => sum + size(g), 0));
    const worst = Math.max(0, ...alive.map(({ n }) => risk(n.own)));
    const broken = of.tensors.filter((tensor) => (numbers(tensor, last)?.not_finite ?? 0) > 0).length;
    const pairs = accuracy(of);
    const line = (name, value, kind) => [node("dt", {}, name), node("dd", { class: kind }, value)];
    const loss = of.snapshots.findLast?.((snapshot) => snapshot.loss != null);
    return node("button", { type: "button", class: "card", "aria-pressed": index === state.model, onclick: () => set({ model: index, tensor: worstTensor(index) }) },
      node("strong", {}, of.name), node("p", {}, of.summary || of.recipe),
      node("dl", {},
        ...line("parameters", of.parameters.toLocaleString("en")),
        ...line("activations and gradients within 2× of σ = 1", share(near), near > 0.75 ? "good" : near < 0.5 ? "bad" : null),
        ...line("gradient elements flushed", share(flushed), flushed > 0.01 ? "bad" : "good"),
        ...line("largest risk of a tensor", share(worst), level(worst) === "bad" ? "bad" : null),
        ...(broken ? line("tensors with infinities or NaN", String(broken), "bad") : []),
        ...(pairs.length ? line("predicted within 1.25×", `${pairs.filter((p) => p.factor <= 1.25).length} of ${pairs.length}`) : []),
        ...(loss ? line(`loss before step ${loss.step}`, `${loss.loss.toFixed(3)} nats`) : [])));
  }));
}

/** The tensor at highest risk, to start with. */
function worstTensor(index) {
  const of = report.models[index];
  const at = of.snapshots.length ? Math.min(state.at === "predicted" ? 0 : state.at, of.snapshots.length - 1) : "predicted";
  let [best, most] = [0, -1];
  of.tensors.forEach((tensor, i) => {
    const n = numbers(tensor, at);
    if (n && n.rms > 0 && risk(n.own) > most) [best, most] = [i, risk(n.own)];
  });
  return best;
}

function controls() {
  const times = model().snapshots.map((snapshot, index) => [String(index), snapshot.step === 0 ? "measured at the start" : `measured before step ${snapshot.step}`]);
  times.push(["predicted", "predicted at the start"]);
  el("when").replaceChildren(...times.map(([value, text]) => node("option", { value, selected: value === String(state.at) }, text)));
  const formats = [["own", "as the recipe stores it"], ...report.formats.map((format) => [format.name, `all in ${format.name}`])];
  el("format").replaceChildren(...formats.map(([value, text]) => node("option", { value, selected: value === state.format }, text)));
  const measured = state.at !== "predicted";
  el("explained").textContent = `Tensors as they are before they are rounded, ${measured ? "in a real step on a real batch" : "as mean-field theory expects them before anything runs"}.`;
  el("filter").value = state.filter;
  el("pass").value = state.pass;
  for (const input of document.querySelectorAll("#theme input")) input.checked = input.value === state.theme;
}

function draw() {
  if (state.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = state.theme;
  cards(); controls(); drawHeat(); drawDetail(); drawTable(); drawScatter();
}

/** Changes the state, the address and the page. */
function set(change) {
  Object.assign(state, change);
  normalise();
  const words = Object.entries(state).filter(([key, value]) => value !== DEFAULTS[key]).map(([key, value]) => `${key}=${encodeURIComponent(value)}`);
  history.replaceState(null, "", words.length ? `#${words.join("&")}` : location.pathname + location.search);
  draw();
}

/** Chooses what a cell, row or dot stands for. */
function choose(chosen, focus = false) {
  const { model: which = state.model, tensor } = chosen.dataset;
  set({ model: Number(which), tensor: Number(tensor) });
  if (focus) document.querySelector(`.cell[data-model="${which}"][data-tensor="${tensor}"]`)?.focus({ preventScroll: true });
}

/** Keeps what came from an address within what there is. */
function normalise() {
  const inside = (value, count) => Math.max(0, Math.min(count - 1, Math.trunc(Number(value)) || 0));
  state.model = inside(state.model, report.models.length);
  state.tensor = inside(state.tensor, model().tensors.length);
  const count = model().snapshots.length;
  state.at = state.at === "predicted" || !count ? "predicted" : inside(state.at, count);
  if (state.format !== "own" && !report.formats.some((format) => format.name === state.format)) state.format = "own";
  if (!COLUMNS.some(([key]) => key === state.sort)) state.sort = "risk";
  if (!["asc", "desc"].includes(state.dir)) state.dir = "desc";
  if (!["auto", "light", "dark"].includes(state.theme)) state.theme = "auto";
  state.rows = Number(state.rows) || DEFAULTS.rows;
}

/** Takes the state from the address: `#tensor=12&sort=sigma&dir=asc&format=E4M3&theme=dark`. */
function fromAddress() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const known = Object.fromEntries(Object.entries(given).filter(([key]) => key in DEFAULTS));
  Object.assign(state, DEFAULTS, known);
  normalise();
  if (!("tensor" in known)) state.tensor = worstTensor(state.model);
  draw();
}

function start() {
  heatLegend();
  el("footer").textContent = `Made by ${report.producer}. Risk, shares and the assumptions of the prediction are explained in the chapter “Numerics” of the book.`;
  el("when").addEventListener("change", (event) => set({ at: event.target.value === "predicted" ? "predicted" : Number(event.target.value) }));
  el("format").addEventListener("change", (event) => set({ format: event.target.value }));
  el("pass").addEventListener("change", (event) => set({ pass: event.target.value }));
  el("filter").addEventListener("input", (event) => set({ filter: event.target.value }));
  el("theme").addEventListener("change", (event) => set({ theme: event.target.value }));
  el("more").addEventListener("click", () => set({ rows: 1e6 }));
  el("heat").addEventListener("keydown", moveInHeat);
  for (const id of ["heat", "table", "scatter"]) {
    el(id).addEventListener("click", (event) => {
      const chosen = event.target.closest("[data-tensor]");
      if (chosen) choose(chosen, id === "heat");
    });
  }
  addEventListener("hashchange", fromAddress);
  fromAddress();
}

if (report.models.length) start();
else el("models").replaceChildren(node("p", { class: "panel" }, "This report holds no model."));
