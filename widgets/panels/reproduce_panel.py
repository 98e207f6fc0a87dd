"""The same run without a browser: a spec as YAML, Python, papermill and command line."""

from __future__ import annotations

import pprint
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as W
import yaml

from llm_adapters_lab.runs.notebook_parameters import LIMITS
from llm_adapters_lab.runs.spec import RunSpec
from widgets.kit.copy_button import CopyButton
from widgets.kit.errors import message, note, why
from widgets.kit.panel import Panel

NOTEBOOK = "papermill_runs/run.ipynb"


def short(spec: RunSpec) -> dict[str, Any]:
    """Return the fields that differ from their defaults: enough to make the spec again."""
    fields = spec.model_dump(mode="json", exclude_defaults=True)
    if spec.adapter is not None:
        fields["adapter"] = {"type": spec.adapter.type, **fields["adapter"]}
    return {"base": spec.base, **fields}


def file_name(spec: RunSpec) -> str:
    """Return the name under which the other commands look for the YAML."""
    return f"{spec.id}.yaml"


def as_yaml(spec: RunSpec) -> str:
    """Return the spec as a YAML file; what is not in it has its default."""
    return f"# {spec.id}\n" + yaml.safe_dump(short(spec), sort_keys=False, allow_unicode=True)


def as_python(spec: RunSpec) -> str:
    """Return the lines that do the run in Python."""
    fields = pprint.pformat(short(spec), sort_dicts=False, width=100)
    lines = ["from llm_adapters_lab import RunSpec, run", "", f"spec = RunSpec.parse({fields})", "record = run(spec)"]
    return "\n".join(lines) + "\n"


def as_command(spec: RunSpec, file: str | None = None) -> str:
    """Return the command line that does the run from the YAML file."""
    return shlex.join(["python", "-m", "llm_adapters_lab", "run", file or file_name(spec)])


def as_papermill(spec: RunSpec, file: str | None = None) -> str:
    """Return the papermill line that does the run from the YAML file, in the run notebook."""
    out = f"{spec.id}.ipynb"
    return shlex.join(["papermill", NOTEBOOK, out, "-f", file or file_name(spec), *LIMITS, "--log-output"])


FORMS: dict[str, Callable[[RunSpec], str]] = {
    "YAML": as_yaml,
    "Python": as_python,
    "command line": as_command,
    "papermill": as_papermill,
}


class HandOver(Panel):
    """Texts to copy, and a button that saves the YAML file the commands read.

    Attributes:
        widget: what is shown.
        texts: by form.
        copies: the button of each text.
        save: writes the YAML into `folder`.
        said: where it was written, or why not.
    """

    def __init__(self, spec: RunSpec | None = None, folder: str | Path = ".") -> None:
        """Show a spec; `folder` is where the notebook's commands will be run."""
        super().__init__()
        self.folder, self._spec = Path(folder), spec
        self.texts: dict[str, Any] = {
            name: W.Textarea(tooltip=name, rows=12 if name in ("YAML", "Python") else 2, layout=W.Layout(width="98%"))
            for name in FORMS
        }
        self.save: Any = W.Button(description="Save the YAML file", disabled=True, layout=W.Layout(width="auto"))
        self.save.on_click(self._save)
        self.said: Any = W.HTML()
        self.copies = {name: CopyButton(label=f"Copy the {name}") for name in FORMS}
        pages = [W.VBox([text, self.copies[name]]) for name, text in self.texts.items()]
        tabs = W.Tab(pages, titles=list(self.texts), selected_index=0)
        self.widget: Any = W.VBox([tabs, W.HBox([self.save, self.said])])
        self.spec = spec

    @property
    def spec(self) -> RunSpec | None:
        """The spec that is shown; None shows nothing."""
        return self._spec

    @spec.setter
    def spec(self, spec: RunSpec | None) -> None:
        self._spec, self.said.value = spec, ""
        self.save.disabled = spec is None
        for name, write in FORMS.items():
            self.texts[name].value = self.copies[name].text = write(spec) if spec else ""

    def _save(self, _: Any) -> None:
        if self._spec is None:
            return
        try:
            path = self.folder / file_name(self._spec)
            path.write_text(as_yaml(self._spec), encoding="utf-8")
            self.said.value = note(f"written: {path}")
        except OSError as error:
            self.said.value = message(why(error))
