"""The commands that list what the lab offers: adapters, presets, models, tasks, and the sites of a model."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.tree import Tree

from llm_adapters_lab.cli.arguments import complete_adapters, complete_presets
from llm_adapters_lab.cli.console import Output, console, remark, say, show_rows, with_json
from llm_adapters_lab.results.formatting import cell, markdown

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from llm_adapters_lab.core.anatomy import Anatomy
    from llm_adapters_lab.core.registry import Entry
    from llm_adapters_lab.core.sites import Site
    from llm_adapters_lab.runs.presets import Preset

WHOLE = "the whole model"
_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


@with_json
def adapters(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Show the fields of this adapter or preset.", autocompletion=complete_adapters
        ),
    ] = None,
) -> Output:
    """List adapters and their presets, or the fields of one."""
    from llm_adapters_lab.core.registry import all_adapters, get_adapter
    from llm_adapters_lab.runs.presets import adapter_presets, expand

    known, named = all_adapters(), adapter_presets()
    if name:
        given = expand({"type": name})
        entry = get_adapter(given["type"])
        facts = _facts(entry, None if name in known else named[name])
        fields = [_field_row(key, field, given) for key, field in entry.config.model_fields.items()]
        return Output({**facts, "fields": fields}, lambda: _show_adapter(facts, fields))
    own = [_facts(entry) for entry in known.values()]
    presets = [_facts(get_adapter(preset.fields["type"]), preset) for preset in named.values()]

    def show() -> None:
        columns = {"name": "name", "idea": "idea", "usual placement": "at", "source": "source"}
        show_rows([{column: row[fact] or WHOLE for column, fact in columns.items()} for row in own])
        say("\nPresets, usable wherever a spec names the type of an adapter:\n")
        show_rows([{"name": row["name"], "expands to": _inline(row["expands_to"])} for row in presets])

    return Output(own + presets, show)


@with_json
def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Print this preset, to save and change it.", autocompletion=complete_presets
        ),
    ] = None,
) -> Output:
    """List the specs that come with the lab, or print one."""
    from llm_adapters_lab.runs.presets import get_spec_preset, spec_presets

    chosen = [get_spec_preset(name)] if name else list(spec_presets().values())
    rows = [{"name": preset.name, "idea": preset.idea, "source": preset.source} for preset in chosen]
    if name:
        return Output({**rows[0], "fields": chosen[0].fields}, lambda: say(chosen[0].text.rstrip()))
    return Output(rows)


@with_json
def models() -> Output:
    """List the base models that need no download."""
    from llm_adapters_lab.models.random_models import TINY
    from llm_adapters_lab.models.spec import PACKAGED

    tiny = [f"tiny:{family}" for family in TINY]

    def show() -> None:
        show_rows([{"base": name, "what it is": text} for name, text in PACKAGED.items()])
        remark("\nRandom models of any causal family, for inspection and tests: " + ", ".join([*tiny, "…"]))
        remark("Also: a hub id (owner/name), a local folder, or a .gguf file.")

    return Output({"packaged": PACKAGED, "tiny": tiny}, show)


@with_json
def tasks() -> Output:
    """List tasks with their splits and the form of their answers."""
    from llm_adapters_lab.tasks.registry import all_tasks

    rows = [
        {
            "name": task.name,
            "summary": task.summary,
            "splits": ", ".join(task.splits),
            "answer": task.answers,
            "source": task.source,
        }
        for task in all_tasks().values()
    ]

    def show() -> None:
        show_rows([{key: row[key] for key in row if key != "source"} for row in rows])
        remark("Also: own:FILE?answer=COLUMN&form=number for any .json, .jsonl, .csv or .parquet file or hub id.")

    return Output(rows, show)


@with_json
def anatomy(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Base model, as in a spec; its weights are not loaded.")
    ],
    at: Annotated[
        str | None, typer.Option(metavar="PLACEMENT", help="Mark the sites it selects, e.g. q,v or mlp@0-3.")
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Interpret the placement as this adapter or preset does; by default it selects projections.",
            autocompletion=complete_adapters,
        ),
    ] = None,
) -> Output:
    """Draw the layers and sites of a model."""
    from llm_adapters_lab.core import placement
    from llm_adapters_lab.core.registry import get_adapter
    from llm_adapters_lab.models.spec import check_base
    from llm_adapters_lab.runs.presets import expand

    given = expand({"type": adapter}) if adapter else {}
    entry = get_adapter(given["type"]) if adapter else None
    if at := at or given.get("at") or (entry.at if entry else None):
        placement.parse(at)
    check_base(model)
    from llm_adapters_lab.models.blueprint import Blueprint

    found = Blueprint(model).anatomy
    chosen = placement.sites(found, at, entry.cls.level if entry else "projection") if at else ()
    sites = (*found.projections, *found.sublayers, *found.entries)
    value = {
        "model": model,
        "hidden": found.hidden,
        "layers": list(found.layers),
        "roles": list(found.roles),
        "sites": [{"key": site.key, **vars(site)} for site in sites],
        "selected": [site.key for site in chosen] if at else None,
        "left_out": [{"path": path, "class": kind} for path, kind in found.left_out],
    }
    return Output(value, lambda: _show_anatomy(model, found, chosen, at))


@with_json
def survey(
    families: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FAMILY]...", help="Families of transformers, e.g. mixtral jamba; by default, all."),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="NAME", help="Type of the adapter.", autocompletion=complete_adapters)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page of Markdown, like docs/architectures.md.")
    ] = None,
) -> Output:
    """Adapt a tiny random model of every family, and check it.

    All families take a few minutes. The exit code is 1 if a family that can be built is not adapted.
    """
    import transformers

    from llm_adapters_lab.files import write_atomically
    from llm_adapters_lab.models.random_models import family_of
    from llm_adapters_lab.runs.survey import STEPS, summary, usual_adapter
    from llm_adapters_lab.runs.survey import survey as look

    for family in families or ():
        family_of(family)
    found, adapter = [], adapter or usual_adapter()
    for one in look(families or (), adapter):
        found.append(one)
        typer.echo(f"{one.family}: {one.row()['adapted']}", err=True)
    rows = [one.row() for one in found]
    if out:
        columns = ("family", "adapted", "sublayers", "mixers", "mlp", "cache", "training")
        table = [
            {key: row.get(key, row.get("fault", "") if key == "sublayers" else "") for key in columns} for row in rows
        ]
        text = _SURVEYED.format(summary=summary(found), version=transformers.__version__, adapter=adapter, steps=STEPS)
        write_atomically(out, f"{text}\n{markdown(table)}\n".encode())

    def show() -> None:
        show_rows(rows, keep=2)
        say(summary(found))

    return Output(rows, show, int(any(one.built and not one.adapted for one in found)))


_SURVEYED = """# Architectures

What adapters do in each family of causal language models of transformers {version}.

{summary}

Made by `python -m llm_adapters_lab survey --out docs/architectures.md` from tiny random models. *mixers* and *mlp*: an
adapter ({adapter}) at all token mixers (at `attn?`, or where there is no attention at `mixer?`), and at all
feed-forward parts (`mlp?`, experts included), leaves the base unchanged to the bit at first, changes it once moved,
answers the same when merged, and leaves no trace when ejected; *adapted* says whether this holds at each of them and at
both together. *cache*: decoding token by token with a cache equals decoding without. *training*: the losses of {steps}
steps with all fast paths equal the plain ones. *sublayers* gives the layers that have each kind.
"""


def _facts(entry: Entry, preset: Preset | None = None) -> dict[str, Any]:
    """Return the description of an adapter, or of a preset of it; `expands_to` is None for an adapter."""
    about, fields = (preset, preset.fields) if preset else (entry, None)
    at = fields.get("at", entry.at) if fields else entry.at
    return {"name": about.name, "idea": about.idea, "at": at, "source": about.source, "expands_to": fields}


def _inline(fields: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {json.dumps(value).strip(chr(34))}" for key, value in fields.items())


def _field_row(name: str, field: FieldInfo, given: dict[str, Any]) -> dict[str, Any]:
    """Return name, type, default (that of a preset if it has one), bounds and description of a config field."""
    from llm_adapters_lab.config import bounds

    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return {
        "field": name,
        "type": _type_name(field.annotation),
        "default": given.get(name, default),
        "bounds": ", ".join(f"{_SIGNS[key]} {value}" for key, value in bounds(field.metadata).items()),
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
    show_rows([{**row, "default": "" if row["default"] == "" else cell(row["default"])} for row in fields], keep=5)


def _show_anatomy(model: str, anatomy: Anatomy, chosen: Sequence[Site], at: str | None) -> None:
    """Draw the sites of a model as a tree; equal layers are drawn once, selected sites are marked."""
    from llm_adapters_lab.core.sites import ENCODER, describe_counts, placement_counts, ranges

    marked = {site.key for site in chosen}
    root = Tree(escape(f"{model}: {len(anatomy.layers)} layers, hidden size {anatomy.hidden}"))
    both = any(site.sublayer.startswith(ENCODER) for site in anatomy.projections)
    for stack in [ENCODER, ""] if both else [""]:
        alike: dict[Any, list[int]] = {}
        for index in range(anatomy.depth(stack)):
            alike.setdefault(_layer(anatomy, index, stack, marked), []).append(index)
        for (path, lines), layers in alike.items():
            title = f"{'encoder ' if stack else ''}layer{'s' * (len(layers) > 1)} {ranges(layers)}"
            branch = root.add(escape(f"{title}  ({path})"))
            for depth, line in lines:
                parent = branch if depth == 0 else branch.children[-1]
                parent.add(line)
    console().print(root, soft_wrap=True)
    if at:
        say(f"● selected by {at!r}: {len(chosen)} site{'s' * (len(chosen) != 1)}")
        say(describe_counts(placement_counts(chosen)))
    if anatomy.remark:
        remark(anatomy.remark)


def _layer(anatomy: Anatomy, index: int, stack: str, marked: set[str]) -> tuple[str, tuple[tuple[int, str], ...]]:
    """Return the list of layers that a layer is in, and its lines without its number, as (depth, text)."""
    lines: list[tuple[int, str, list[Site]]] = []
    parts = anatomy.parts(index, stack)
    for whole, sites in parts:
        if whole:
            lines.append((0, whole.role, [whole]))
            inner = (e for e in anatomy.entries if (e.layer, e.role) == (index, whole.role))
            lines += [(1, f"{e.role}.in", [e]) for e in inner if f"{whole.reader}.".startswith(f"{e.path}.")]
        for role, same in groupby(sites, key=lambda site: site.role if site.routed else site.path):
            group = list(same)
            count = f" ×{len(group)}" if len(group) > 1 else ""
            lines.append((1 if whole else 0, f"{role if count else group[0].role}{count}", group))
    path = (parts[0][1][0].path if stack else f"{anatomy.layers[index]}.").partition(f".{index}.")[0]
    width = max([8, *(len(name) for _, name, _ in lines)])
    return path, tuple((d, _site(s, len(f"{path}.{index}."), marked, f"{n:{width}}")) for d, n, s in lines)


def _site(sites: Sequence[Site], prefix: int, marked: set[str], name: str) -> str:
    """Return the line of one site, or of the experts with one role."""
    parts = zip(*(site.path[prefix:].split(".") for site in sites), strict=True)
    path = ".".join(part[0] if len(set(part)) == 1 else "*" for part in parts)
    text = escape(f"{name} {path}  {sites[0].d_in} -> {sites[0].d_out}")
    chosen = any(site.key in marked for site in sites)
    return f"[bold green]● {text}[/]" if chosen else f"  {text}" if marked else text
