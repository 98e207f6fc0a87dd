"""Figures as outputs: plain figures shown through `Output.outputs`, which survive where figure widgets do not.

A figure widget carries five megabytes of its own into a saved notebook and loses its points when a page is reloaded.
"""

from __future__ import annotations

import json
from html import unescape
from typing import Any

from llm_adapters_lab.plots import CONFIG


def picture(figure: Any) -> dict[str, Any]:
    """Return a plotly figure as the output of a cell, for `Output.outputs`."""
    words = f"figure: {unescape(figure.layout.title.text or '')}"
    data = {"application/vnd.plotly.v1+json": json.loads(figure.to_json()) | {"config": CONFIG}, "text/plain": words}
    return {"output_type": "display_data", "data": data, "metadata": {}}
