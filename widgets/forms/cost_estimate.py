"""Costs: the memory and the time that a run will take, worked out while its spec is being edited.

The memory is found by a process of its own, at low priority: it builds the model without numbers, which takes seconds,
draws random numbers and would hold up the kernel. A spec that changes meanwhile ends it.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import statistics
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.markup import el
from llm_adapters_lab.runs.forecast.duration import alike
from llm_adapters_lab.runs.forecast.size import size
from llm_adapters_lab.runs.processes import command
from llm_adapters_lab.runs.spec import RunSpec
from widgets.forms.adapter_info import amount
from widgets.kit.errors import message, why

TIGHT = 0.8
"""Share of the memory from which on it is tight: the libraries and other programs need some too."""
NICE = 10


class Costs:
    """Two lines on a spec.

    Attributes:
        widget: what is shown.
    """

    def __init__(self, root: str | Path = "runs", *, wait: float = 1.0) -> None:
        """Show nothing yet.

        Args:
            root: folder of all runs, which know how long they took.
            wait: seconds without a change before anything is worked out.
        """
        self.root, self.wait = Path(root).resolve(), wait
        self.widget: Any = W.HTML()
        self._spec: RunSpec | None = None
        self._task: asyncio.Task[None] | None = None
        self._known: dict[str, str] = {}

    def show(self, spec: RunSpec | None) -> None:
        """Work out what a spec costs, beside the kernel's loop; None shows nothing."""
        if spec == self._spec:
            return
        if self._task:
            self._task.cancel()
        self._spec, self._task, self.widget.value = spec, None, ""
        if spec is not None:
            with suppress(RuntimeError):  # no kernel
                self._task = asyncio.get_running_loop().create_task(self._soon(spec))

    async def work_out(self, spec: RunSpec) -> None:
        """Work out and show what a spec costs."""
        time = _line("Time", await asyncio.to_thread(_time, spec, self.root))
        self.widget.value = time + _line("Memory", "being worked out …")
        try:
            memory = self._known[spec.id] = self._known.get(spec.id) or await _memory(spec)
        except Exception as error:
            memory = f"not known. {why(error)}"
        self.widget.value = time + _line("Memory", memory)

    async def _soon(self, spec: RunSpec) -> None:
        await asyncio.sleep(self.wait)
        await self.work_out(spec)


def _line(name: str, words: str) -> str:
    if words.startswith("✗ "):
        return message(f"{name}: {words.removeprefix('✗ ')}")
    return el("div", el("b", f"{name}: "), words, style="line-height: 1.4")


def _time(spec: RunSpec, root: Path) -> str:
    times = alike(spec, root)
    if not times:
        return "not known yet; a finished run with this base, data, batch, steps and scoring would tell."
    took = datetime.timedelta(seconds=max(1, round(statistics.median(times))))
    return f"about {took}, " + (
        f"the median of {len(times)} runs like it." if len(times) > 1 else "as a run like it took."
    )


async def _memory(spec: RunSpec) -> str:
    """Return how much memory a run needs, and whether the machine has it.

    Raises:
        LabError: that cannot be known; the message says why.
    """
    if spec.adapter is None:
        found = await _doctor()
        weights = size(spec.base, None, spec.dtype, trust_remote_code=spec.trust_remote_code).weights
        return fits("the weights take", weights, found["available"])
    if get_adapter(spec.adapter.type).cls.__module__ == "__main__":
        raise BadSpec(f"{spec.adapter.type} is defined in this notebook, where the process that looks cannot see it.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps(spec.model_dump(mode="json")), encoding="utf-8")
        found = await _doctor(str(path))
    if found["memory"] is None:
        raise BadSpec("The model cannot be run without numbers.")
    return fits("training takes at its largest step about", found["memory"]["total"], found["available"])


def fits(takes: str, needed: int, available: int) -> str:
    """Return in words whether so many bytes fit into a machine; 0 available: that is not known."""
    words = f"{takes} {amount(needed)}"
    if not available:
        return f"{words}."
    of = f"the {amount(available)} of this machine"
    if needed > available:
        return f"✗ {words}, more than {of}: it does not fit."
    return f"{words} of {of}: " + ("✓ it fits." if needed < TIGHT * available else "it will be tight.")


async def _doctor(*words: str) -> dict[str, Any]:
    line, environment = command("doctor", *words, "--json")
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*line, env=environment, stdout=pipe, stderr=pipe)
    try:
        os.setpriority(os.PRIO_PROCESS, child.pid, NICE)
        out, said = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        raise BadSpec(said.decode(errors="replace").rpartition("error: ")[2].strip())
    found: dict[str, Any] = json.loads(out)
    return found
