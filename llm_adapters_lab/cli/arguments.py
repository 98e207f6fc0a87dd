"""The arguments and options that several commands take, and how a shell completes them."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from glob import escape as glob_escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args, get_origin

import typer

if TYPE_CHECKING:
    from llm_adapters_lab.runs.record import Run
    from llm_adapters_lab.runs.spec import RunSpec

SPEC_FILES = (".yaml", ".yml", ".json")
RUN_HELP = "Id of a run or any unambiguous prefix of it, a run folder, a spec file or the name of a preset."
RESULTS = ("accuracy", "trainable", "begun", "state", "id", "star", "tag", "baseline")
"""What runs can be sorted and filtered by besides the fields of their specs."""
SPEC_HELP = "Spec file (YAML or JSON), or the name of a preset; see `presets`."


def completer(*sources: str) -> Callable[[str], list[str]]:
    """Return a completion that offers the names which functions of the lab return, given as "module:function"."""

    def complete(incomplete: str) -> list[str]:
        found = (source.partition(":") for source in sources)
        listed = (getattr(importlib.import_module(f"llm_adapters_lab.{module}"), name)() for module, _, name in found)
        return _beginning((name for names in listed for name in names), incomplete)

    return complete


complete_adapters = completer("core.registry:all_adapters", "runs.presets:adapter_presets")
complete_presets = completer("runs.presets:spec_presets")
complete_tasks = completer("tasks.registry:all_tasks")
complete_published = completer("results.published_results:names")


def complete_files(incomplete: str) -> list[str]:
    """Return spec files, and folders with a slash behind them; instead of a single folder, what it contains."""
    folder, slash, begin = incomplete.rpartition("/")
    found = sorted(path for path in Path(folder + slash or ".").glob(f"{glob_escape(begin)}*") if path.name[0] != ".")
    named = [f"{folder}{slash}{path.name}{'/' * path.is_dir()}" for path in found]
    found_specs = [name for name in named if name.endswith(("/", *SPEC_FILES))]
    is_folder = len(found_specs) == 1 and found_specs[0].endswith("/")
    return (complete_files(found_specs[0]) if is_folder else []) or found_specs


def complete_specs(incomplete: str) -> list[str]:
    """Return the names of presets, spec files and folders."""
    return complete_presets(incomplete) + complete_files(incomplete)


def complete_runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the ids of runs under --root, the names of presets, and spec files."""
    ids = sorted(path.parent.name for path in Path(ctx.params.get("root") or "runs").glob("*/spec.json"))
    return _beginning(ids, incomplete) + complete_specs(incomplete)


def complete_changes(incomplete: str) -> list[str]:
    """Return the fields of a spec as "field=", and the values of those that name a task or an adapter."""
    key, equals, value = incomplete.partition("=")
    fields = _fields()
    if equals:
        known = {"data.task": complete_tasks, "eval.tasks": complete_tasks, "adapter": complete_adapters}
        offered = known[key](value) if key in known else _beginning(fields.get(key, ()), value)
        return [f"{key}={name}" for name in offered]
    found = _beginning(fields, incomplete)
    # A single field has two completions, so that the shell does not add a blank after "=".
    defaults = [f"{found[0]}={value}" for value in fields[found[0]][:1]] if len(found) == 1 else []
    return [f"{field}=" for field in found] + defaults


def complete_columns(incomplete: str) -> list[str]:
    """Return what runs can be sorted by: the fields of a spec, with and without their groups, and their results."""
    names = [*RESULTS, *(field.rpartition(".")[2] for field in _fields()), *_fields()]
    return _beginning(dict.fromkeys(names), incomplete)


def _fields() -> dict[str, list[str]]:
    """Return the fields of a spec by dotted key, each with its default and the values among which it chooses."""
    from pydantic import BaseModel

    from llm_adapters_lab.core.registry import all_adapters
    from llm_adapters_lab.runs.spec import RunSpec

    found: dict[str, list[str]] = {}

    def add(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            default = [] if field.is_required() else [field.get_default(call_default_factory=True)]
            if isinstance(next(iter(default), None), BaseModel):
                add(type(default[0]), f"{prefix}{name}.")
                continue
            kinds = (field.annotation, *get_args(field.annotation))
            named = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
            values = [*default, *named, *([True, False] if field.annotation is bool else [])]
            texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
            found[prefix + name] = list(dict.fromkeys([*found.get(prefix + name, ()), *filter(None, texts)]))

    add(RunSpec, "")
    for entry in all_adapters().values():
        add(entry.config, "adapter.")
    return found


def join_words(environment: MutableMapping[str, str]) -> str:
    """Undo that bash splits words at "=" for completion, as in `--set adapter=hou`, which typer does not know.

    Returns:
        The beginning of the word, such as "adapter=", that bash keeps and does not want repeated; "" for none.
    """
    if environment.get("_LLM_ADAPTERS_LAB_COMPLETE") != "complete_bash" or "\n=" not in environment["COMP_WORDS"]:
        return ""
    words, current = environment["COMP_WORDS"].split("\n"), int(environment["COMP_CWORD"])
    joined: list[str] = []
    for index, word in enumerate(words[: current + 1]):
        if joined and (word == "=" or words[index - 1] == "="):
            joined[-1] += word
        else:
            joined.append(word)
    environment.update(COMP_WORDS="\n".join(joined), COMP_CWORD=str(len(joined) - 1))
    begin, equals, _ = joined[-1].rpartition("=")
    return begin + equals


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


RunName = Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP, autocompletion=complete_runs)]
RunNames = Annotated[list[str], typer.Argument(metavar="RUN", help=RUN_HELP, autocompletion=complete_runs)]
SpecName = Annotated[Path, typer.Argument(metavar="SPEC", help=SPEC_HELP, autocompletion=complete_specs)]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a field of the spec, e.g. adapter.rank=16. May be repeated.",
        autocompletion=complete_changes,
    ),
]
Root = Annotated[Path, typer.Option("--root", metavar="FOLDER", help="Folder of all runs.")]


def load_spec(path: Path, changes: Sequence[str] | None = None) -> RunSpec:
    """Load a spec and change it by texts of the form key=value."""
    from llm_adapters_lab.config import assignments
    from llm_adapters_lab.runs.spec import RunSpec

    return RunSpec.load(path, assignments(changes or ()))


def find(name: str, root: Path) -> Run:
    """Return the run that an argument means; see `RUN_HELP`.

    Raises:
        BadSpec: there is none, or several.
    """
    from llm_adapters_lab.runs.presets import is_spec
    from llm_adapters_lab.runs.record import Run, find_run

    if is_spec(name):
        return find_run(load_spec(Path(name)).id, root)
    # `Path.is_file` raises an error for some names that cannot exist.
    return Run(Path(name)) if os.path.isfile(Path(name) / "spec.json") else find_run(name, root)
