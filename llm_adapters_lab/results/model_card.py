"""The README.md of an exported adapter, for people who have only that folder, and for the hub.

It names base, method, data, scores with intervals and chance, leaks, the whole spec, and how to load the adapter. The
scores are also in its metadata, where the hub reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import resources
from typing import Any

from llm_adapters_lab.config import to_yaml
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.core.sites import describe_counts
from llm_adapters_lab.errors import LabError
from llm_adapters_lab.events import row_remarks
from llm_adapters_lab.files import read_json
from llm_adapters_lab.models.pypi_bases import PYPI_BASES
from llm_adapters_lab.results import hub
from llm_adapters_lab.results.comparison import compare
from llm_adapters_lab.results.formatting import cell, markdown, percent, plain_markdown, score_cells, task_cell
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.tasks.prompts import Template, get_template, is_chat, template_of
from llm_adapters_lab.tasks.registry import get_task


def card(
    base: str,
    config: AdapterConfig,
    format: str,
    record: Run | None,
    place: str,
    other_base: Sequence[str] = (),
    tokens: Iterable[str] = (),
) -> str:
    """Return the text of README.md in the folder of an exported adapter.

    Args:
        base: name of the base, as in a spec.
        config: of the adapter.
        format: "peft" or "lab".
        record: the run it comes from; None for an adapter folder, whose scores are not known.
        place: name on the hub, or of a folder that stays here.
        other_base: how its base differs from the one that it was trained on; see `Injection.other_base`.
        tokens: that were added to the base.
    """
    from huggingface_hub import ModelCard

    rows = [row for row in compare([record]) if row["task"]] if record else []
    spec = record.spec.model_dump(mode="json", exclude_none=True) if record else {}
    text = ModelCard.from_template(
        _metadata(hub_name(base), config.type, format, rows, place),
        template_str=(resources.files(__package__) / "model_card.md.j2").read_text(encoding="utf-8"),
        base=base,
        on_hub=hub_name(base),
        terms=PYPI_BASES[base].terms if base in PYPI_BASES else "",
        other_base=other_base,
        tokens=list(tokens),
        config=config,
        format=format,
        place=place,
        source=get_adapter(config.type).source,
        run=record,
        summary=record.summary if record else {},
        sites=describe_counts((record.summary.get("sites") if record else None) or {}),
        scores=markdown([{"task": task_cell(row)} | score_cells(row) for row in rows]) if rows else "",
        rows=rows,
        prompt=_prompt(record) if record else None,
        spec_system=record.spec.data.system if record else None,
        spec=to_yaml(spec) if spec else "",
        cell=cell,
        percent=percent,
        task_cell=task_cell,
        row_remarks=row_remarks,
        plain=plain_markdown,
        fenced=_fenced,
        quoted=repr,
    )
    return f"{text}\n"


def hub_name(base: str) -> str:
    """Return the name of a base on the hub, "" for one that is not known to be there."""
    if base in PYPI_BASES:
        return PYPI_BASES[base].hub
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not base.startswith(".") and not base.endswith(".gguf")
    return base if is_name else ""


def _metadata(base: str, kind: str, format: str, rows: list[dict[str, Any]], place: str) -> Any:
    """Return what the hub reads of a card; `base` is "" if it is not there."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=re.sub(r"[^\w.-]+", "-", row["task"]).strip("-") or "custom",
            dataset_name=row["task"],
            dataset_split="test",
            metric_type="accuracy",
            metric_value=row["accuracy"],
        )
        for row in rows
    ]
    return ModelCardData(
        base_model=base or None,
        library_name="peft" if format == "peft" else None,
        pipeline_tag="text-generation",
        tags=[hub.LIBRARY, "adapter", kind],
        model_name=place if results else None,
        eval_results=results or None,
    )


def _prompt(record: Run) -> Template | str | None:
    """Return the template of the training, a chat template as text; None if it is not known or there was none."""
    data, file = record.spec.data, record.folder / "adapter" / "adapter.json"
    if data.form == "text":
        return None
    with suppress(LabError):
        saved = read_json(file).get("prompt", {}).get("template") if file.is_file() else None
        name = template_of(saved or data.template, get_task(data.task), ())
        return name if is_chat(name) else get_template(name)
    return None


def _fenced(text: str, language: str) -> str:
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
