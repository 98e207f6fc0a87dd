function load(source) {
  const place = () => URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  return window.labPlotly ??= import(place()).then(() => window.Plotly);
}
const make = (tag, css, text) => {
  const made = document.createElement(tag);
  if (css) made.className = css;
  if (text !== undefined) made.textContent = text;
  return made;
};
const INK = "#76808c", GRID = "rgba(128,136,144,0.25)", CLEAR = "rgba(0,0,0,0)";
const SMALL = [
  ["validation", "validation loss", ".4~g"], ["learning_rate", "learning rate", ".2e"], ["gradient_norm", "gradient norm", ".3~g"],
  ["speed", "tokens/s", ",.0f"], ["distance", "‖θ − θ₀‖", ".3~g"], ["memory", "memory (GB)", ".3~g"],
];
const XS = { step: "step", tokens: "tokens", seconds: "time (s)" };
const RAW = 6, FEW = 200;
const escape = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

const isDark = () => document.body.dataset.jpThemeLight === "false";
// Colours are chosen for both themes, but thin lines need more light on black.
function lit(color) {
  const parts = /^#(..)(..)(..)$/.exec(color);
  return isDark() && parts ? `rgb(${parts.slice(1).map((part) => Math.round(255 - 0.72 * (255 - parseInt(part, 16)))).join()})` : color;
}
function smoothed(values, half) {
  const sums = [0];
  for (const value of values) sums.push(sums.at(-1) + value);
  return values.map((_, i) => {
    const h = Math.min(half, i, values.length - 1 - i);
    return (sums[i + h + 1] - sums[i - h]) / (2 * h + 1);
  });
}
// The value of a column at a step that may lie between two points.
function at(series, name, step) {
  if (name === "step" || !series.step.length) return step;
  const steps = series.step, values = series[name];
  let i = steps.findIndex((known) => known >= step);
  if (i < 0) i = steps.length - 1;
  const [a, b] = i ? [steps[i - 1], steps[i]] : [0, steps[0]], [u, v] = i ? [values[i - 1], values[i]] : [0, values[0]];
  return b === a ? v : u + ((step - a) / (b - a)) * (v - u);
}
function planned(series, x) {
  const last = series.step.length - 1;
  if (last < 0 || !series.planned) return x === "step" ? series.planned : 0;
  return (series[x][last] / series.step[last]) * series.planned;
}
const thin = (values, most) => {
  const every = Math.max(1, Math.ceil(values.length / most));
  return values.filter((_, i) => i % every === 0 || i === values.length - 1);
};

function render({ model, el }) {
  const root = make("div", "lab-curves"), bar = make("div", "lab-curvebar"), place = make("div", "lab-curveplot"), others = make("div", "lab-curveplot"), empty = make("div", "lab-empty");
  const log = make("button", "lab-seg", "log y"), xs = make("div", "lab-segs"), label = make("label", "", "smoothing "), slider = make("input"), width = make("span", "lab-num lab-muted");
  const reset = make("button", "lab-seg", "⟲ reset"), save = make("button", "lab-seg", "PNG");
  root.dataset.lmSuppressShortcuts = "true";
  for (const each of [log, reset, save]) each.type = "button";
  log.title = "Logarithmic axis for losses";
  reset.title = "Show the whole training (or double-click the plot)";
  save.title = "Download the figure";
  xs.setAttribute("role", "group");
  xs.setAttribute("aria-label", "horizontal axis");
  slider.type = "range"; slider.min = 0; slider.max = 100;
  slider.setAttribute("aria-label", "smoothing of the train loss");
  label.append(slider);
  for (const [name, text] of Object.entries({ step: "step", tokens: "tokens", seconds: "time" })) {
    const button = make("button", "lab-seg", text);
    button.type = "button";
    button.dataset.x = name;
    button.addEventListener("click", () => set({ x: name }));
    xs.append(button);
  }
  bar.append(log, xs, label, width, make("span", "lab-grow"), reset, save);
  root.append(bar, place, others, empty);
  el.append(root);
  requestAnimationFrame(() => { if (!el.closest(".lab")) el.classList.add("lab"); });  // on its own, in the page by then

  let zooms = 0, marked = null, waits = 0, listens = false, fresh = true;
  const set = (change) => {
    model.set("options", { ...model.get("options"), ...change });
    model.save_changes();
  };
  log.addEventListener("click", () => set({ log: !model.get("options").log }));
  slider.addEventListener("input", () => set({ smooth: Number(slider.value) }));
  reset.addEventListener("click", () => { zooms++; fresh = true; draw(); });
  save.addEventListener("click", () => window.Plotly?.downloadImage(place, { format: "png", scale: 2, filename: "curves" }));

  function inputs() {
    const all = { ...model.get("settled"), ...model.get("live") }, { x } = model.get("options");
    const runs = model.get("looks").filter((look) => all[look.id]).map((look) => ({ ...look, color: lit(look.color) }));
    const end = Math.max(0, ...runs.map((look) => planned(all[look.id], x)));
    return { all, runs, end, axis: { gridcolor: GRID, zeroline: false, linecolor: GRID, tickfont: { size: 12 } }, range: end ? { range: [0, end * 1.01], autorange: false } : {} };
  }
  const hover = (look, unit, format) => `<b>${escape(look.name)}</b><br>${XS[model.get("options").x]} %{x:,.6~g}<br>${unit} %{y:${format}}<extra></extra>`;
  const layout = (height, margin, runs, more) => ({
    height, margin, width: root.clientWidth, showlegend: false, hovermode: "closest", dragmode: "zoom", hoverlabel: { align: "left" }, paper_bgcolor: CLEAR, plot_bgcolor: CLEAR,
    font: { family: "system-ui, -apple-system, Segoe UI, sans-serif", size: 12, color: INK },
    uirevision: [model.get("options").x, model.get("options").log, zooms, runs.map((look) => look.id).join()].join("|"), annotations: [], shapes: [], ...more,
  });

  function losses({ all, runs, end, axis, range }) {
    const { x, log: logged, smooth } = model.get("options"), height = model.get("heights")[root.clientWidth > 900 ? 1 : 0];
    const data = [];
    let window_ = 0;
    for (const look of runs) {
      const own = all[look.id], half = Math.round((smooth / 100) ** 2 * own.mean.length / 3), line = { color: look.color };
      const trace = (points, more) => data.push({ type: "scatter", mode: "lines", meta: look.id, ...points, ...more });
      window_ = Math.max(window_, half * (own.step.length > 1 ? own.step[1] - own.step[0] : 1));
      if (runs.length <= RAW && half) trace({ x: own[x], y: own.loss }, { line: { ...line, width: 1 }, opacity: 0.3, hoverinfo: "skip" });
      trace({ x: own[x], y: smoothed(own.mean, half) }, { line: { ...line, width: 2 }, hovertemplate: hover(look, "loss", ".4~g") });
      const held = runs.length > RAW ? own.validation.slice(-1) : own.validation, marker = { color: look.color, size: 8, symbol: "diamond", line: { width: 1, color: "#fff" } };
      if (held.length) trace({ x: held.map(([step]) => at(own, x, step)), y: held.map(([, loss]) => loss) }, { mode: "markers", marker, hovertemplate: hover(look, "validation loss", ".4~g") });
    }
    const made = layout(height, { l: 44, r: 12, t: 20, b: 40 }, runs, {
      xaxis: { ...axis, ...range, showgrid: false, title: { text: XS[x], font: { size: 12 }, standoff: 4 } },
      yaxis: { ...axis, type: logged ? "log" : "linear", rangemode: logged ? "normal" : "tozero", nticks: 6 },
    });
    made.annotations.push({ text: "loss (nats per label)", x: 0, y: 1, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 12 } });
    const values = data.flatMap((each) => each.y).filter((value) => value > 0), wide = Math.max(...values) / Math.min(...values);
    if (logged && wide > 1 && wide < 1000) made.yaxis.dtick = "D2";
    if (end) {
      made.shapes.push({ type: "line", x0: end, x1: end, y0: 0, y1: 1, xref: "x", yref: "paper", line: { color: INK, width: 1, dash: "dot" } });
      const words = x === "step" ? `planned end ${Math.round(end).toLocaleString("en-US")}` : "planned end";
      made.annotations.push({ text: words, x: end, y: 1, xref: "x", yref: "paper", xanchor: "right", yanchor: "bottom", showarrow: false, font: { size: 11 } });
    }
    return { data, layout: made, window: window_ };
  }

  function multiples({ all, runs, axis, range }) {
    const { x, log: logged } = model.get("options"), wide = root.clientWidth > 900, columns = wide ? 6 : 3, rows = SMALL.length / columns;
    const small = wide ? 90 : 62, head = 26, height = rows * (head + small) + 6, left_ = 44, right_ = 12, across = root.clientWidth - left_ - right_;
    const y = (pixels) => 1 - pixels / (height - 6), gap = 44, each = (across + gap) / columns, most = runs.length > RAW ? FEW / 3 : FEW;
    const data = [], made = layout(height, { l: left_, r: right_, t: 0, b: 6 }, runs, {});
    SMALL.forEach(([name, unit, format], i) => {
      const n = i ? i + 1 : "", column = i % columns, row = Math.floor(i / columns), left = (column * each) / across, right = left + (each - gap) / across;
      const upper = row * (head + small) + head - 4, domain = [y(upper + small), y(upper)], logs = logged && name === "validation";
      made[`xaxis${n}`] = { ...axis, domain: [left, right], anchor: `y${n}`, ...(i ? { matches: "x" } : range), showgrid: false, showticklabels: false, nticks: 4 };
      made[`yaxis${n}`] = { ...axis, domain, anchor: `x${n}`, nticks: 3, tickfont: { size: 11 }, exponentformat: name === "learning_rate" ? "e" : "SI", type: logs ? "log" : "linear", rangemode: logs ? "normal" : "tozero" };
      const text = { xref: "paper", yref: "paper", showarrow: false, font: { size: 12 } };
      made.annotations.push({ ...text, text: unit, x: left, y: domain[1], xanchor: "left", yanchor: "bottom" });
      const before = data.length;
      for (const look of runs) {
        const own = all[look.id], values = own[name], pairs = Array.isArray(values?.[0]);
        if (!values?.length) continue;
        const points = pairs ? thin(values, most) : null;
        data.push({
          type: "scatter", meta: look.id, xaxis: `x${n}`, yaxis: `y${n}`, line: { color: look.color, width: 1.5 }, marker: { size: 4, color: look.color }, hovertemplate: hover(look, unit, format),
          mode: pairs && points.length < 30 && runs.length <= RAW ? "lines+markers" : pairs && points.length === 1 ? "markers" : "lines",
          x: pairs ? points.map(([step]) => at(own, x, step)) : thin(own[x], most), y: pairs ? points.map(([, value]) => value) : thin(values, most),
        });
      }
      if (data.length === before) made.annotations.push({ ...text, text: "–", x: (left + right) / 2, y: (domain[0] + domain[1]) / 2 });
    });
    return { data, layout: made };
  }

  function mark(id) {
    marked = id = model.get("looks").some((look) => look.id === id) ? id : null;  // it may be deselected meanwhile
    for (const each of root.querySelectorAll(".scatterlayer .trace")) {
      const { meta: own, opacity = 1 } = each.__data__?.[0]?.trace ?? {};
      each.style.opacity = id && own !== undefined && own !== id ? 0.12 : opacity;
    }
  }
  const config = { displayModeBar: false, responsive: false, doubleClick: "reset", showTips: false };
  async function draw() {
    const options = model.get("options"), given = inputs(), main = losses(given), wide = root.clientWidth > 900;
    log.setAttribute("aria-pressed", String(options.log));
    for (const button of xs.children) button.setAttribute("aria-pressed", String(button.dataset.x === options.x));
    if (document.activeElement !== slider) slider.value = options.smooth;
    width.textContent = main.window ? `± ${main.window.toLocaleString("en-US")}` : "off";
    const below = wide ? 122 : 182, total = main.layout.height + below;
    empty.style.height = `${total}px`;
    place.style.height = `${main.layout.height}px`;
    others.style.height = `${below}px`;
    empty.textContent = model.get("words");
    empty.hidden = main.data.length > 0;
    place.hidden = others.hidden = !main.data.length;
    if (!root.clientWidth || !main.data.length) return;
    const mine = ++waits, plotly = await load(model.get("source"));
    if (mine !== waits) return;
    await plotly.react(place, main.data, main.layout, config);
    if (fresh) {
      fresh = false;
      const shown = place.layout.xaxis.range, small = multiples({ ...given, range: shown ? { range: [...shown], autorange: false } : {} });
      await plotly.react(others, small.data, small.layout, config);
    }
    mark(marked);
    if (listens) return;
    listens = true;
    for (const each of [place, others]) {
      each.on("plotly_hover", (event) => mark(event.points[0]?.data.meta));
      each.on("plotly_unhover", () => mark(null));
    }
    // A zoom of one is a zoom of both.
    const follow = (from, to) => from.on("plotly_relayout", () => {
      const range = from.layout.xaxis.range, other = to.layout.xaxis.range;
      if (range && other && (range[0] !== other[0] || range[1] !== other[1])) plotly.relayout(to, { "xaxis.range": [...range] });
    });
    follow(place, others);
    follow(others, place);
  }
  const names = ["settled", "live", "looks", "options", "words", "heights"].map((name) => `change:${name}`);
  let asked = false, axes = "";
  const soon = () => { if (!asked) { asked = true; requestAnimationFrame(() => { asked = false; draw(); }); } };
  const changed = () => { fresh = true; soon(); };
  const chosen = () => {  // smoothing changes the losses only
    const { x, log: logged } = model.get("options");
    fresh ||= axes !== (axes = `${x}|${logged}`);
    soon();
  };
  for (const name of names) model.on(name, name === "change:options" ? chosen : changed);
  const heard = (event) => mark(event.detail);
  window.addEventListener("lab-hover", heard);
  let before = 0;
  const seen = new ResizeObserver(() => {
    if (root.clientWidth === before) return;
    before = root.clientWidth;
    if (before) { fresh = true; draw(); }
  });
  seen.observe(root);
  const theme = new MutationObserver(changed);
  theme.observe(document.body, { attributeFilter: ["data-jp-theme-light"] });
  draw();
  return () => { for (const name of names) model.off(name, name === "change:options" ? chosen : changed); window.removeEventListener("lab-hover", heard); seen.disconnect(); theme.disconnect(); };
}
export default { render };
