"""The commands that export adapters: export, merge."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from llm_adapters_lab.cli.arguments import Root, complete_runs, find
from llm_adapters_lab.cli.console import say
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.files import check_shard_size, read_json, writing

if TYPE_CHECKING:
    from llm_adapters_lab.core.injection import Injection
    from llm_adapters_lab.models.loading import Base
    from llm_adapters_lab.runs.record import Run

SOURCE_HELP = "Run, or an adapter folder of the lab or of peft."
Source = Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE_HELP, autocompletion=complete_runs)]
Out = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to create.")]
BaseName = Annotated[str | None, typer.Option("--base", metavar="MODEL", help="Base model; default: the source's own.")]


def export(
    source: Source,
    out: Out,
    format: Annotated[Literal["peft", "lab"], typer.Option(help="Format of the new folder.")] = "peft",
    base: BaseName = None,
    root: Root = Path("runs"),
    push: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Also upload it to the Hugging Face hub.")] = "",
    private: Annotated[bool, typer.Option("--private", help="With --push: make the repository private.")] = False,
) -> None:
    """Export an adapter for peft, with its scores in a model card."""
    from llm_adapters_lab.results import hub

    _check_new(out)
    if private and not push:
        raise BadSpec("--private is about the repository that --push names. Add --push, or remove --private.")
    if push:
        hub.check_push(push)
    loaded, injection, record = _load(source, root, base)
    from llm_adapters_lab.core.peft_format import to_peft
    from llm_adapters_lab.core.saving import save_adapter
    from llm_adapters_lab.core.vocabulary import new_tokens
    from llm_adapters_lab.results.model_card import card

    with writing(out):
        if format == "peft":
            to_peft(injection, out, loaded.name, loaded.tokenizer)
        else:
            save_adapter(injection, out, loaded.name)
        place, tokens = push or out.name, new_tokens(injection.model)
        text = card(loaded.name, injection.config, format, record, place, injection.other_base, tokens)
        (out / "README.md").write_text(text, encoding="utf-8")
        if _take_template(loaded, injection):
            loaded.tokenizer.save_pretrained(out)
    say(f"{injection.config.type} adapter: {out}")
    if push:
        say(f"on the hub: {hub.push(out, push, private)}")


def merge(
    source: Source,
    out: Out,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Maximum size of a file.")] = "5GB",
    dequantize: Annotated[bool, typer.Option("--dequantize", help="Dequantise a quantised base first.")] = False,
    round: Annotated[bool, typer.Option("--round", help="Merge even if rounding takes over 10 % of ΔW.")] = False,
    base: BaseName = None,
    root: Root = Path("runs"),
) -> None:
    """Merge an adapter into its base and save a Hugging Face model."""
    _check_new(out)
    check_shard_size(max_shard_size)
    loaded, injection, _ = _load(source, root, base)
    from llm_adapters_lab.core.saving import save_merged

    template = _take_template(loaded, injection)
    with writing(out), warnings.catch_warnings(action="ignore", category=UserWarning):  # told below
        save_merged(injection, out, loaded.tokenizer, max_shard_size, dequantize=dequantize, round=round)
    say(f"merged model: {out}")
    if injection.prompt and not template and loaded.tokenizer.chat_template:
        say(
            f"Its tokenizer holds the chat template of {loaded.name}, but the adapter was trained with the prompt "
            f"{injection.prompt['template']!r}, which is in merge.json."
        )
    if injection.rounding and injection.rounding.noticeable:
        say(str(injection.rounding))


def _take_template(loaded: Base, injection: Injection) -> str:
    """Give the tokenizer the chat template that an adapter was trained with, and return it; "" if it was none."""
    from llm_adapters_lab.tasks.prompts import is_chat

    template = injection.prompt.get("template", "")
    if not is_chat(template):
        return ""
    loaded.tokenizer.chat_template = template
    return template


def _check_new(out: Path) -> None:
    from llm_adapters_lab.privacy import to_write
    from llm_adapters_lab.runs.record import check_writable

    if to_write(out).exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadSpec(f"{out} exists already. Name a new folder.")
    check_writable(out.resolve())


def _load(source: str, root: Path, base: str | None) -> tuple[Base, Injection, Run | None]:
    from llm_adapters_lab.models.spec import Quantization, check_base

    folder = Path(source)
    for file, key in (("adapter.json", "base"), ("adapter_config.json", "base_model_name_or_path")):
        if os.path.isfile(folder / file):
            meta = read_json(folder / file)
            named = base or meta.get(key)
            if not (named and isinstance(named, str)):
                raise BadSpec(f"{folder / file} does not name its base. Give it with --base.")
            check_base(named)
            _no_bars()
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
    _no_bars()
    from llm_adapters_lab.runs.restoring import restore

    loaded, injection = restore(record)
    assert injection is not None
    return loaded, injection, record


def _no_bars() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
