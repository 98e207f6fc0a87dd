"""The commands that tell what the lab has to offer: adapters, presets, bases, tasks, and the sites of a model."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.tree import Tree

from llm_adapters_lab.cli.console import cell, console, print_json, say, show_rows

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from llm_adapters_lab.core.anatomy import Anatomy
    from llm_adapters_lab.core.registry import Entry
    from llm_adapters_lab.core.sites import Site
    from llm_adapters_lab.runs.presets import Preset

Json = Annotated[bool, typer.Option("--json", help="Print JSON on one line instead of tables.")]
WHOLE = "the whole model"
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def adapters(
    name: Annotated[str | None, typer.Argument(help="Show the fields of this one, adapter or preset.")] = None,
    as_json: Json = False,
) -> None:
    """List the adapters and their presets, or the fields of one."""
    from llm_adapters_lab.core.registry import all_adapters, get_adapter
    from llm_adapters_lab.runs.presets import adapter_presets, expand

    known, named = all_adapters(), adapter_presets()
    if name:
        given = expand({"type": name})
        entry = get_adapter(given["type"])
        facts = _facts(entry, None if name in known else named[name])
        fields = [_field_row(key, field, given) for key, field in entry.config.model_fields.items()]
        if as_json:
            print_json({**facts, "fields": fields})
        else:
            _show_adapter(facts, fields)
        return
    own = [_facts(entry) for entry in known.values()]
    presets = [_facts(get_adapter(preset.fields["type"]), preset) for preset in named.values()]
    if as_json:
        print_json(own + presets)
        return
    columns = {"name": "name", "idea": "idea", "usual placement": "at", "source": "source"}
    show_rows([{column: row[fact] or WHOLE for column, fact in columns.items()} for row in own])
    say("Presets, which stand in a spec wherever the type of an adapter does:")
    show_rows([{"name": row["name"], "expands to": _inline(row["expands_to"])} for row in presets])


def presets(
    name: Annotated[str | None, typer.Argument(help="Print this one, to be saved and changed.")] = None,
    as_json: Json = False,
) -> None:
    """List the specs that come with the lab and run by name, or print one."""
    from llm_adapters_lab.runs.presets import get_spec_preset, spec_presets

    chosen = [get_spec_preset(name)] if name else spec_presets().values()
    rows = [{"name": preset.name, "idea": preset.idea, "source": preset.source} for preset in chosen]
    if as_json:
        print_json({**rows[0], "fields": get_spec_preset(name).fields} if name else rows)
    elif name:
        say(get_spec_preset(name).text.rstrip())
    else:
        show_rows(rows)


def models(as_json: Json = False) -> None:
    """List the packaged bases and the tiny random families."""
    from llm_adapters_lab.models.loading import PACKAGED
    from llm_adapters_lab.models.random_models import TINY

    if as_json:
        print_json({"packaged": PACKAGED, "tiny": [f"tiny:{family}" for family in TINY]})
        return
    show_rows([{"base": name, "what it is": text} for name, text in PACKAGED.items()])
    say("Random models for tests, to be inspected: " + ", ".join(f"tiny:{family}" for family in TINY))
    say("Also: a hub id (owner/name), a local folder, or a .gguf file.")


def tasks(as_json: Json = False) -> None:
    """List the tasks: what is asked, which splits there are, what an answer is."""
    from llm_adapters_lab.tasks.registry import all_tasks

    rows = [
        {
            "name": task.name,
            "summary": task.summary,
            "splits": ", ".join(task.splits),
            "answer": task.extra.get("answer") or " | ".join(task.labels) or "number",
            "source": task.source,
        }
        for task in all_tasks().values()
    ]
    if as_json:
        print_json(rows)
    else:
        show_rows([{k: v for k, v in row.items() if k != "source"} for row in rows])
        say("Also: own:FILE?answer=COLUMN&form=number for any .json, .jsonl, .csv or .parquet file or hub id.")


def anatomy(
    model: Annotated[str, typer.Argument(help="A base, as in a spec; its weights are not loaded.")],
    at: Annotated[str | None, typer.Option(help="Mark what a placement selects, e.g. q,v or mlp@0-3.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Read the placement as this adapter or preset; default: every projection.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw the sites of a model."""
    from llm_adapters_lab.core import placement
    from llm_adapters_lab.core.anatomy import Anatomy
    from llm_adapters_lab.core.registry import get_adapter
    from llm_adapters_lab.models.loading import skeleton
    from llm_adapters_lab.runs.presets import expand

    given = expand({"type": adapter}) if adapter else {}
    entry = get_adapter(given["type"]) if adapter else None
    if at := at or given.get("at") or (entry.at if entry else None):
        placement.parse(at)
    found = Anatomy.of(skeleton(model))
    chosen = placement.sites(found, at, entry.cls.level if entry else "projection") if at else ()
    if as_json:
        print_json(_anatomy_json(model, found, chosen if at else None))
    else:
        _show_anatomy(model, found, chosen, at)


def _facts(entry: Entry, preset: Preset | None = None) -> dict[str, Any]:
    """Return what an adapter or a preset of it says of itself; `expands_to` is null for an adapter."""
    about, fields = (preset, preset.fields) if preset else (entry, None)
    at = fields.get("at", entry.at) if fields else entry.at
    return {"name": about.name, "idea": about.idea, "at": at, "source": about.source, "expands_to": fields}


def _inline(fields: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {json.dumps(value).strip(chr(34))}" for key, value in fields.items())


def _field_row(name: str, field: FieldInfo, given: dict[str, Any]) -> dict[str, Any]:
    """Return what a config field says of itself: name, type, default (a preset's own), bounds, description."""
    bounds = [
        f"{sign} {value}"
        for m in field.metadata
        for a, sign in _BOUNDS.items()
        if (value := getattr(m, a, None)) is not None
    ]
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return {
        "field": name,
        "type": _type_name(field.annotation),
        "default": given.get(name, default),
        "bounds": ", ".join(bounds),
        "description": field.description or "",
    }


def _type_name(annotation: Any) -> str:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(map(str, arguments))
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return " | ".join("null" if a is type(None) else _type_name(a) for a in arguments)
    return annotation.__name__ if isinstance(annotation, type) and not arguments else str(annotation)


def _show_adapter(facts: dict[str, Any], fields: Sequence[dict[str, Any]]) -> None:
    """Print one adapter or preset with its fields."""
    say(f"{facts['name']}: {facts['idea']}\nusual placement: {facts['at'] or WHOLE}\nsource: {facts['source']}")
    if facts["expands_to"]:
        say(f"expands to: {_inline(facts['expands_to'])}")
    show_rows([{**row, "default": "" if row["default"] == "" else cell(row["default"])} for row in fields])


def _anatomy_json(model: str, anatomy: Anatomy, chosen: Sequence[Site] | None) -> dict[str, Any]:
    """Return the sites of a model as plain data; `selected` holds site keys, or null without a placement."""
    sites = (*anatomy.projections, *anatomy.sublayers, *anatomy.entries)
    return {
        "model": model,
        "hidden": anatomy.hidden,
        "layers": list(anatomy.layers),
        "roles": list(anatomy.roles),
        "sites": [{"key": site.key, **vars(site)} for site in sites],
        "selected": None if chosen is None else [site.key for site in chosen],
    }


def _show_anatomy(model: str, anatomy: Anatomy, chosen: Sequence[Site], at: str | None) -> None:
    """Draw the sites of a model as a tree; like layers in a row are drawn once, selected sites carry a mark."""
    marked = {site.key for site in chosen}
    root = Tree(escape(f"{model}: {len(anatomy.layers)} layers, hidden size {anatomy.hidden}"))
    described = [_layer(anatomy, index, marked) for index in range(len(anatomy.layers))]
    for lines, group in groupby(range(len(described)), key=described.__getitem__):
        indices = list(group)
        first, last = indices[0], indices[-1]
        title = f"layer {first}" if first == last else f"layers {first}-{last}"
        branch = root.add(escape(f"{title}  ({anatomy.layers[first].rpartition('.')[0]})"))
        for depth, line in lines:
            parent = branch if depth == 0 else branch.children[-1]
            parent.add(line)
    console().print(root, soft_wrap=True)
    if at:
        say(f"● selected by {at!r}: {len(chosen)} site{'s' * (len(chosen) != 1)}")


def _layer(anatomy: Anatomy, index: int, marked: set[str]) -> tuple[tuple[int, str], ...]:
    """Return what is drawn of a layer, without its number, as (depth, text)."""
    prefix = len(anatomy.layers[index]) + 1
    lines: list[tuple[int, str]] = []
    for whole in (s for s in anatomy.sublayers if s.layer == index):
        lines.append((0, _site(whole, prefix, marked, whole.role)))
        for entry in (s for s in anatomy.entries if s.layer == index and s.role == whole.role):
            lines.append((1, _site(entry, prefix, marked, f"{entry.role}.in")))
        projections = [s for s in anatomy.projections if s.layer == index]
        starts = next(i for i, s in enumerate(projections) if s.path == whole.reader)
        ends = next(i for i, s in enumerate(projections) if s.path == whole.path)
        lines += [(1, _site(s, prefix, marked, s.role)) for s in projections[starts : ends + 1]]
    return tuple(lines)


def _site(site: Site, prefix: int, marked: set[str], name: str) -> str:
    text = escape(f"{name:8} {site.path[prefix:]}  {site.d_in} -> {site.d_out}")
    return f"[bold green]● {text}[/]" if site.key in marked else f"  {text}" if marked else text
