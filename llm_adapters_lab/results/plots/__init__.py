"""Plots: runs and tensors in, plotly figures out. No state, and plotly is only imported when a figure is made.

An adapter type has the same colour in every figure; a second run of that colour differs by dash, hatching or symbol.
Figures fit light and dark pages. Shown by `figure.show(config=CONFIG)` or in a report they can be saved as a picture;
`data(figure)` gives the table behind one.
"""

from __future__ import annotations

from typing import Any

from llm_adapters_lab.results.plots.layers import ablation_bars, interpolation_curve, placement, stream_similarity
from llm_adapters_lab.results.plots.runs import accuracy, loss_curve, parameters_against_accuracy
from llm_adapters_lab.results.plots.seed_means import means
from llm_adapters_lab.results.plots.style import data
from llm_adapters_lab.results.plots.tokens import layer_tokens, lens_grid, token_strip
from llm_adapters_lab.results.plots.weights import norm_evolution, norm_heatmap, similarity, site_norms, spectra

CONFIG: dict[str, Any] = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtons": [["toImage"]],
    "toImageButtonOptions": {"format": "svg", "scale": 2},
}
"""For `figure.show` and `figure.write_html`: the camera saves an SVG; format "png" gives a PNG twice as large."""

__all__ = [
    "loss_curve",
    "accuracy",
    "parameters_against_accuracy",
    "means",
    "norm_heatmap",
    "norm_evolution",
    "site_norms",
    "spectra",
    "similarity",
    "placement",
    "token_strip",
    "lens_grid",
    "layer_tokens",
    "ablation_bars",
    "stream_similarity",
    "interpolation_curve",
    "data",
    "CONFIG",
]
