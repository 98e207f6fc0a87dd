"""The sites of a model as buttons, a row for each layer: a placement to be clicked instead of written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import ipywidgets as W

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.placement import Level
from llm_adapters_lab.core.sites import Site

Cell = tuple[int, str]
"""Layer, and column: a term of the placement language without layers, such as ``q`` or ``mlp.in``."""


def column(site: Site) -> str:
    """Return the column of a site."""
    return site.role + (".in" if site.side == "in" else "")


def columns(anatomy: Anatomy, level: Level) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the columns most placements of a level use, and the others that a model has."""
    roles = list(dict.fromkeys(s.role for s in anatomy.projections))
    whole = list(dict.fromkeys(s.role for s in anatomy.sublayers)) if level == "sublayer" else []
    rest = [*(roles if whole else []), *dict.fromkeys(column(s) for s in anatomy.entries), *(f"{r}.in" for r in roles)]
    return tuple(whole or roles), tuple(rest)


def cells(anatomy: Anatomy) -> set[Cell]:
    """Return every cell that there is something in."""
    own = {(s.layer, s.role) for s in (*anatomy.projections, *anatomy.sublayers)}
    inner = {(s.layer, f"{s.role}.in") for s in (*anatomy.projections, *anatomy.entries)}
    return own | inner


def spell(chosen: Collection[Cell], anatomy: Anatomy) -> str:
    """Return the placement that means these cells; columns with the same layers share them, as in ``q,v@8-15``."""
    there, terms = cells(anatomy), dict[str, list[str]]()
    every = dict.fromkeys(name for level in ("sublayer", "projection") for name in _all(anatomy, level))
    for name in every:
        layers = sorted(layer for layer, other in chosen if other == name)
        if layers:
            full = len(layers) == sum(other == name for _, other in there)
            terms.setdefault("" if full else f"@{_ranges(layers)}", []).append(name)
    return "+".join(",".join(names) + layers for layers, names in terms.items())


def _all(anatomy: Anatomy, level: Any) -> tuple[str, ...]:
    main, rest = columns(anatomy, level)
    return main + rest


def _ranges(layers: list[int]) -> str:
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


class Grid:
    """Buttons for the sites of a model.

    Attributes:
        widget: what is shown.
        buttons: by layer and column.
        headers: by column name, by layer number as text, and "all" for the corner: each chooses its whole line, or
            clears it if all of it is chosen.
        chosen: the cells that are on.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        """Make an empty grid; `changed` is called after every click."""
        self.widget = W.Box(layout=W.Layout(max_height="420px", width="100%", overflow="auto"))
        self.buttons: dict[Cell, Any] = {}
        self.headers: dict[str, Any] = {}
        self.chosen: set[Cell] = set()
        self._changed, self._quiet = changed, False
        self._drawn: tuple[Any, ...] = ()
        self._of: tuple[Any, ...] = ()
        self._used: set[str] = set()

    def show(self, anatomy: Anatomy, level: Level, sites: Iterable[Site], *, everything: bool = False) -> None:
        """Draw the sites of a model with those of a placement switched on.

        Args:
            anatomy: of the model.
            level: of the adapter: what `attn` and `mlp` mean.
            sites: that are on.
            everything: show the rarer columns too, even where none of them is used.
        """
        chosen = {(s.layer, column(s)) for s in sites} & cells(anatomy)
        main, rest = columns(anatomy, level)
        if (anatomy, level) != self._of:
            self._of, self._used = (anatomy, level), set()
        self._used |= {name for _, name in chosen}  # a column does not vanish under the hand that clears it
        names = (*main, *(name for name in rest if everything or name in self._used))
        wanted: tuple[Any, ...] = (anatomy, names)
        if wanted != self._drawn:
            self._draw(anatomy, names)
            self._drawn = wanted
        self._set(chosen)

    def clear(self) -> None:
        """Show nothing."""
        self._replace()
        self._drawn = ()
        self.buttons, self.headers, self.chosen = {}, {}, set()

    def _draw(self, anatomy: Anatomy, names: tuple[str, ...]) -> None:
        slot, there = W.Layout(width="auto", margin="1px", padding="0"), cells(anatomy)
        self.buttons, self.headers = {}, {}
        line: list[Any] = [self._header("all", slot, set(there), "every site shown")]
        line += [self._header(n, slot, {c for c in there if c[1] == n}, f"{n} in every layer") for n in names]
        widths: dict[Cell, str] = {(s.layer, s.role): f"{s.path}, {s.d_in} → {s.d_out}" for s in anatomy.projections}
        for layer in range(len(anatomy.layers)):
            cells_here = {c for c in there if c[0] == layer}
            line.append(self._header(str(layer), slot, cells_here, f"every site of layer {layer} that is shown"))
            for name in names:
                if (layer, name) not in there:
                    line.append(W.Label("", layout=slot))
                    continue
                place = widths.get((layer, name), f"{name} of layer {layer}")
                button = W.ToggleButton(description=name, tooltip=place, layout=slot)
                button.observe(self._clicked, "value")
                self.buttons[layer, name] = button
                line.append(button)
        sizes = f"minmax(28px, 56px) repeat({len(names)}, minmax(40px, 92px))"
        self._replace(W.GridBox(line, layout=W.Layout(grid_template_columns=sizes)))

    def _replace(self, *boxes: Any) -> None:
        """Show other boxes, and drop the buttons of those before: a page holds every widget that is not closed."""
        before, self.widget.children = self.widget.children, boxes
        for widget in (w for box in before for w in (*box.children, box)):
            widget.close()

    def _header(self, name: str, slot: Any, line: set[Cell], tip: str) -> Any:
        button = W.Button(description=name, tooltip=tip, layout=slot, style={"font_weight": "bold"})

        def clicked(_: Any) -> None:
            shown = line & set(self.buttons)
            self._set(self.chosen - shown if shown <= self.chosen else self.chosen | shown)
            self._changed()

        button.on_click(clicked)
        self.headers[name] = button
        return button

    def _set(self, chosen: set[Cell]) -> None:
        self._quiet, self.chosen = True, chosen
        try:
            for cell, button in self.buttons.items():
                _light(button, cell in chosen)
        finally:
            self._quiet = False

    def _clicked(self, change: Any) -> None:
        if self._quiet:
            return
        self.chosen = {cell for cell, button in self.buttons.items() if button.value}
        for button in self.buttons.values():
            _light(button, button.value)
        self._changed()


def _light(button: Any, on: bool) -> None:
    button.value, button.button_style = on, "primary" if on else ""
