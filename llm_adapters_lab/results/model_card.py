"""Card: the README.md of an exported adapter, for people who have only that folder, and for the hub.

What stands in it: base, method, data, scores with interval and chance, leak warnings, the whole spec, how to load it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.models import smollm2
from llm_adapters_lab.results.comparison import LEAK, leak
from llm_adapters_lab.runs.record import Run

_PEFT = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, {place!r})
```"""
_LAB = """```python
{first}from llm_adapters_lab import load_adapter, load_base

base = load_base({base!r})
load_adapter(base.model, {folder}, tokenizer=base.tokenizer)
```"""

_INTRO = "A trained adapter of LLM Adapters Lab. It is loaded into its base, which is not in this folder."
_LEGEND = (
    "Interval: Wilson's, over test rows alone. Chance: guessing among the offered answers; majority: always the "
    "commonest answer; in form: answers that could be read as asked."
)


def write_card(folder: Path, base: str, config: AdapterConfig, format: str, record: Run | None, place: str) -> None:
    """Write README.md.

    Args:
        folder: of the exported adapter.
        base: name of the base, as in a spec.
        config: of the adapter.
        format: "peft" or "lab".
        record: the run it comes from; None for an adapter folder, of which no scores are known.
        place: name on the hub; "" for a folder that stays here.
    """
    (folder / "README.md").write_text(card(base, config, format, record, place or folder.name), encoding="utf-8")


def card(base: str, config: AdapterConfig, format: str, record: Run | None, place: str) -> str:
    """Return the text of the card; see `write_card`."""
    spec = record.spec if record else None
    parts = [_head(base, config, format), _about(base, config, record)]
    if record and record.summary.get("scores"):
        parts.append(_scores(record.summary))
    else:
        parts.append("## Scores\n\nNone are known: this adapter was not scored in a run of the lab.")
    parts.append(_loading(base, format, place))
    if spec:
        text = yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
        again = "As `spec.yaml`, `python -m llm_adapters_lab run spec.yaml` does the same run again:"
        parts.append(f"## Spec\n\n{again}\n\n{_fenced(text, 'yaml')}")
    return "\n\n".join(parts) + "\n"


def hub_name(base: str) -> str:
    """Return the name of a base on the hub, "" for one that is not known to be there."""
    if base == "smollm2-135m":
        return smollm2.HUB
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not base.startswith(".") and not base.endswith(".gguf")
    return base if is_name else ""


def _head(base: str, config: AdapterConfig, format: str) -> str:
    """Return the part that the hub reads."""
    fields: dict[str, Any] = {"base_model": hub_name(base)} if hub_name(base) else {}
    fields |= {"library_name": "peft"} if format == "peft" else {}
    fields |= {"pipeline_tag": "text-generation", "tags": ["llm-adapters-lab", "adapter", config.type]}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _about(base: str, config: AdapterConfig, record: Run | None) -> str:
    entry = get_adapter(config.type)
    lines = [f"# {config.type} for {_plain(base)}", "", _INTRO, ""]
    where = "" if hub_name(base) else ", which is not on the hub"
    packaged = ", the teaching model that comes with LLM Adapters Lab" if base == "nano" else where
    lines += [f"- base: {_plain(hub_name(base) or base)}{packaged}", f"- method: {config.type}, {entry.source}"]
    lines += [f"- placement: {_plain(config.at)}"] if config.at else ["- placement: the whole model"]
    if record:
        spec, summary = record.spec, record.summary
        rows = f", {spec.data.rows:,} rows of it" if spec.data.rows else ""
        lines.append(f"- trained on: {_plain(spec.data.task)}{rows}, seed {spec.seed}")
        if trained := summary.get("train"):
            rows = f" on {trained['rows']:,} rows" if "rows" in trained else ""
            loss = f"{trained['loss_first']:.3f} to {trained['loss_last']:.3f}"
            lines.append(f"- training: {trained['steps']:,} steps{rows}, {trained['tokens']:,} tokens, loss {loss}")
        if count := summary.get("trainable_parameters"):
            lines.append(f"- parameters: {count:,}, {100 * count / summary['base_parameters']:.2f} % of the base")
        made = summary.get("environment", {})
        known = [f"{name} {made[name]}" for name in ("llm_adapters_lab", "torch", "transformers") if name in made]
        known += [f"{made['dtype']} on {_plain(made['device'])}"] if {"dtype", "device"} <= made.keys() else []
        lines.append(f"- made with: {', '.join(known) or 'LLM Adapters Lab'}; run {record.id}")
    return "\n".join(lines)


def _scores(summary: dict[str, Any]) -> str:
    rows = ["| task | accuracy | 95 % interval | chance | majority | in form | rows | protocol |", "|---" * 8 + "|"]
    warnings = []
    for task, score in summary["scores"].items():
        seen, name = leak(summary, task), _plain(task)
        low, high = (_percent(score.get(key)) for key in ("low", "high"))
        cells = [f"{name}{' (!)' if seen else ''}", _percent(score["accuracy"]), f"{low} to {high}"]
        cells += [_percent(score.get(key)) for key in ("chance", "majority", "in_format")]
        cells += [str(score["total"]), _plain(str(score.get("protocol") or ""))]
        rows.append(f"| {' | '.join(cells)} |")
        if seen:
            warnings.append(f"**(!) {name}: {100 * seen:.0f} % of the test rows stand in the training data.**")
    if not warnings and summary.get("leaks"):
        warnings.append(f"No task has {100 * LEAK:.0f} % or more of its test rows in the training data.")
    elif not warnings:
        warnings.append("Whether test rows stand in the training data was not looked at.")
    return "\n".join(["## Scores", "", *rows, "", *warnings, "", _LEGEND])


def _loading(base: str, format: str, place: str) -> str:
    """Return how to load it; transformers alone knows no base that is not on the hub."""
    name, on_hub = hub_name(base), "/" in place
    peft = f"With peft:\n\n{_PEFT.format(base=name, place=place)}\n\n" if format == "peft" and name else ""
    folder = f"snapshot_download({place!r})" if on_hub else repr(place)
    first = "from huggingface_hub import snapshot_download\n" if on_hub else ""
    lab = _LAB.format(first=first, base=name or base, folder=folder)
    return f"## Load it\n\n{peft}With LLM Adapters Lab:\n\n{lab}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _plain(text: str) -> str:
    """Return text that Markdown shows as it stands."""
    return re.sub(r"([\\`*_{}\[\]<>|#!~&])", r"\\\1", " ".join(text.split()))


def _fenced(text: str, language: str) -> str:
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
