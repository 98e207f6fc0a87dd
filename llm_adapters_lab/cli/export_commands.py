"""The commands that take an adapter elsewhere: to peft, to a merged model, or back from peft."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from llm_adapters_lab.cli.console import say

if TYPE_CHECKING:
    from llm_adapters_lab.core.injection import Injection
    from llm_adapters_lab.models.loading import Base
    from llm_adapters_lab.runs.record import Run

Source = Annotated[str, typer.Argument(help="Run id or folder, or an adapter folder of the lab or of peft.")]
Out = Annotated[Path, typer.Argument(help="New folder.")]
Root = Annotated[Path, typer.Option("--root", help="Folder of all runs.")]
BaseName = Annotated[str | None, typer.Option("--base", help="Base model; default: the one named in the source.")]


class Format(StrEnum):
    """Formats of adapter folders."""

    peft = "peft"
    lab = "lab"


def export(
    source: Source,
    out: Out,
    format: Annotated[Format, typer.Option("--format", help="Form of the new folder.")] = Format.peft,
    base: BaseName = None,
    root: Root = Path("runs"),
    push: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Also upload it to the Hugging Face hub.")] = "",
    private: Annotated[bool, typer.Option("--private", help="With --push: nobody else sees it.")] = False,
) -> None:
    """Save an adapter as a folder of peft or of the lab, with a card that tells what it is and how good."""
    from llm_adapters_lab.core.peft_format import to_peft
    from llm_adapters_lab.core.saving import save_adapter
    from llm_adapters_lab.results import hub
    from llm_adapters_lab.results.model_card import write_card

    _new(out)
    if push:
        hub.check_push(push)
    loaded, injection, record = _load(source, root, base)
    (to_peft if format is Format.peft else save_adapter)(injection, out, loaded.name)
    write_card(out, loaded.name, injection.config, format, record, push)
    say(f"{injection.config.type} adapter: {out}")
    if push:
        say(f"on the hub: {hub.push(out, push, private)}")


def merge(
    source: Source,
    out: Out,
    max_shard_size: Annotated[str, typer.Option(help="Largest safetensors file.")] = "5GB",
    dequantize: Annotated[bool, typer.Option("--dequantize", help="Make a quantised base a plain one first.")] = False,
    base: BaseName = None,
    root: Root = Path("runs"),
) -> None:
    """Merge an adapter into its base and save that as a plain Hugging Face folder."""
    from llm_adapters_lab.core.saving import save_merged

    _new(out)
    loaded, injection, _ = _load(source, root, base)
    save_merged(injection, out, loaded.tokenizer, max_shard_size, dequantize=dequantize)
    say(f"merged model: {out}")


def _new(out: Path) -> None:
    from llm_adapters_lab.errors import BadSpec
    from llm_adapters_lab.privacy import to_write

    if to_write(out).exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadSpec(f"{out} exists already. Name a new folder.")


def _load(source: str, root: Path, base: str | None) -> tuple[Base, Injection, Run | None]:
    from llm_adapters_lab.core.saving import load_adapter
    from llm_adapters_lab.errors import BadSpec
    from llm_adapters_lab.files import read_json
    from llm_adapters_lab.models import loading
    from llm_adapters_lab.models.spec import Quantization
    from llm_adapters_lab.runs.record import Run, find_run
    from llm_adapters_lab.runs.restoring import restore

    folder = Path(source)
    for file, key in (("adapter.json", "base"), ("adapter_config.json", "base_model_name_or_path")):
        if os.path.isfile(folder / file):
            meta = read_json(folder / file)
            named = base or meta.get(key)
            if not (named and isinstance(named, str)):
                raise BadSpec(f"{folder / file} does not name its base. Give it with --base.")
            how: Any = meta.get("quantization")
            # What is none of the lab's own is how the checkpoint itself is.
            loaded = loading.load_base(named, quantization=how if how in get_args(Quantization) else "none")
            return loaded, load_adapter(loaded.model, folder, tokenizer=loaded.tokenizer), None
    record = Run(folder) if os.path.isfile(folder / "spec.json") else find_run(source, root)
    loaded, injection = restore(record)
    if injection is None:
        raise BadSpec(f"The run {record.id} is one of the bare base; it has no adapter.")
    return loaded, injection, record
