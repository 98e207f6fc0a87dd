"""Write the generated parts of the documentation: the methods, the fields of a spec, the museum.

    python docs/make_tables.py           # rewrite them
    python docs/make_tables.py --check   # exit code 1 if one is out of date

The methods come from the registry: idea, placement and source as registered, the number of parameters from the line
"Parameters:" of the file's docstring, and what merges from merging the example of each into a tiny model. The museum
comes from the docstrings of `tests/museum/`.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from pydantic import BaseModel

from llm_adapters_lab import RunSpec, inject
from llm_adapters_lab.core import all_adapters
from llm_adapters_lab.core.merging import changed_tensors
from llm_adapters_lab.core.registry import ADAPTERS, Entry
from llm_adapters_lab.evaluation.predictions import BEAMS
from llm_adapters_lab.evaluation.scoring import RULES
from llm_adapters_lab.models import tiny
from llm_adapters_lab.results.published_results import remarks, tables
from llm_adapters_lab.runs.presets import spec_presets
from llm_adapters_lab.tasks.prompts import ORIGINAL, ORIGINAL_TRAINING, TEMPLATES

ROOT = Path(__file__).parents[1]
WITH_BIASES = "tiny:gpt2"
"""A model whose projections have biases, so that everything that can be merged is."""


def methods() -> list[Entry]:
    """Return the lab's own adapters in order of publication."""
    own = (entry for entry in all_adapters().values() if entry.module.startswith(f"{ADAPTERS}."))
    return sorted(own, key=lambda entry: (entry.source.removeprefix("arXiv:"), entry.name))


def short_table() -> str:
    """Return the table of methods for the README."""
    rows = [(f"`{entry.name}`", *idea(entry), source(entry)) for entry in methods()]
    return table(("`type`", "Method", "Idea", "Source"), rows)


def long_table() -> str:
    """Return the table of methods for docs/adapters.md."""
    heads = ("`type`", "Idea", "Usual placement", "Parameters", "Merges into", "peft", "Source")
    rows = [
        (
            f"`{entry.name}`",
            ": ".join(idea(entry)),
            f"`{entry.at}`" if entry.at else "whole model",
            parameters(entry),
            merges_into(entry),
            "yes" if entry.cls.peft_type else "",
            source(entry),
        )
        for entry in methods()
    ]
    return table(heads, rows)


def field_table() -> str:
    """Return the table of the fields of a spec for docs/runs.md."""
    return table(("Field", "Default", "Description"), list(_fields(RunSpec)))


class Exhibit(NamedTuple):
    """One exhibit of the museum: what its docstring says; `before` is empty if the lab was right or refused it."""

    path: Path
    title: str
    area: str
    elsewhere: str
    before: str
    here: str
    verdict: tuple[str, str]


AREAS = ("adapters", "merging", "models", "data", "tokens", "training", "scoring", "comparison", "export")
PARTS = ("Area", "Elsewhere", "Before", "Here", "Verdict")
VERDICT = r"(silent|crash|refused|right) → (right|refused|told)"
FAULTS = ("silent", "crash")


def exhibit(path: Path) -> Exhibit:
    """Read the docstring of an exhibit.

    Raises:
        ValueError: it is not of the form that docs/museum.md describes.
    """
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    title, _, rest = text.partition("\n\n")
    pieces = re.split(r"^([A-Z]\w+): ", rest, flags=re.M)
    found = {name: " ".join(words.split()) for name, words in zip(pieces[1::2], pieces[2::2], strict=True)}
    if pieces[0] or tuple(found) not in (PARTS, tuple(p for p in PARTS if p != "Before")) or not all(found.values()):
        raise ValueError(f"{path.name}: after the title come {', '.join(PARTS)} (Before may be missing), in this order")
    if "\n" in title or not title.endswith(".") or found["Area"] not in AREAS:
        raise ValueError(f"{path.name}: the title is one sentence on one line; Area is one of {', '.join(AREAS)}")
    if not (verdict := re.fullmatch(VERDICT, found["Verdict"])) or ("Before" not in found and verdict[1] in FAULTS):
        raise ValueError(f"{path.name}: Verdict is {VERDICT}; without Before, the first is neither of {FAULTS}")
    texts = (title, found["Area"], found["Elsewhere"], found.get("Before", ""), found["Here"])
    return Exhibit(path, *texts, (verdict[1], verdict[2]))


def exhibits() -> list[Exhibit]:
    """Return the exhibits, by area and title."""
    found = map(exhibit, (ROOT / "tests" / "museum").glob("test_*.py"))
    return sorted(found, key=lambda one: (AREAS.index(one.area), one.title))


def museum_overview() -> str:
    """Return the table of all exhibits for docs/museum.md."""
    rows = []
    for one in exhibits():
        heading = one.title.rstrip(".")
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        threads = re.findall(r"(?:[\w.-]+#|(?:[\w-]+ )?PR #|#)\d+|found here|many threads", one.elsewhere)
        rows.append((f"[{heading}](#{anchor})", ", ".join(threads), *one.verdict))
    return table(("What goes wrong", "Threads", "Before", "Here"), rows)


def museum() -> str:
    """Return the exhibits for docs/museum.md."""
    sections: dict[str, list[str]] = {}
    for one in exhibits():
        before = f"- Before: {one.before}\n" if one.before else ""
        link = f"[{one.path.name}](../tests/museum/{one.path.name})"
        sections.setdefault(one.area, []).append(
            f"### {one.title.rstrip('.')}\n\n- Elsewhere: {one.elsewhere}\n{before}- Here: {one.here}\n- Test: {link}"
        )
    return "\n\n".join("\n\n".join([f"## {area.capitalize()}", *texts]) for area, texts in sections.items())


BASES = {"llama-7b": "llama-7b", "llama-13b": "llama-13b", "bloomz-7b": "bloomz-7b1", "gpt-j-6b": "gpt-j-6b"}
"""The bases of the paper, as its rows name them, and as the presets do."""
ADAPTERS_OF_PAPER = ("prefix", "series", "parallel", "lora")


def published_rows(base: str) -> str:
    """Return recipe, accuracies and remarks of each published row of a base, for docs/published."""
    parts = []
    for kind in ADAPTERS_OF_PAPER:
        name, spec = f"{base}-{kind}", RunSpec.load(f"paper/{BASES[base]}-{kind}")
        train, data = spec.train, spec.data
        held = f"{data.validation} rows, every {train.evaluate_every} steps" if data.validation else "none"
        given = spec_presets()[f"paper/{BASES[base]}-{kind}"].fields["adapter"]
        size = ", ".join(f"{key} {json.dumps(value).strip(chr(34))}" for key, value in given.items() if key != "type")
        facts = {
            "Preset": f"`paper/{BASES[base]}-{kind}`",
            "Base": f"`{spec.base}`, {spec.dtype}",
            "Adapter": f"{kind}: {size}",
            "Training": f"{train.epochs:g} epochs, batch {train.batch} ({train.micro_batch} at a time), learning rate "
            f"{train.learning_rate:g}, {train.warmup} steps of warm-up, then {train.schedule}; {train.precision}",
            "Rows": f"`{data.task}`, at most {data.max_tokens} tokens, loss on {data.loss_on}; validation: {held}",
            "Training prompt": f"`{data.template}`",
            "Scoring prompt": f"`{ORIGINAL}`",
            "Scoring": f"{BEAMS} beams; batch {spec.eval.batch}, padding masked; extraction `{RULES['paper']}`",
        }
        parts += [f"## {name}", table(("", ""), [(f"**{key}**", value) for key, value in facts.items()])]
        for one in tables():
            scores = one["rows"].get(name, {})
            parts.append(f"{one['name'].capitalize()} ({one['source']}):")
            parts.append(table([*scores, "mean"], [[f"{x:.1f}" for x in (*scores.values(), fmean(scores.values()))]]))
        parts.append("\n".join(f"- {text}" for text in remarks(name) if text not in common_remarks()))
    return "\n\n".join(parts)


def common_remarks() -> list[str]:
    """Return the remarks on every row that was trained."""
    every = [remarks(f"{base}-{kind}") for base in BASES for kind in ADAPTERS_OF_PAPER]
    return [text for text in every[0] if all(text in other for other in every)]


def published_common() -> str:
    """Return what holds for every published row, for docs/published."""
    return "\n".join(f"- {text}" for text in common_remarks())


def published_references() -> str:
    """Return the published rows of models that were not trained, for docs/published."""
    rows = [
        (
            f"`{name}`",
            one["name"],
            ", ".join(f"{task} {score}" for task, score in scores.items()),
            " ".join(remarks(name)),
        )
        for one in tables()
        for name, scores in one["rows"].items()
        if name.rpartition("-")[0] not in BASES
    ]
    return table(("Row", "Table", "Accuracies", "Made how"), rows)


def published_prompts() -> str:
    """Return the two prompts of the original code, with a dot for every space that a reader could miss."""
    names = {ORIGINAL_TRAINING: "Training", ORIGINAL: "Scoring"}
    texts = {use: TEMPLATES[name].plain for name, use in names.items()}
    shown = {use: re.sub(r"(?m)^ +| +$", lambda found: "·" * len(found[0]), text) for use, text in texts.items()}
    return "\n\n".join(f"{use}:\n\n```text\n{text}\n```" for use, text in shown.items())


TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("docs/published/README.md", "prompts"): published_prompts,
    ("docs/published/README.md", "remarks"): published_common,
    ("docs/published/README.md", "references"): published_references,
    **{(f"docs/published/{base}.md", "rows"): partial(published_rows, base) for base in BASES},
    ("README.md", "methods"): short_table,
    ("docs/adapters.md", "methods"): long_table,
    ("docs/runs.md", "fields"): field_table,
    ("docs/museum.md", "overview"): museum_overview,
    ("docs/museum.md", "exhibits"): museum,
}


def idea(entry: Entry) -> tuple[str, str]:
    """Return the name of a method and its idea, from the first line of its file."""
    name, _, text = entry.idea.rstrip(".").partition(": ")
    return name, text


def parameters(entry: Entry) -> str:
    """Return what the docstring of a method's file gives as its number of parameters."""
    found = re.search(r"^Parameters: (.*?)\.?$\n\n", import_module(entry.module).__doc__ or "", re.M | re.S)
    assert found, f"{entry.module} does not give its number of parameters"
    return " ".join(found[1].split())


def merges_into(entry: Entry) -> str:
    """Return the names of the tensors of the base that merging changes."""
    if entry.cls.merged is None:
        return ""
    injection = inject(tiny(WITH_BIASES), entry.config(type=entry.name, **entry.cls.example))
    return ", ".join(dict.fromkeys(name for key in injection.adapters for name in changed_tensors(injection, key)))


def source(entry: Entry) -> str:
    """Return a link to the paper of a method."""
    number = entry.source.removeprefix("arXiv:")
    return f"[{number}](https://arxiv.org/abs/{number})" if number != entry.source else entry.source


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def updated(text: str, name: str, content: str) -> str:
    """Return a page with what stands between two markers replaced."""
    before, begin, rest = re.split(rf"(<!-- begin {name}[^\n]*-->\n)", text)
    _, end, after = re.split(rf"(<!-- end {name} -->)", rest)
    return f"{before}{begin}\n{content}\n\n{end}{after}"


def _fields(part: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, field in part.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from _fields(type(default), f"{prefix}{name}.")
        else:
            yield f"`{prefix}{name}`", _value(default), field.description or ""


def _value(value: Any) -> str:
    shown = {None: "", True: "true", False: "false", (): "`[]`"}
    return shown[value] if value is None or isinstance(value, bool | tuple) else f"{value}"


def main() -> int:
    """Rewrite the tables, or only say which are out of date."""
    stale = []
    for (page, name), make in TABLES.items():
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        if (new := updated(text, name, make())) != text:
            stale.append(f"{page} ({name})")
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    if stale:
        print("out of date:" if "--check" in sys.argv else "rewritten:", ", ".join(stale))
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
