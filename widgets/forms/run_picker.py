"""Pick a run to look into, among the finished ones that have an adapter; its model stays loaded while it is picked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.results.appearance import looks
from llm_adapters_lab.runs.record import Run, list_runs
from widgets.kit.model_cache import Loaded, load, tidy
from widgets.kit.panel import Panel

NONE = "There is no finished run with an adapter yet. Finish one, then press Refresh."


class PickRun:
    """A list of runs.

    Attributes:
        box: the list.
        renew: button that reads the folder again.
        said: why a run that was asked for is not there.
        widget: all of them.
    """

    def __init__(self, root: str | Path, run_id: str = "") -> None:
        """Read the folder; the newest run is picked unless there is a name.

        Args:
            root: folder of all runs.
            run_id: of the run to pick, or the beginning of it.
        """
        self.root = Path(root)
        self._observers: list[Callable[[], object]] = []
        self._loaded: Loaded | None = None
        self._quiet = False
        self.box: Any = W.Dropdown(description="run", layout=W.Layout(width="440px", max_width="100%"))
        self.renew: Any = W.Button(description="Refresh", tooltip="Read the folder of runs again")
        self.said: Any = W.Label(layout=W.Layout(display="none"))
        self.said.observe(self._show_said, "value")
        wrap = W.Layout(flex_flow="row wrap")
        self.widget: Any = W.VBox([W.HBox([self.box, self.renew], layout=wrap), self.said])
        self.box.observe(self._picked, "value")
        self.renew.on_click(self.refresh)
        self.run_id = run_id

    @property
    def run(self) -> Run | None:
        """The run that is picked."""
        return Run(self.root / self.box.value) if self.box.value else None

    @property
    def run_id(self) -> str:
        """Its id, "" for none; set to an id, the beginning of one, or "" for the newest run."""
        return self.box.value or ""

    @run_id.setter
    def run_id(self, name: str) -> None:
        self._list()
        known = [option for _, option in self.box.options]
        found = [name] if name in known else [option for option in known if option.startswith(name)]
        self.box.value = found[0] if found and (len(found) == 1 or not name) else None
        if name and self.box.value is None:
            several = f"Several runs begin with {name!r}." if found else f"{name} is not finished, or has no adapter."
            self.said.value = f"{several} Pick a run of the list."

    def observe(self, observer: Callable[[], object]) -> None:
        """Call `observer` after another run is picked."""
        self._observers.append(observer)

    async def loaded(self) -> Loaded:
        """Return the run with its model; loading goes on beside the kernel's loop.

        Raises:
            BadSpec: no run is picked.
            LabError: it cannot be loaded.
        """
        if (run := self.run) is None:
            raise BadSpec(self.said.value or NONE)
        found = await asyncio.to_thread(load, run)
        if run == self.run:
            self._loaded = found
        return found

    @property
    def has_loaded(self) -> bool:
        """Whether the model of the run is in memory."""
        return self._loaded is not None

    def close(self) -> None:
        """Let go of the model."""
        if self._loaded is not None:
            self._loaded = None
            tidy()

    def _show_said(self, change: Any) -> None:
        self.said.layout.display = "flex" if change["new"] else "none"

    def _picked(self, change: Any) -> None:
        if not self._quiet:
            self.close()
            self.said.value = ""
            for observer in self._observers:
                observer()

    def refresh(self, button: Any = None) -> None:
        """Read the folder again; the run that is picked stays so, and where there is none the newest is picked."""
        self._list()
        if self.box.value is None:
            self.run_id = ""

    def _list(self) -> None:
        """Read the folder, newest first; what is picked stays so."""
        found = [run for run in reversed(list_runs(self.root)) if run.done and _has_adapter(run)]
        named, before = looks(found), self.box.value
        # Setting the options picks the first one.
        self._quiet = True
        self.box.options = [(f"{named[run.id].name} · {run.id}", run.id) for run in found]
        self.box.value = before if any(run.id == before for run in found) else None
        self._quiet = False
        if self.box.value != before:
            self._picked(None)
        self.said.value = "" if found else NONE


class IntoRun(Panel):
    """A panel that looks into a run.

    Attributes:
        pick: the run.
    """

    def __init__(self, root: str | Path, run_id: str) -> None:
        """Pick the run; see `PickRun`."""
        super().__init__()
        self.pick = PickRun(root, run_id)

    @property
    def run_id(self) -> str:
        """Id of the run, "" for none; set to an id or the beginning of one, or to "" for the newest run."""
        return self.pick.run_id

    @run_id.setter
    def run_id(self, name: str) -> None:
        self.pick.run_id = name

    def refresh(self) -> None:
        """Read the folder of runs again; the run that is picked stays so."""
        self.pick.refresh()

    def close(self) -> None:
        """Let go of the model, and be gone from the page."""
        self.pick.close()
        super().close()


def start(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Begin work in the kernel's loop and go on; outside a kernel, do it."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work())
        return
    task = loop.create_task(work())
    _at_work.add(task)  # a loop itself keeps a task only weakly
    task.add_done_callback(_at_work.discard)


_at_work: set[asyncio.Task[None]] = set()


def _has_adapter(run: Run) -> bool:
    try:
        return run.spec.adapter is not None
    except (LabError, OSError):
        return False  # written by another version, or by hand
