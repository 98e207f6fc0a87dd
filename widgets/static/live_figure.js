function load(source) {
  const place = () => URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  return window.labPlotly ??= import(place()).then(() => window.Plotly);
}
// Figures in one .lab-linked box whose layout.meta.link is the same show their labels together: at the same token of a
// text ("token"), or at the same site ("site"). Points of a strip are tokens; cells have x and y.
const LINKED = "lab-linked-hover";
function spot(place, point) {
  return place.layout.meta.points ? { x: point.pointNumber } : { x: point.x, y: point.y };
}
function follow(plotly, place, { x, y }) {
  if (place.layout.meta.points) {
    if (Number.isInteger(x) && x < place.data[0].y.length) plotly.Fx.hover(place, [{ curveNumber: 0, pointNumber: x }], "xy", true);
    return;
  }
  const { xaxis, yaxis } = place._fullLayout, to = (axis, value) => axis.d2c(value);
  const at = { xval: to(xaxis, x), yval: y === undefined ? 0 : to(yaxis, y) };
  if (Number.isFinite(at.xval) && Number.isFinite(at.yval)) plotly.Fx.hover(place, at, "xy", true);
}
function render({ model, el }) {
  const place = document.createElement("div");
  el.append(place);
  const tell = (detail) => document.dispatchEvent(new CustomEvent(LINKED, { detail: { from: place, ...detail } }));
  const hear = ({ detail }) => {
    const box = place.closest(".lab-linked"), link = place.layout?.meta?.link;
    if (!link || !box || detail.from === place || detail.link !== link || !box.contains(detail.from)) return;
    if (detail.spot) follow(window.Plotly, place, detail.spot);
    else window.Plotly.Fx.unhover(place);
  };
  let listens = false, drawn = "";
  const draw = async () => {
    const plotly = await load(model.get("source"));
    const { data, layout } = model.get("figure");
    place.style.height = data ? layout.height + "px" : "0";
    const buttons = [["zoom2d", "pan2d", "resetScale2d", "toImage"]];
    if (!data) return void plotly.purge(place), listens = false, drawn = "";
    // In place, unless it is another kind of figure: of that, `react` would keep margins.
    const kind = JSON.stringify([data.map((trace) => trace.type), layout.margin, Object.keys(layout).filter((key) => /axis/.test(key))]);
    const options = { displaylogo: false, modeBarButtons: buttons };
    if (kind === drawn) await plotly.react(place, data, layout, options);
    else await plotly.newPlot(place, data, layout, options), listens = false;
    drawn = kind;
    if (listens) return;
    listens = true;
    place.on("plotly_hover", ({ points }) => {
      const link = place.layout.meta?.link;
      if (link && points.length) tell({ link, spot: spot(place, points[0]) });
    });
    place.on("plotly_unhover", () => tell({ link: place.layout.meta?.link }));
  };
  model.on("change:figure", draw);
  document.addEventListener(LINKED, hear);
  // In a hidden tab the figure has no width.
  const seen = new ResizeObserver(() => place.offsetWidth && place.data && window.Plotly.Plots.resize(place));
  seen.observe(el);
  draw();
  return () => { model.off("change:figure", draw); document.removeEventListener(LINKED, hear); seen.disconnect(); };
}
export default { render };
