"""The commands that export adapters: export, merge."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from llm_adapters_lab.cli.arguments import Root, complete_runs, find
from llm_adapters_lab.cli.console import no_bars, say
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.files import check_shard_size, read_json

if TYPE_CHECKING:
    from llm_adapters_lab.core.injection import Injection
    from llm_adapters_lab.models.loading import Base
    from llm_adapters_lab.runs.record import Run

SOURCE_HELP = "Run, or an adapter folder of the lab or of peft."
Source = Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE_HELP, autocompletion=complete_runs)]
Out = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to create.")]
GROUP_HELP = "Of an adapter with a part for each group: this part as an ordinary adapter; mean: that of all."
Group = Annotated[str, typer.Option(metavar="NAME", help=GROUP_HELP)]
BaseName = Annotated[str | None, typer.Option("--base", metavar="MODEL", help="Base model; default: the source's own.")]


def export(
    source: Source,
    out: Out,
    format: Annotated[Literal["peft", "lab"], typer.Option(help="Format of the new folder.")] = "peft",
    base: BaseName = None,
    root: Root = Path("runs"),
    group: Group = "",
    push: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Also upload it to the Hugging Face hub.")] = "",
    private: Annotated[bool, typer.Option("--private", help="With --push: make the repository private.")] = False,
) -> None:
    """Export an adapter for peft, with its scores in a model card."""
    from llm_adapters_lab.results import hub
    from llm_adapters_lab.runs.record import check_new

    check_new(out)
    if private and not push:
        raise BadSpec("--private is about the repository that --push names. Add --push, or remove --private.")
    if push:
        hub.check_push(push)
    loaded, injection, record = _load(source, root, base, group)
    from llm_adapters_lab.results.exporting import export_adapter

    export_adapter(loaded, injection, out, format, record, push)
    say(f"{injection.config.type} adapter: {out}")
    if push:
        say(f"on the hub: {hub.push(out, push, private)}")


def blend(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Runs or adapter folders.", autocompletion=complete_runs)
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder to create.")],
    how: Annotated[
        Literal["average", "delta", "align"],
        typer.Option(help="Mean of the tensors, of the updates B A, or of the units in the order of the first."),
    ] = "average",
    weights: Annotated[str, typer.Option(metavar="W,W,...", help="One for each source; default: equal.")] = "",
    rows: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="With align, compare units by what they do on N rows of the first run."),
    ] = 0,
    root: Root = Path("runs"),
) -> None:
    """Make one adapter of several of one method and shape."""
    from llm_adapters_lab.config import assignments
    from llm_adapters_lab.core.blending import blend as blended
    from llm_adapters_lab.core.saved_adapters import looking_in
    from llm_adapters_lab.runs.record import check_new

    check_new(out)
    given = assignments([f"weights=[{weights}]"])["weights"]
    if not all(isinstance(weight, int | float) for weight in given):
        raise BadSpec(f"--weights must be numbers with commas, such as 0.7,0.3; given was {weights!r:.100}.")
    if rows and how != "align":
        raise BadSpec("--rows is for --how align. Remove it.")
    inputs: dict[str, Any] = {}
    if rows:
        from llm_adapters_lab.runs.restoring import calibration

        inputs = calibration(find(sources[0], root), rows)
    with looking_in(root):
        found = blended(sources, how, given, **inputs)
    found.save(out)
    say(f"{found.config.type} adapter: {out}")


def merge(
    source: Source,
    out: Out,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Maximum size of a file.")] = "5GB",
    dequantize: Annotated[bool, typer.Option("--dequantize", help="Dequantise a quantised base first.")] = False,
    round: Annotated[bool, typer.Option("--round", help="Merge even if rounding takes over 10 % of ΔW.")] = False,
    base: BaseName = None,
    root: Root = Path("runs"),
    group: Group = "",
) -> None:
    """Merge an adapter into its base and save a Hugging Face model."""
    from llm_adapters_lab.runs.record import check_new

    check_new(out)
    check_shard_size(max_shard_size)
    loaded, injection, _ = _load(source, root, base, group)
    from llm_adapters_lab.results.exporting import export_merged

    remarks = export_merged(loaded, injection, out, max_shard_size, dequantize=dequantize, round=round)
    say(f"merged model: {out}")
    for text in remarks:
        say(text)


def _load(source: str, root: Path, base: str | None, group: str = "") -> tuple[Base, Injection, Run | None]:
    loaded, injection, record = _loaded(source, root, base)
    if group:
        from llm_adapters_lab.core.baking import bake

        injection = bake(injection, group)
    return loaded, injection, record


def _loaded(source: str, root: Path, base: str | None) -> tuple[Base, Injection, Run | None]:
    from llm_adapters_lab.models.spec import Quantization, check_base

    folder = Path(source)
    for file, key in (("adapter.json", "base"), ("adapter_config.json", "base_model_name_or_path")):
        if os.path.isfile(folder / file):
            meta = read_json(folder / file)
            named = base or meta.get(key)
            if not (named and isinstance(named, str)):
                raise BadSpec(f"{folder / file} does not name its base. Give it with --base.")
            check_base(named)
            no_bars()
            from llm_adapters_lab.core.saving import load_adapter
            from llm_adapters_lab.models import loading

            how: Any = meta.get("quantization")
            # Any other format is how the checkpoint itself is quantised.
            loaded = loading.load_base(named, quantization=how if how in get_args(Quantization) else "none")
            return loaded, load_adapter(loaded.model, folder, tokenizer=loaded.tokenizer), None
    record = find(source, root)
    if record.spec.adapter is None:
        raise BadSpec(f"The run {record.id} scores the bare base; it has no adapter.")
    if base not in (None, record.spec.base):
        raise BadSpec(f"--base {base!r}: the run {record.id} has its own base, {record.spec.base}. Remove --base.")
    no_bars()
    from llm_adapters_lab.runs.restoring import restore

    loaded, injection = restore(record)
    assert injection is not None
    return loaded, injection, record
