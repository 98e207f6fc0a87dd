// Draws the figures that report.py wrote as JSON.
for (const node of document.querySelectorAll("figure.plot")) {
  const {data, layout} = JSON.parse(node.querySelector("script").textContent);
  const options = {responsive: true, displaylogo: false, modeBarButtons: [["toImage"]]};
  Plotly.newPlot(node.querySelector("div"), data, layout, options);
}
