"""Plots: runs and tensors in, plotly figures out. No state, and plotly is only imported when a figure is made.

An adapter type has the same colour in every figure; a second run of that colour differs by dash, hatching or symbol.
Figures fit light and dark pages. Shown by `figure.show(config=CONFIG)` or in a report they can be saved as a picture;
`data(figure)` gives the table behind one.
"""

from __future__ import annotations

from typing import Any

from llm_adapters_lab._lazy import attach

CONFIG: dict[str, Any] = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtons": [["toImage"]],
    "toImageButtonOptions": {"format": "svg", "scale": 2},
}
"""For `figure.show` and `figure.write_html`: the camera saves an SVG; format "png" gives a PNG twice as large."""

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "runs": "accuracy loss_curve parameters_against_accuracy",
        "seed_means": "means",
        "weights": "merged_ranks norm_evolution norm_heatmap similarity site_norms spectra",
        "experts": "expert_loads member_weights member_weights_by_site",
        "group_parts": "group_map group_similarity group_weights",
        "inside": "activity layer_heads unit_tokens",
        "layers": "ablation_bars interpolation_curve placement stream_similarity",
        "tokens": "layer_tokens lens_grid token_strip",
        "token_choice": "tokens_run",
        "benchmark": "benchmark_figures benchmark_tiers parallel_measures pareto_front search_figure search_map",
        "style": "data",
    },
)
__all__ += ["CONFIG"]
