"""Write the trained adapter of a run, or the model that it is merged into, for use elsewhere."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.saving import save_adapter, save_merged
from llm_adapters_lab.core.vocabulary import new_tokens
from llm_adapters_lab.files import check_shard_size, writing
from llm_adapters_lab.models.loading import Base
from llm_adapters_lab.results.model_card import card
from llm_adapters_lab.runs.record import Run, check_new
from llm_adapters_lab.tasks.prompts import is_chat

AdapterFormat = Literal["peft", "lab"]


def export_adapter(
    base: Base, injection: Injection, out: Path, format: AdapterFormat, record: Run | None = None, place: str = ""
) -> None:
    """Write a folder with an adapter and a model card.

    Args:
        base: as loaded, with the adapter in it.
        injection: the adapter.
        out: the folder, new or empty.
        format: of peft or of the lab.
        record: the run that has trained it, for the card.
        place: its name on the hub, for the card; default: the name of the folder.

    Raises:
        BadSpec: the folder is not empty.
        CannotConvert: peft has no such adapter.
        CannotWrite: the folder cannot be written.
    """
    check_new(out)
    with writing(out):
        if format == "peft":
            to_peft(injection, out, base.name, base.tokenizer)
        else:
            save_adapter(injection, out, base.name)
        tokens = new_tokens(injection.model)
        text = card(base.name, injection.config, format, record, place or out.name, injection.other_base, tokens)
        (out / "README.md").write_text(text, encoding="utf-8")
        if _take_template(base, injection):
            base.tokenizer.save_pretrained(out)


def export_merged(
    base: Base,
    injection: Injection,
    out: Path,
    max_shard_size: str = "5GB",
    *,
    dequantize: bool = False,
    round: bool = False,
) -> list[str]:
    """Merge an adapter into its base, write a folder for transformers, and return what the user should know of it.

    Args:
        base: as loaded, with the adapter in it; merged afterwards.
        injection: the adapter.
        out: the folder, new or empty.
        max_shard_size: maximum size of a file, e.g. "5GB".
        dequantize: as in `core.merge`.
        round: as in `core.merge`.

    Raises:
        BadSpec: the folder is not empty, or the size is invalid.
        CannotMerge: see `core.merge`.
        CannotWrite: the folder cannot be written.
    """
    check_new(out)
    check_shard_size(max_shard_size)
    template, remarks = _take_template(base, injection), []
    with writing(out), warnings.catch_warnings(action="ignore", category=UserWarning):  # it is among the remarks
        save_merged(injection, out, base.tokenizer, max_shard_size, dequantize=dequantize, round=round)
    if injection.prompt and not template and base.tokenizer.chat_template:
        remarks.append(
            f"Its tokenizer holds the chat template of {base.name}, but the adapter was trained with the prompt "
            f"{injection.prompt['template']!r}, which is in merge.json."
        )
    if injection.rounding and injection.rounding.noticeable:
        remarks.append(str(injection.rounding))
    return remarks


def _take_template(base: Base, injection: Injection) -> str:
    """Give the tokenizer the chat template that an adapter was trained with, and return it; "" if it was none."""
    template = injection.prompt.get("template", "")
    if not is_chat(template):
        return ""
    base.tokenizer.chat_template = template
    return template
