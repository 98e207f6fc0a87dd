"""Plotly figures that change in place.

Plotly's own figure widget sends its data only once, so that a slow or reloaded page misses it, and sends plotly's
source again with every figure. In `LiveFigure`, figure and source are synced traits instead.
"""

from __future__ import annotations

import anywidget
import traitlets
from plotly.offline import get_plotlyjs

from widgets.kit.elements import static

MAX_ROWS = 1000
"""Maximum number of rows of a table."""


class LiveFigure(anywidget.AnyWidget):
    """A plotly figure whose plain data, `figure`, may change at any time; {} shows nothing.

    Plotly's source is a synced trait and not part of the module, because a module must load within two seconds.
    """

    _esm = static("live_figure.js")
    source = traitlets.Unicode(get_plotlyjs()).tag(sync=True)
    figure = traitlets.Dict().tag(sync=True)
