"""Panels that export a spec as code, and load one from a file or a preset."""

from __future__ import annotations

import pprint
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as W
import yaml

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.notebook_parameters import LIMITS
from llm_adapters_lab.runs.presets import fields_in, spec_presets
from llm_adapters_lab.runs.spec import RunSpec
from widgets.forms.form import labelled
from widgets.kit.draft import Draft, explicit
from widgets.kit.elements import button, row, text_area
from widgets.kit.panel import Panel, errors_in, guarded, note

NOTEBOOK = "papermill_runs/run.ipynb"
FORMS = ("YAML", "Python", "CLI", "papermill")


def file_name(spec: RunSpec) -> str:
    """Return the file name of the YAML in the commands."""
    return f"{spec.id}.yaml"


def as_code(spec: RunSpec, draft: Draft | None = None) -> dict[str, str]:
    """Return a spec as code, by form; fields with default values are left out, except for those that decide most.

    Args:
        spec: of one run.
        draft: with several runs, which become a sweep.
    """
    if draft is not None and len(draft.points) > 1:
        return _sweep_code(draft)
    fields, file = explicit(spec), file_name(spec)
    plain = pprint.pformat(fields, sort_dicts=False, width=100)
    command = ["python", "-m", "llm_adapters_lab", "run", file]
    papermill = ["papermill", NOTEBOOK, f"{spec.id}.ipynb", "-f", file, *LIMITS, "--log-output"]
    return {
        "YAML": f"# {spec.id}\n" + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True),
        "Python": f"from llm_adapters_lab import RunSpec, run\n\nspec = RunSpec.parse({plain})\nrecord = run(spec)\n",
        "CLI": shlex.join(command),
        "papermill": shlex.join(papermill),
    }


def _sweep_code(draft: Draft) -> dict[str, str]:
    file = "my-sweep.yaml"
    plain = pprint.pformat(dict(draft.fields), sort_dicts=False, width=100)
    command = ["python", "-m", "llm_adapters_lab", "sweep", file]
    return {
        "YAML": f"# {file}: {draft.count()}\n{draft.sweep_file()}",
        "Python": f"from llm_adapters_lab import Sweep, sweep\n\nruns = sweep(Sweep.parse({plain}))\n",
        "CLI": shlex.join(command),
    }


class ExportPanel(Panel):
    """A spec as code in several forms, to read, and a button that saves the YAML file."""

    def __init__(self, spec: RunSpec | None = None, folder: str | Path = ".") -> None:
        """Show a spec; `folder` is the working directory of the commands."""
        super().__init__()
        self.folder = Path(folder)
        self.texts = {name: text_area(name, 12 if name in ("YAML", "Python") else 2) for name in FORMS}
        self.save, self.status = button("Save YAML file", disabled=True, click=self._save), W.HTML()
        tabs = W.Tab(list(self.texts.values()), titles=list(FORMS), selected_index=0)
        self.widget = W.VBox([tabs, row(self.save, self.status)])
        self.spec = spec

    @property
    def spec(self) -> RunSpec | None:
        """The exported spec; None shows nothing."""
        return self._spec

    @spec.setter
    def spec(self, spec: RunSpec | None) -> None:
        self.show(spec)

    def show(self, spec: RunSpec | None, draft: Draft | None = None) -> None:
        """Show a spec, or a draft with several runs."""
        self._spec, self.status.value = spec, ""
        self.save.disabled = spec is None
        code = as_code(spec, draft) if spec else {}
        for name in FORMS:
            self.texts[name].value = code.get(name, "")

    def _save(self, _: Any) -> None:
        if self._spec is None:
            return
        with errors_in(self.status):
            path = self.folder / file_name(self._spec)
            path.write_text(as_code(self._spec)["YAML"], encoding="utf-8")
            self.status.value = note(f"Saved as {path}")


class UploadPanel(Panel):
    """A spec from an uploaded YAML or JSON file, from a path where the kernel runs, or from a preset."""

    def __init__(self, listener: Callable[[RunSpec], None]) -> None:
        """Build the panel; `listener` is called with every spec that is loaded."""
        super().__init__()
        self._listener = listener
        self.upload = W.FileUpload(accept=".yaml,.yml,.json", multiple=False, description="Upload a file")
        presets = list(spec_presets())
        look: dict[str, Any] = {"style": {"description_width": "initial"}, "placeholder": "my-run.yaml"}
        self.path = labelled(W.Combobox, "path or preset", options=presets, ensure_option=False, **look)
        self.load, self.status = button("Load", click=self._load), W.HTML()
        self.upload.observe(self._uploaded, "value")
        self.widget = W.VBox([self.upload, W.HBox([self.path, self.load]), self.status, self.problem])

    @guarded
    def _load(self, _: Any) -> None:
        self.status.value, name = "", self.path.value.strip()
        if not name:
            raise BadSpec("Enter the path of a spec file, or choose a preset.")
        self._take(name, RunSpec.load(name))

    @guarded
    def _uploaded(self, change: Any) -> None:
        self.status.value = ""
        if change["new"]:
            (file,) = change["new"]
            self.upload.value = ()  # so that the same file can be uploaded again
            self._take(file["name"], RunSpec.parse(fields_in(bytes(file["content"]), file["name"])))

    def _take(self, name: str, spec: RunSpec) -> None:
        self._listener(spec)
        self.status.value = note(f"Loaded {name}: {spec.id}")
