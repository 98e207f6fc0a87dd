"""Load: a spec from a file of this computer, from a path, or by the name of a preset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as W

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.presets import fields_in, spec_presets
from llm_adapters_lab.runs.spec import RunSpec
from widgets.forms.controls import NAME_WIDTH, WIDTH
from widgets.kit.errors import guarded, note
from widgets.kit.panel import Panel

KINDS = ".yaml,.yml,.json"


class LoadSpec(Panel):
    """A place for a file, and one for a path.

    Attributes:
        upload: takes a YAML or JSON file from where the page is shown.
        path: of a file where the kernel runs, or a preset's name.
        load: reads it.
        said: what was loaded.
    """

    def __init__(self, listener: Callable[[RunSpec], None]) -> None:
        """Build it; `listener` is called with every spec that was loaded."""
        super().__init__()
        self._listener = listener
        self.upload: Any = W.FileUpload(accept=KINDS, multiple=False, description="Upload a file")
        self.path: Any = W.Combobox(
            **{"description": "path or preset", "options": list(spec_presets()), "ensure_option": False},
            **{"placeholder": "my-run.yaml", "style": {"description_width": NAME_WIDTH}, "layout": {"width": WIDTH}},
        )
        self.load: Any = W.Button(description="Load")
        self.said = W.HTML()
        self.upload.observe(self._uploaded, "value")
        self.load.on_click(self._load)
        self.widget: Any = W.VBox([self.upload, W.HBox([self.path, self.load]), self.said, self.problem])

    @guarded
    def _load(self, _: Any) -> None:
        self.said.value, name = "", self.path.value.strip()
        if not name:
            raise BadSpec("Write the path of a spec file, or choose a preset.")
        self._take(name, RunSpec.load(name))

    @guarded
    def _uploaded(self, change: Any) -> None:
        self.said.value = ""
        if change["new"]:
            (file,) = change["new"]
            self.upload.value = ()  # the same file may be loaded again
            self._take(file["name"], RunSpec.parse(fields_in(bytes(file["content"]), file["name"])))

    def _take(self, name: str, spec: RunSpec) -> None:
        self._listener(spec)
        self.said.value = note(f"{name} is now in the panels: {spec.id}")
