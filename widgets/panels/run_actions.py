"""What can be done with the selected runs: report, download, export, merge; star, tags, baseline and notes."""

from __future__ import annotations

import asyncio
import io
import time
import zipfile
from collections.abc import Callable, Coroutine, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import ipywidgets as W

from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.markup import el
from llm_adapters_lab.privacy import tilde
from llm_adapters_lab.results.exporting import AdapterFormat, export_adapter, export_merged
from llm_adapters_lab.results.formatting import clock, size
from llm_adapters_lab.results.reports import report
from llm_adapters_lab.results.run_index import Entry
from llm_adapters_lab.runs.forecast.size import size_of
from llm_adapters_lab.runs.marks import mark
from llm_adapters_lab.runs.record import Run, write_note
from llm_adapters_lab.runs.restoring import restore
from widgets.kit.delivery import MOST, Delivery
from widgets.kit.elements import button, column, field, segments, show_if, text_area, toolbar
from widgets.kit.loaded_runs import free_memory
from widgets.kit.markdown import markdown
from widgets.kit.panel import Panel, error_markup, guarded, schedule
from widgets.kit.workspace import Workspace

T = TypeVar("T")
MERGED = "merged"
FORMATS = [("peft adapter", "peft"), ("lab adapter", "lab"), ("merged model", MERGED)]
WHAT = {
    "peft": "The adapter for peft, with a model card.",
    "lab": "The adapter in the lab's own format, with a model card.",
    MERGED: "The base with the adapter merged into its weights, for transformers and what reads its folders.",
}


class RunActions(Panel):
    """A row of actions on the selected runs; star, tags and Report are for all of them, the others for a single one.

    Attributes:
        delivery: the file that was handed to the browser last.
        status: what it is doing, or has done.
    """

    def __init__(self, workspace: Workspace | str | Path = "runs") -> None:
        """Build the row for the current selection."""
        super().__init__()
        self.workspace = Workspace.of(workspace)
        self._busy, self._edited = False, ("", "")
        self._build()
        for shared in (self.workspace.selection, self.workspace.runs):
            shared.observe(self._update)
        self._update()

    @property
    def entries(self) -> list[Entry]:
        """The selected runs that exist."""
        known = self.workspace.runs.entries
        return [known[run_id] for run_id in self.workspace.selection.ids if run_id in known]

    def close(self) -> None:
        """Remove the row; what is being written is finished."""
        for shared in (self.workspace.selection, self.workspace.runs):
            shared.unobserve(self._update)
        self.delivery.clear()
        super().close()

    async def write_report(self) -> None:
        """Write the report of the selected runs under the root, and offer it."""
        runs = [entry.run for entry in self.entries]
        path = report_path(self.workspace.root, [run.id for run in runs])
        if await self._work(f"Writing the report of {_counted(runs)}", lambda: report(runs, path)):
            self._say(f"Report, {size(path.stat().st_size)}: ", el("code", _shown(path)))
            self._offer(path)

    async def download(self) -> None:
        """Hand the adapter of the selected run to the browser, as a zip file."""
        run = self._single().run
        packed = await self._work("Packing the adapter", lambda: pack(run))
        if packed is not None:
            self.delivery.deliver(f"{run.id}.zip", packed)
            self._say(f"Adapter, {size(len(packed))}: sent to the browser.")

    async def export(self) -> None:
        """Write the adapter or the merged model of the selected run to the folder that is named."""
        entry, kind, folder = self._single(), self.format.value, Path(self.folder.value).expanduser()
        words = f"Writing the {next(name for name, value in FORMATS if value == kind)}"
        remarks = await self._work(words, lambda: write(entry, kind, folder))
        if remarks is not None:
            written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            show_if(False, self.form)
            self._say(f"Saved, {size(written)}: ", el("code", _shown(folder)), *(f" {text}" for text in remarks))

    def _build(self) -> None:
        self.head, self.status, self.delivery = W.HTML(), W.HTML(), Delivery()
        self.head.add_class("lab-grow")
        self.star = W.ToggleButton(description="☆", tooltip="Star", layout=W.Layout(width="34px"))
        self.star.add_class("lab-star")
        self.baseline = W.ToggleButton(description="Baseline", tooltip="Compare other runs with this one")
        self.tags = field(W.Text, "", "128px", placeholder="tags: good, talk", continuous_update=False)
        self.tags.tooltip = "Tags of the selected runs, separated by commas"
        self.notes = W.ToggleButton(description="Notes", tooltip="Write a note on this run, in Markdown")
        for toggle in (self.baseline, self.notes):
            toggle.add_class("lab-toggle")
        self.report = button("Report", "Write an HTML report of the selected runs", click=self._then(self.write_report))
        self.adapter = button("Download adapter", "Save the adapter as a zip file", click=self._then(self.download))
        self.exporting = button("Export …", "Save the adapter for peft or the lab", click=lambda _: self._ask("peft"))
        self.merging = button("Merge …", "Save the base with the adapter merged", click=lambda _: self._ask(MERGED))
        self.format = segments(FORMATS, "What is saved")
        self.folder = field(W.Text, "to folder", "auto").add_class("lab-grow")
        self.size = W.HTML()
        self.save = button("Save", "Write the folder", "primary", click=self._then(self.export))
        self.cancel = button("Cancel", "Close this form", click=lambda _: show_if(False, self.form))
        self.form = W.VBox(
            [toolbar(self.format, self.folder, self.save, self.cancel), self.size], layout=W.Layout(width="auto")
        )
        self.text, self.preview = text_area("Note in Markdown", 6, continuous_update=False), W.HTML()
        self.text.placeholder = "A note in Markdown; it is saved when you leave the field."
        self.note = W.GridBox([self.text, self.preview]).add_class("lab-notes")
        self.fetch = button("Download report", "Save the report through the browser")
        self.fetch.on_click(self._fetch)
        line = toolbar(self.status, self.fetch, self.delivery.widget).add_class("lab-actions-status")
        marks = (self.star, self.head, self.tags, self.baseline, self.notes)
        rows = toolbar(*marks, self.report, self.adapter, self.exporting, self.merging)
        self.widget = column(rows, self.form, self.note, line, self.problem, css="lab-actions")
        show_if(False, self.form, self.note, self.fetch, line)
        self._line = line
        self.star.observe(self._starred, "value")
        self.baseline.observe(self._based, "value")
        self.tags.observe(self._tagged, "value")
        self.text.observe(self._noted, "value")
        self.notes.observe(self._update, "value")
        self.format.observe(self._described, "value")

    @guarded
    def _update(self, _: Any = None) -> None:
        """Show the selected runs."""
        entries = self.entries
        single = entries[0] if len(entries) == 1 else None
        adapted = bool(single and single.state.name == "finished" and single.fields.get("adapter.type"))
        held = sum(path.stat().st_size for path in _files(single.run)) if single and adapted else 0
        with self.silently():
            name = self.workspace.runs.names.get(single.id, single.id) if single else _counted(entries)
            self.head.value = el("b", name, title=single.id if single else "")
            self.star.value = bool(entries) and all(entry.marks.star for entry in entries)
            self.star.description = "★" if self.star.value else "☆"
            self.baseline.value = bool(single and single.marks.baseline)
            self.tags.value = ", ".join(_common(entries))
            self.notes.description = "Notes ●" if single and single.note else "Notes"
            if self._edited != (shown := (single.id if single else "", single.note if single else "")):
                self._edited = shown
                self.text.value = single.note if single else ""
                self.preview.value = markdown(self.text.value)
        self.adapter.description = f"Download adapter ({size(held)})" if held else "Download adapter"
        only = (self.adapter, self.exporting, self.merging)
        for widget in (*only, self.save):
            widget.disabled = self._busy or not adapted
        for widget in (self.baseline, self.notes, self.text):
            widget.disabled = single is None
        for widget in (self.star, self.tags):
            widget.disabled = not entries
        self.report.disabled = self._busy or not entries
        show_if(self.notes.value and single, self.note)
        if not adapted:
            show_if(False, self.form)

    def _single(self) -> Entry:
        if len(entries := self.entries) != 1:
            raise BadSpec(f"This is for a single run; selected are {len(entries)}.")
        return entries[0]

    def _then(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[Any], None]:
        async def told() -> None:
            try:
                await work()
            except Exception as error:
                self.problem.value, self.problem_of = error_markup(error), work.__name__

        return lambda _: schedule(told)

    async def _work(self, words: str, work: Callable[[], T]) -> T | None:
        """Do heavy work in a thread, and return its result; None if it fails, which is shown, or another is active."""
        if self._busy:
            return None
        self._busy, began, self.problem.value, self.problem_of = True, time.monotonic(), "", ""
        self.delivery.clear()
        show_if(False, self.fetch)
        self._update()
        try:
            task = asyncio.ensure_future(asyncio.to_thread(work))
            while not task.done():
                self._say(f"{words} … {clock(time.monotonic() - began)}")
                await asyncio.wait({task}, timeout=1)
            return task.result()
        except Exception as error:
            self._say("")
            self.problem.value, self.problem_of = error_markup(error), words
            return None
        finally:
            self._busy = False
            self._update()

    def _say(self, *parts: str) -> None:
        self.status.value = el("span", *parts, role="status") if any(parts) else ""
        show_if(self.status.value, self._line)

    def _offer(self, path: Path) -> None:
        self._report = path
        show_if(True, self.fetch)

    @guarded
    def _fetch(self, _: Any) -> None:
        self.delivery.deliver(self._report.name, self._report.read_bytes())

    @guarded
    def _ask(self, kind: str) -> None:
        """Open the form that asks what is saved, and where."""
        with self.silently():
            self.format.value = kind
        show_if(True, self.form)
        self._described()

    @guarded
    def _described(self, _: Any = None) -> None:
        if self.quiet:
            return
        entry, kind = self._single(), self.format.value
        self.folder.value = _shown(self.workspace.root.parent / "exports" / f"{entry.id}-{kind}")
        self.size.value = el("div", WHAT[kind], class_="lab-note")

        async def measure() -> None:
            held = await asyncio.to_thread(size_on_disk, entry, kind)
            if (self.format.value, self.workspace.selection.first) == (kind, entry.id):
                self.size.value = el("div", f"{WHAT[kind]} About {size(held)} on disk.", class_="lab-note")

        self._then(measure)(None)

    @guarded
    def _starred(self, _: Any) -> None:
        if not self.quiet:
            for entry in self.entries:
                mark(entry.run, star=self.star.value)
            self.workspace.runs.refresh()

    @guarded
    def _based(self, _: Any) -> None:
        if not self.quiet:
            mark(self._single().run, baseline=self.baseline.value)
            self.workspace.runs.refresh()

    @guarded
    def _tagged(self, _: Any) -> None:
        """Give all selected runs the tags that are typed; those that only some have stay."""
        if self.quiet:
            return
        entries = self.entries
        common, typed = _common(entries), [tag for part in self.tags.value.split(",") if (tag := part.strip())]
        for entry in entries:
            mark(entry.run, tags=[*(tag for tag in entry.marks.tags if tag not in common), *typed])
        self.workspace.runs.refresh()

    @guarded
    def _noted(self, _: Any) -> None:
        if not self.quiet:
            write_note(self._single().run, self.text.value)
            self.preview.value = markdown(self.text.value)
            self.workspace.runs.refresh()


def report_path(root: Path, ids: Sequence[str]) -> Path:
    """Return the file for the report of some runs; the same for the same runs."""
    others = f"-and-{len(ids) - 1}-{sha256(' '.join(ids).encode()).hexdigest()[:6]}" if len(ids) > 1 else ""
    return root / f"report-{ids[0] if ids else ''}{others}.html"


def pack(run: Run) -> bytes:
    """Return the adapter of a run, its spec and its summary as a zip file.

    Raises:
        LabError: it is too large for the browser.
    """
    files = [*_files(run), run.folder / "spec.json", run.folder / "summary.json"]
    if (held := sum(path.stat().st_size for path in files)) > MOST:
        raise LabError(
            f"The adapter has {size(held)}, and at most {size(MOST)} go through the browser. Copy it from "
            f"{_shown(run.folder / 'adapter')}."
        )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            kind = zipfile.ZIP_STORED if path.suffix == ".safetensors" else None  # it hardly gets smaller
            archive.write(path, f"{run.id}/{path.relative_to(run.folder)}", kind)
    return packed.getvalue()


def write(entry: Entry, kind: str, folder: Path) -> list[str]:
    """Write the adapter of a run, or its merged model, and return what should be known of it.

    Raises:
        LabError: it cannot be restored, converted, merged or written.
    """
    base, injection = restore(entry.run)
    if injection is None:
        raise BadSpec(f"The run {entry.id} evaluates the bare base; it has no adapter.")
    try:
        if kind == MERGED:
            return export_merged(base, injection, folder)
        format: AdapterFormat = "peft" if kind == "peft" else "lab"
        export_adapter(base, injection, folder, format, entry.run)
        return []
    finally:
        del base, injection
        free_memory()


def size_on_disk(entry: Entry, kind: str) -> int:
    """Return about how many bytes an export takes.

    Raises:
        LabError: the base cannot be read.
    """
    if kind == MERGED:
        return size_of(entry.run.spec).weights
    return sum(path.stat().st_size for path in _files(entry.run))


def _files(run: Run) -> list[Path]:
    return sorted(path for path in (run.folder / "adapter").glob("*") if path.is_file() and not path.is_symlink())


def _shown(path: Path) -> str:
    """Return a path, as short as it can be typed here."""
    full, here = path.resolve(), Path.cwd()
    return str(full.relative_to(here)) if full.is_relative_to(here) else tilde(str(full))


def _common(entries: Sequence[Entry]) -> list[str]:
    first = entries[0].marks.tags if entries else ()
    return [tag for tag in first if all(tag in entry.marks.tags for entry in entries)]


def _counted(runs: Sequence[Any]) -> str:
    return "1 run" if len(runs) == 1 else f"{len(runs)} runs selected" if runs else "No run is selected"
