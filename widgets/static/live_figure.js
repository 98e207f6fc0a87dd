function load(source) {
  const place = () => URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  return window.labPlotly ??= import(place()).then(() => window.Plotly);
}
function render({ model, el }) {
  const place = document.createElement("div");
  el.append(place);
  const draw = async () => {
    const plotly = await load(model.get("source"));
    const { data, layout } = model.get("figure");
    place.style.height = data ? layout.height + "px" : "0";
    if (data) plotly.react(place, data, layout, { displaylogo: false, modeBarButtons: [["toImage"]] });
    else plotly.purge(place);
  };
  model.on("change:figure", draw);
  // In a hidden tab the figure has no width.
  const seen = new ResizeObserver(() => place.offsetWidth && place.data && window.Plotly.Plots.resize(place));
  seen.observe(el);
  draw();
  return () => { model.off("change:figure", draw); seen.disconnect(); };
}
export default { render };
