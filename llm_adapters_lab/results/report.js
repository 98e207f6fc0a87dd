// Draws the figures that report.py wrote as JSON.
for (const node of document.querySelectorAll("figure.plot")) {
  const {data, layout} = JSON.parse(node.querySelector("script").textContent);
  const save = (format) => ({
    name: format, title: `Save as ${format.toUpperCase()}`, icon: Plotly.Icons[format === "svg" ? "disk" : "camera"],
    click: (plot) => Plotly.downloadImage(plot, {format, scale: 2, filename: layout.title.text}),
  });
  const options = {responsive: true, displaylogo: false, modeBarButtons: [[save("png"), save("svg")]]};
  Plotly.newPlot(node.querySelector("div"), data, layout, options);
}
