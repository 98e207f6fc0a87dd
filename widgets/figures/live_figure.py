"""Live figure: a plotly figure that is drawn anew in place, as often as it changes.

Plotly's own figure widget was tried first. It tells a page its data once, which gets lost when the page is slow or
reloaded, and every new figure sends all of plotly again. Here the whole figure is one synced value: a page that opens
later has it too.
"""

from __future__ import annotations

import anywidget
import traitlets
from plotly.offline import get_plotlyjs


class LiveFigure(anywidget.AnyWidget):
    """Shows `figure`, a plotly figure as plain data; {} shows nothing.

    Plotly's source is a value like the figure, not a part of the module: a module must be there within two seconds.
    """

    _esm = """
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
      };
      model.on("change:figure", draw);
      // A tab that was hidden has no width before it is shown.
      const seen = new ResizeObserver(() => place.offsetWidth && place.data && window.Plotly.Plots.resize(place));
      seen.observe(el);
      draw();
      return () => { model.off("change:figure", draw); seen.disconnect(); };
    }
    export default { render };
    """
    source = traitlets.Unicode(get_plotlyjs()).tag(sync=True)
    figure = traitlets.Dict().tag(sync=True)
