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
const thin = (values) => {
  const every = Math.max(1, Math.ceil(values.length / FEW));
  return values.filter((_, i) => i % every === 0 || i === values.length - 1);
};

function render({ model, el }) {
  const root = make("div", "lab-curves"), bar = make("div", "lab-curvebar"), place = make("div", "lab-curveplot"), empty = make("div", "lab-empty");
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
  root.append(bar, place, empty);
  el.append(root);

  let zooms = 0, marked = null, waits = 0, listens = false;
  const set = (change) => {
    model.set("options", { ...model.get("options"), ...change });
    model.save_changes();
  };
  log.addEventListener("click", () => set({ log: !model.get("options").log }));
  slider.addEventListener("input", () => set({ smooth: Number(slider.value) }));
  reset.addEventListener("click", () => { zooms++; draw(); });
  save.addEventListener("click", () => window.Plotly?.downloadImage(place, { format: "png", scale: 2, filename: "curves" }));

  function figure() {
    const { x, log: logged, smooth } = model.get("options"), all = { ...model.get("settled"), ...model.get("live") };
    const runs = model.get("looks").filter((look) => all[look.id]).map((look) => ({ ...look, color: lit(look.color) }));
    const wide = root.clientWidth > 900, columns = wide ? 6 : 3, rows = SMALL.length / columns;
    const main = model.get("heights")[wide ? 1 : 0], small = wide ? 90 : 62, head = 26, left_ = 48, right_ = 12, top = 8, bottom = 10, lowest = 40;
    const height = top + main + rows * (head + small) + bottom, inner = height - top - bottom, across = root.clientWidth - left_ - right_;
    const y = (pixels) => 1 - (pixels - top) / inner, gap = 44, wide_ = (across + gap) / columns;
    const data = [], half = (n) => Math.round((smooth / 100) ** 2 * n / 3);
    let window_ = 0;
    const trace = (look, points, more) => data.push({ type: "scatter", mode: "lines", meta: look.id, showlegend: false, ...points, ...more });
    const hover = (look, unit, format, place = x) => `<b>${escape(look.name)}</b><br>${XS[place]} %{x:,.6~g}<br>${unit} %{y:${format}}<extra></extra>`;
    for (const look of runs) {
      const own = all[look.id], h = half(own.mean.length), line = { color: look.color };
      const bucket = own.step.length > 1 ? own.step[1] - own.step[0] : 1;
      window_ = Math.max(window_, h * bucket);
      if (runs.length <= RAW && h) trace(look, { x: own[x], y: own.loss }, { line: { ...line, width: 1 }, opacity: 0.3, hoverinfo: "skip" });
      trace(look, { x: own[x], y: smoothed(own.mean, h) }, { line: { ...line, width: 2 }, hovertemplate: hover(look, "loss", ".4~g") });
      const held = own.validation, spots = { x: held.map(([step]) => at(own, x, step)), y: held.map(([, loss]) => loss) };
      if (held.length) trace(look, spots, { mode: "markers", marker: { color: look.color, size: 8, symbol: "diamond", line: { width: 1, color: "#fff" } }, hovertemplate: hover(look, "validation loss", ".4~g") });
      SMALL.forEach(([name, unit, format], i) => {
        const axes = { xaxis: `x${i + 2}`, yaxis: `y${i + 2}` }, look_ = { line: { ...line, width: 1.5 }, hovertemplate: hover(look, unit, format) };
        if (own[name]?.length && Array.isArray(own[name][0])) {
          const points = thin(own[name]);
          trace(look, { x: points.map(([step]) => at(own, x, step)), y: points.map(([, value]) => value) },
            { ...axes, ...look_, mode: points.length < 30 ? "lines+markers" : "lines", marker: { size: 4, color: look.color } });
        } else if (own[name]?.length) trace(look, { x: thin(own[x]), y: thin(own[name]) }, { ...axes, ...look_ });
      });
    }
    const ends = runs.map((look) => planned(all[look.id], x)), end = Math.max(0, ...ends);
    const axis = { gridcolor: GRID, zeroline: false, linecolor: GRID, automargin: false, tickfont: { size: 12 }, fixedrange: false };
    const range = end ? { range: [0, end * 1.01], autorange: false } : {};
    const title = (text, at_, y_) => ({ text, x: at_, y: y_, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 12 } });
    const layout = {
      height, width: root.clientWidth, margin: { l: left_, r: right_, t: top, b: bottom }, showlegend: false, hovermode: "closest", dragmode: "zoom",
      font: { family: "system-ui, -apple-system, Segoe UI, sans-serif", size: 12, color: INK }, paper_bgcolor: CLEAR, plot_bgcolor: CLEAR,
      uirevision: [x, logged, zooms, runs.map((look) => look.id).join()].join("|"), hoverlabel: { align: "left" },
      xaxis: { ...axis, ...range, showgrid: false, anchor: "y", title: { text: XS[x], font: { size: 12 }, standoff: 4 } },
      yaxis: { ...axis, domain: [y(top + main - lowest), 1], anchor: "x", type: logged ? "log" : "linear", rangemode: logged ? "normal" : "tozero", title: { text: "loss (nats per label)", font: { size: 12 }, standoff: 6 }, nticks: 6 },
      annotations: [], shapes: [],
    };
    SMALL.forEach(([name, text], i) => {
      const column = i % columns, row = Math.floor(i / columns), left = (column * wide_) / across, right = left + (wide_ - gap) / across;
      const upper = top + main + row * (head + small) + head - 4, domain = [y(upper + small), y(upper)];
      layout[`xaxis${i + 2}`] = { ...axis, ...range, domain: [left, right], anchor: `y${i + 2}`, matches: "x", showgrid: false, showticklabels: false, nticks: 4 };
      layout[`yaxis${i + 2}`] = { ...axis, domain, anchor: `x${i + 2}`, nticks: 3, tickfont: { size: 11 }, exponentformat: name === "learning_rate" ? "e" : "SI",
        type: logged && name === "validation" ? "log" : "linear", rangemode: logged && name === "validation" ? "normal" : "tozero" };
      layout.annotations.push(title(text, left, domain[1] + 1 / inner));
      if (!data.some((each) => each.yaxis === `y${i + 2}`))
        layout.annotations.push({ text: "–", x: (left + right) / 2, y: (domain[0] + domain[1]) / 2, xref: "paper", yref: "paper", showarrow: false, font: { size: 12 } });
    });
    if (end && runs.some((look) => all[look.id].live || ends.length)) {
      layout.shapes.push({ type: "line", x0: end, x1: end, y0: layout.yaxis.domain[0], y1: 1, xref: "x", yref: "paper", line: { color: INK, width: 1, dash: "dot" } });
      const words = x === "step" ? `planned end ${Math.round(end).toLocaleString("en-US")}` : "planned end";
      layout.annotations.push({ text: words, x: end, y: 1, xref: "x", yref: "paper", xanchor: "right", yanchor: "top", showarrow: false, font: { size: 11 } });
    }
    return { data, layout, height, count: data.length, window: window_ };
  }
  function mark(id) {
    marked = id;
    for (const each of place.querySelectorAll(".scatterlayer .trace")) {
      const own = each.__data__?.[0]?.trace?.meta;
      each.style.opacity = id && own !== undefined && own !== id ? 0.12 : "";
    }
  }
  async function draw() {
    const options = model.get("options"), { data, layout, height, count, window: window_ } = figure();
    log.setAttribute("aria-pressed", String(options.log));
    for (const button of xs.children) button.setAttribute("aria-pressed", String(button.dataset.x === options.x));
    if (document.activeElement !== slider) slider.value = options.smooth;
    width.textContent = window_ ? `± ${window_.toLocaleString("en-US")}` : "off";
    place.style.height = empty.style.height = `${height}px`;
    empty.textContent = model.get("words");
    empty.hidden = count > 0;
    place.hidden = !count;
    if (!root.clientWidth || !count) return;
    const mine = ++waits, plotly = await load(model.get("source"));
    if (mine !== waits) return;
    await plotly.react(place, data, layout, { displayModeBar: false, responsive: false, doubleClick: "reset" });
    mark(marked);
    if (listens) return;
    listens = true;
    place.on("plotly_hover", (event) => mark(event.points[0]?.data.meta));
    place.on("plotly_unhover", () => mark(null));
  }
  const names = ["settled", "live", "looks", "options", "words", "heights"].map((name) => `change:${name}`);
  let asked = false;
  const soon = () => { if (!asked) { asked = true; requestAnimationFrame(() => { asked = false; draw(); }); } };
  for (const name of names) model.on(name, soon);
  const heard = (event) => mark(model.get("looks").some((look) => look.id === event.detail) ? event.detail : null);
  window.addEventListener("lab-hover", heard);
  let before = 0;
  const seen = new ResizeObserver(() => {
    if (root.clientWidth === before) return;
    before = root.clientWidth;
    if (before) draw();
  });
  seen.observe(root);
  const theme = new MutationObserver(soon);
  theme.observe(document.body, { attributeFilter: ["data-jp-theme-light"] });
  draw();
  return () => { for (const name of names) model.off(name, soon); window.removeEventListener("lab-hover", heard); seen.disconnect(); theme.disconnect(); };
}
export default { render };
