"""The sites of a model as a grid of buttons, one row per layer, to choose a placement by clicking.

Sites of a layer with the same role, such as its routed experts, are one button.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import ipywidgets as W

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.placement import Level
from llm_adapters_lab.core.sites import Site, placement_counts, ranges
from widgets.kit.panel import Silent

Cell = tuple[int, str]
"""Layer and column. A column is a term of the placement language without layers, such as ``q`` or ``mlp.in``."""


def column(site: Site) -> str:
    """Return the column of a site."""
    return site.role + (".in" if site.side == "in" else "")


def columns(anatomy: Anatomy, level: Level) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the usual columns for adapters of a level, and the remaining columns of the model."""
    every = list(dict.fromkeys(s.role for s in anatomy.projections))
    roles = [role for role in every if not role.endswith("router")]
    whole = list(dict.fromkeys(s.role for s in anatomy.sublayers)) if level == "sublayer" else []
    rest = [*(roles if whole else []), *(role for role in every if role not in roles)]
    rest += [*dict.fromkeys(column(s) for s in anatomy.entries), *(f"{r}.in" for r in every)]
    return tuple(whole or roles), tuple(rest)


def cells(anatomy: Anatomy) -> set[Cell]:
    """Return every cell with a site in it."""
    own = {(s.layer, s.role) for s in (*anatomy.projections, *anatomy.sublayers)}
    inner = {(s.layer, f"{s.role}.in") for s in (*anatomy.projections, *anatomy.entries)}
    return own | inner


def placement_of(selected: Collection[Cell], anatomy: Anatomy) -> str:
    """Return the placement of these cells; columns with the same layers share a term, as in ``q,v@8-15``."""
    terms = dict[str, list[str]]()
    levels: tuple[Level, Level] = ("sublayer", "projection")
    for name in dict.fromkeys(name for level in levels for part in columns(anatomy, level) for name in part):
        layers = sorted(layer for layer, other in selected if other == name)
        if layers:
            full = len(layers) == anatomy.depth(name)
            terms.setdefault("" if full else f"@{ranges(layers)}", []).append(name)
    return "+".join(",".join(names) + layers for layers, names in terms.items())


class PlacementGrid(Silent):
    """A toggle button for every site of a model.

    Attributes:
        buttons: by layer and column.
        headers: by column, by layer as text, and "all" for the corner. Each selects its whole row or column, or clears
            it if all of it is selected.
        selected: the selected cells.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        """Make an empty grid; `changed` is called after every click."""
        self.widget = W.Box(layout=W.Layout(max_height="420px", width="100%", overflow="auto"))
        self.buttons: dict[Cell, Any] = {}
        self.headers: dict[str, Any] = {}
        self.selected: set[Cell] = set()
        self._changed = changed
        self._drawn: tuple[Any, ...] = ()
        self._of: tuple[Any, ...] = ()
        self._used: set[str] = set()

    def show(self, anatomy: Anatomy, level: Level, sites: Iterable[Site], *, everything: bool = False) -> None:
        """Draw the sites of a model, with some of them selected.

        Args:
            anatomy: of the model.
            level: of the adapter; decides what `attn` and `mlp` mean.
            sites: the selected ones.
            everything: also show the rarer columns, even if no cell of them is selected.
        """
        selected = {(s.layer, column(s)) for s in sites} & cells(anatomy)
        main, rest = columns(anatomy, level)
        if (anatomy, level) != self._of:
            self._of, self._used = (anatomy, level), set()
        self._used |= {name for _, name in selected}  # a column stays while its last cell is cleared
        names = (*main, *(name for name in rest if everything or name in self._used))
        if (anatomy, names) != self._drawn:
            self._draw(anatomy, names)
            self._drawn = (anatomy, names)
        self._set(selected)

    def clear(self) -> None:
        """Show nothing."""
        self._replace()
        self._drawn = ()
        self.buttons, self.headers, self.selected = {}, {}, set()

    def _draw(self, anatomy: Anatomy, names: tuple[str, ...]) -> None:
        slot, existing = W.Layout(width="auto", margin="1px", padding="0"), cells(anatomy)
        counts = placement_counts(anatomy.projections)
        self.buttons, self.headers = {}, {}
        line = [self._header("all", slot, set(existing), "all shown sites")]
        line += [self._header(n, slot, {c for c in existing if c[1] == n}, f"{n} in every layer") for n in names]
        paths: dict[Cell, str] = {}
        for s in anatomy.projections:
            more = f", and {n - 1} more" if (n := counts[s.role][s.layer]) > 1 else ""
            paths.setdefault((s.layer, s.role), f"{s.path}, {s.d_in} → {s.d_out}{more}")
        for layer in range(1 + max(s.layer for s in anatomy.projections)):
            of_layer = {c for c in existing if c[0] == layer}
            line.append(self._header(str(layer), slot, of_layer, f"all shown sites of layer {layer}"))
            for name in names:
                if (layer, name) not in existing:
                    line.append(W.Label("", layout=slot))
                    continue
                tip = paths.get((layer, name), f"{name} of layer {layer}")
                button = self.buttons[layer, name] = W.ToggleButton(description=name, tooltip=tip, layout=slot)
                button.observe(self._clicked, "value")
                line.append(button)
        widths = " ".join(f"minmax(40px, {max(92, 9 * len(name))}px)" for name in names)
        sizes = f"minmax(28px, 56px) {widths}"
        self._replace(W.GridBox(line, layout=W.Layout(grid_template_columns=sizes)))

    def _replace(self, *boxes: Any) -> None:
        """Show other boxes and close the old buttons: a page keeps every widget that is not closed."""
        before, self.widget.children = self.widget.children, boxes
        for widget in (w for box in before for w in (*box.children, box)):
            widget.close()

    def _header(self, name: str, slot: Any, line: set[Cell], tip: str) -> Any:
        button = self.headers[name] = W.Button(
            description=name, tooltip=tip, layout=slot, style={"font_weight": "bold"}
        )

        def clicked(_: Any) -> None:
            shown = line & set(self.buttons)
            self._set(self.selected - shown if shown <= self.selected else self.selected | shown)
            self._changed()

        button.on_click(clicked)
        return button

    def _set(self, selected: set[Cell]) -> None:
        self.selected = selected
        with self.silently():
            for cell, button in self.buttons.items():
                button.value, button.button_style = cell in selected, "primary" if cell in selected else ""

    def _clicked(self, change: Any) -> None:
        if not self.quiet:
            self._set({cell for cell, button in self.buttons.items() if button.value})
            self._changed()
