"""The time and memory that a run will need, estimated while its spec is edited.

The memory is estimated in a separate process of low priority that waits for such orders (`kit.warm`), since a training
step on fake tensors draws random numbers and would block the kernel. The next change of the spec ends the estimate.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.markup import el
from llm_adapters_lab.results.formatting import about, size
from llm_adapters_lab.runs.forecast.duration import estimate
from llm_adapters_lab.runs.spec import RunSpec
from widgets.kit import warm
from widgets.kit.panel import error_text, message

TIGHT = 0.8
"""Share of the available memory above which it is called tight: libraries and other programs need some, too."""


class CostEstimate:
    """Two lines about a spec: time and memory."""

    def __init__(self, root: str | Path = "runs", *, wait: float = 0.3) -> None:
        """Show nothing yet; an estimate starts after `wait` seconds without a change."""
        self.root, self.wait = Path(root).resolve(), wait
        self.widget = W.HTML()
        self._spec: RunSpec | None = None
        self._task: asyncio.Task[None] | None = None
        self._known: dict[str, str] = {}

    def show(self, spec: RunSpec | None) -> None:
        """Estimate the cost of a spec without blocking the kernel's event loop; None shows nothing."""
        if spec == self._spec:
            return
        if self._task:
            self._task.cancel()
        self._spec, self._task, self.widget.value = spec, None, ""
        if spec is not None:
            with suppress(RuntimeError):  # no kernel
                self._task = asyncio.get_running_loop().create_task(self.estimate(spec, self.wait))

    async def estimate(self, spec: RunSpec, wait: float = 0) -> None:
        """Estimate and show the cost of a spec, after `wait` seconds."""
        await asyncio.sleep(wait)
        await asyncio.to_thread(warm.prepare)
        time = _line("Time", await asyncio.to_thread(_time, spec, self.root))
        self.widget.value = time + _line("Memory", "estimating …")
        try:
            memory = self._known[spec.id] = self._known.get(spec.id) or await _memory(spec)
        except Exception as error:
            memory = f"unknown. {error_text(error)}"
        self.widget.value = time + _line("Memory", memory)


def _line(name: str, words: str) -> str:
    if words.startswith("✗ "):
        return message(f"{name}: {words.removeprefix('✗ ')}")
    return el("div", el("b", f"{name}: "), words)


def _time(spec: RunSpec, root: Path) -> str:
    found = estimate(spec, root)
    return found.why if found.seconds is None else f"{about(found.seconds)}. {found.why}"


async def _memory(spec: RunSpec) -> str:
    """Return how much memory a run needs, and whether the machine has it.

    Raises:
        LabError: it cannot be estimated; the message says why.
    """
    if spec.adapter and get_adapter(spec.adapter.type).cls.__module__ == "__main__":
        raise BadSpec(f"{spec.adapter.type} is defined in this notebook, and the estimate runs in another process.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps(spec.model_dump(mode="json")), encoding="utf-8")
        found = await _doctor(str(path))
    if spec.adapter is None:
        return fits("the weights take", found["weights"], found["available"])
    if found["memory"] is None:
        raise BadSpec("It cannot be estimated for data-dependent computations, such as a mixture of experts.")
    return fits("the largest training step takes about", found["memory"]["total"], found["available"])


def fits(takes: str, needed: int, available: int) -> str:
    """Return a sentence about whether `needed` bytes fit into the `available` ones; 0 available means unknown."""
    words = f"{takes} {size(needed)}"
    if not available:
        return f"{words}."
    of = f"the {size(available)} of this machine"
    if needed > available:
        return f"✗ {words}, more than {of}: it does not fit."
    return f"{words} of {of}: " + ("✓ it fits." if needed < TIGHT * available else "it will be tight.")


async def _doctor(path: str) -> dict[str, Any]:
    try:
        code, out, err = await warm.answer("doctor", path, "--json")
    except TimeoutError:
        raise BadSpec(f"The estimate takes longer than {warm.LONGEST:.0f} s.") from None
    if code:
        raise BadSpec(err.rpartition("error: ")[2].strip() or f"The estimate was ended: exit code {code}.")
    found: dict[str, Any] = json.loads(out)
    return found
