"""The sites of a model as a compact grid, to choose a placement by clicking: columns are roles, rows are layers.

Consecutive layers with the same columns share a row until they are unfolded. Sites of a layer with the same role, such
as its routed experts, are one cell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from itertools import groupby
from typing import Any

import anywidget
import traitlets

from llm_adapters_lab.core import placement
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.placement import Level
from llm_adapters_lab.core.sites import ENCODER, OUTER, Site, ranges
from llm_adapters_lab.errors import BadSpec
from widgets.kit.elements import static
from widgets.kit.panel import Silent

Cell = tuple[int, str]
"""Layer and column. A column is a term of the placement language without layers, such as ``q`` or ``mlp.in``; the token
embedding and the output head are in layer -1."""
Parameters = Callable[[Site], int | None]
"""Returns the number of parameters that an adapter adds at a site; None if it is not known."""
MAX_ROWS = 5
"""Number of folded rows above which layers with the same columns share a row even if they are not consecutive."""


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
    rest += [s.role for s in anatomy.embeddings]
    return tuple(whole or roles), tuple(rest)


def cells(anatomy: Anatomy) -> set[Cell]:
    """Return every cell with a site in it."""
    return {*_sites(anatomy)}


def placement_of(selected: Collection[Cell], anatomy: Anatomy) -> str:
    """Return the placement of these cells; columns with the same layers share a term, as in ``q,v@8-15``."""
    terms = dict[str, list[str]]()
    levels: tuple[Level, Level] = ("sublayer", "projection")
    for name in dict.fromkeys(name for level in levels for part in columns(anatomy, level) for name in part):
        layers = sorted(layer for layer, other in selected if other == name)
        if layers:
            full = name in OUTER or len(layers) == anatomy.depth(name)
            terms.setdefault("" if full else f"@{ranges(layers)}", []).append(name)
    return "+".join(",".join(names) + layers for layers, names in terms.items())


def folded(keys: Mapping[int, Hashable]) -> list[list[int]]:
    """Return the layers of each row: consecutive ones with the same key; all with the same key if that is too many."""
    runs = [list(group) for _, group in groupby(sorted(keys), keys.__getitem__)]
    if len(runs) <= MAX_ROWS:
        return runs
    alike: dict[Hashable, list[int]] = {}
    for layer in sorted(keys):
        alike.setdefault(keys[layer], []).append(layer)
    return [*alike.values()]


def _sites(anatomy: Anatomy) -> dict[Cell, list[Site]]:
    """Return the sites of each cell."""
    found: dict[Cell, list[Site]] = {}
    inner = (replace(s, d_out=s.d_in, side="in") for s in anatomy.projections)
    for site in (*anatomy.projections, *anatomy.sublayers, *anatomy.entries, *inner, *anatomy.embeddings):
        found.setdefault((site.layer, column(site)), []).append(site)
    return found


def _heading(site: Site, whole: bool) -> dict[str, str]:
    """Return the column of a site with its group and its name within the group."""
    name, role = column(site), site.role.removeprefix(ENCODER)
    stack = ENCODER if site.role.startswith(ENCODER) else ""
    if site.role in OUTER:
        group = "outside"
    elif whole:
        group = f"{stack}sublayers"
    else:
        group, role = site.sublayer, role.removeprefix(f"{site.sublayer.removeprefix(ENCODER)}.")
    return {"name": name, "group": f"{group} inputs" if site.side == "in" else group, "short": role}


class PlacementView(anywidget.AnyWidget):
    """What the browser shows of a placement grid; it changes `selected`, `everything` and `layers`.

    Attributes:
        head: name, group and short name of each column.
        rows: the layers of each folded row.
        sites: the layers in which a column has a site, by column.
        selected: the selected layers, by column.
        about: by column, for runs of layers that differ in nothing else: first and last layer, path with ``*`` for the
            layer, d_in, d_out, number of sites, and parameters that the adapter adds, None if unknown.
        more: number of rarer columns.
        everything: whether the rarer columns are shown.
        layers: layers typed by the user, for all selected columns.
        fault: why these layers cannot be selected; "" if they can.
    """

    _esm = static("placement_grid.js")
    _css = static("placement.css")
    head: Any = traitlets.List().tag(sync=True)
    rows: Any = traitlets.List().tag(sync=True)
    sites = traitlets.Dict().tag(sync=True)
    selected = traitlets.Dict().tag(sync=True)
    about = traitlets.Dict().tag(sync=True)
    more = traitlets.Int(0).tag(sync=True)
    everything = traitlets.Bool(False).tag(sync=True)
    layers = traitlets.Unicode("").tag(sync=True)
    fault = traitlets.Unicode("").tag(sync=True)


class PlacementGrid(Silent):
    """A cell for every site of a model.

    Attributes:
        widget: what the browser shows.
        selected: the selected cells.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        """Make an empty grid; `changed` is called after every change by the user."""
        self.widget = PlacementView()
        self.selected: set[Cell] = set()
        self._changed = changed
        self._anatomy: Anatomy | None = None
        self._level: Level = "projection"
        self._sites: dict[Cell, list[Site]] = {}
        self._used: set[str] = set()
        self._everything = False
        self._parameters: Parameters | None = None
        self.widget.observe(self._clicked, "selected")
        self.widget.observe(lambda _: self._draw(), "everything")
        self.widget.observe(self._typed, "layers")

    @property
    def shown(self) -> tuple[str, ...]:
        """The columns that are shown."""
        return tuple(each["name"] for each in self.widget.head)

    def show(
        self,
        anatomy: Anatomy,
        level: Level,
        sites: Iterable[Site],
        *,
        everything: bool = False,
        parameters: Parameters | None = None,
    ) -> None:
        """Draw the sites of a model, with some of them selected.

        Args:
            anatomy: of the model.
            level: of the adapter; decides what `attn` and `mlp` mean.
            sites: the selected ones.
            everything: also show the rarer columns, even if no cell of them is selected.
            parameters: what the adapter adds at a site; shown with the cell under the pointer.
        """
        model = anatomy is not self._anatomy
        if model or level != self._level:
            self._anatomy, self._level, self._used = anatomy, level, set()
            self._sites = _sites(anatomy)
        selected = {(s.layer, column(s)) for s in sites} & {*self._sites}
        again = not model and selected == self.selected
        self._everything, self._parameters, self.selected = everything, parameters, selected
        self._draw(rows=not again)
        if not again:
            with self.silently():
                self.widget.layers = self.widget.fault = ""

    def clear(self) -> None:
        """Show nothing."""
        self._anatomy, self._sites, self.selected = None, {}, set()
        with self.silently(), self.widget.hold_sync():
            self.widget.head, self.widget.rows = [], []
            self.widget.sites, self.widget.selected, self.widget.about = {}, {}, {}

    def _draw(self, *, rows: bool = False, also: Collection[int] = ()) -> None:
        """Send the grid to the browser; with new folded rows if asked or if the columns have changed.

        Args:
            rows: fold the layers anew.
            also: layers that do not share a row with others.
        """
        if self._anatomy is None:
            return
        main, rest = columns(self._anatomy, self._level)
        self._used |= {name for _, name in self.selected}  # a column stays while its last cell is cleared
        everything = self._everything or self.widget.everything
        names = (*main, *(name for name in rest if everything or name in self._used))
        by_name: dict[str, list[int]] = {name: [] for name in names}
        for layer, name in sorted(self._sites):
            if name in by_name:
                by_name[name].append(layer)
        whole = {column(s) for s in (*self._anatomy.sublayers, *self._anatomy.entries)}
        head = [_heading(self._sites[by_name[n][0], n][0], n in whole) for n in names]
        with self.silently(), self.widget.hold_sync():
            if rows or also or by_name != self.widget.sites:
                self.widget.rows = self._rows(by_name, also)
            self.widget.head, self.widget.sites = head, by_name
            self.widget.about = {name: self._about(name, by_name[name]) for name in names}
            self.widget.more = 0 if self._everything else len(rest)
            self._write()

    def _write(self) -> None:
        """Show the selected cells."""
        found: dict[str, list[int]] = {}
        for layer, name in sorted(self.selected):
            found.setdefault(name, []).append(layer)
        self.widget.selected = found

    def _rows(self, by_name: Mapping[str, Collection[int]], also: Collection[int]) -> list[list[int]]:
        """Return the layers of each row, apart where the selection differs, as far as that gives few rows."""
        there = {layer: tuple(n for n, own in by_name.items() if layer in own) for layer, _ in self._sites}
        there = {layer: names for layer, names in there.items() if names}
        apart = {
            layer: (names, layer in also, *(n for n in names if (layer, n) in self.selected))
            for layer, names in there.items()
        }
        rows = folded(apart)
        if len(rows) > MAX_ROWS or any(row[-1] - row[0] >= len(row) for row in rows):
            rows = folded(there)
        return sorted(rows, key=lambda row: row[0] < 0)

    def _about(self, name: str, layers: Collection[int]) -> list[list[Any]]:
        @cache
        def added(like: Site) -> int | None:
            return self._parameters(like) if self._parameters else None

        found: list[list[Any]] = []
        for layer in layers:
            sites = self._sites[layer, name]
            first = sites[0]
            path = re.sub(rf"(?<![^.]){layer}(?=\.)", "*", first.path, count=1)
            counts = [added(replace(site, path="", reader="", layer=0)) for site in sites]
            total = None if None in counts else sum(count or 0 for count in counts)
            alike = [path, first.d_in, first.d_out, len(sites), total]
            if found and found[-1][1] == layer - 1 and found[-1][2:] == alike:
                found[-1][1] = layer
            else:
                found.append([layer, layer, *alike])
        return found

    def _clicked(self, change: Any) -> None:
        if self.quiet:
            return
        self.selected = {(layer, name) for name, layers in change["new"].items() for layer in layers} & {*self._sites}
        self._used |= {name for _, name in self.selected}
        with self.silently():
            self.widget.layers = self.widget.fault = ""
        self._changed()

    def _typed(self, change: Any) -> None:
        """Select the typed layers in every column that has a selected cell, or only split the rows there."""
        if self.quiet or self._anatomy is None:
            return
        text = change["new"].strip()
        names = {name for _, name in self.selected if name not in OUTER}
        try:
            wanted = {layer for n in names or {*self.shown} - {*OUTER} for layer in self._layers(n, text)}
        except BadSpec as error:
            self.widget.fault = str(error)
            return
        self.widget.fault = ""
        kept = {cell for cell in self.selected if cell[1] in OUTER}
        before, self.selected = self.selected, kept | {c for c in self._sites if c[1] in names and c[0] in wanted}
        self._draw(rows=True, also=wanted)
        if self.selected != before:
            self._changed()

    def _layers(self, name: str, text: str) -> set[int]:
        if text in ("", "all"):
            return {layer for layer, other in self._sites if other == name}
        assert self._anatomy is not None
        if not re.fullmatch(r"[-\d, –]+", text):
            raise BadSpec(f"Layers {text!r}: write them as 0-7 or 0,4,-1.")
        found = placement.sites(self._anatomy, f"{name}?@{text.replace('–', '-').replace(' ', '')}", self._level)
        return {site.layer for site in found}
