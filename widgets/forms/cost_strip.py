"""What a draft costs, in one line: trainable parameters, memory and time; all at once, and refined later.

Parameters are counted in a thread. The memory is estimated in a separate process of low priority that waits for such
orders (`kit.warm`), since a training step on fake tensors draws random numbers. The next change of the draft ends both.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.results.formatting import clock, size
from llm_adapters_lab.runs.forecast.duration import estimate
from llm_adapters_lab.runs.forecast.size import Size, size_of
from llm_adapters_lab.runs.spec import RunSpec
from widgets.kit import warm
from widgets.kit.draft import Draft
from widgets.kit.panel import error_text

TIGHT = 0.8
"""Share of the available memory above which it is called tight: libraries and other programs need some, too."""
MOST = 64
"""Number of different adapters of a sweep whose parameters are counted."""
WAITING = "…"


class CostStrip:
    """One line about a draft.

    Attributes:
        size: of the run with the most trainable parameters, once it is counted.
    """

    def __init__(self, root: str | Path = "runs", *, wait: float = 0.15, pause: float = 0.6) -> None:
        """Show nothing yet.

        Args:
            root: folder of all runs, whose durations are read.
            wait: seconds without a change before parameters are counted.
            pause: further seconds before the memory is estimated.
        """
        self.root, self.wait, self.pause = Path(root).resolve(), wait, pause
        self.widget = W.HTML().add_class("lab-costs")
        self.size: Size | None = None
        self._draft: Draft | None = None
        self._task: asyncio.Task[None] | None = None
        self._memory: dict[str, str] = {}
        self._parts: dict[str, str] = {}

    def show(self, draft: Draft | None) -> None:
        """Estimate the cost of a draft without blocking the kernel's event loop; None shows nothing."""
        if draft is not None and self._draft is not None and draft.specs == self._draft.specs:
            return
        self.stop()
        self._draft = draft
        if draft is None:
            self.widget.value = ""
            return
        with suppress(RuntimeError):  # no kernel
            self._task = asyncio.get_running_loop().create_task(self.estimate(draft, self.wait, self.pause))

    def stop(self) -> None:
        """End the estimate at work."""
        if self._task:
            self._task.cancel()
        self._task = None

    async def estimate(self, draft: Draft, wait: float = 0, pause: float = 0) -> None:
        """Estimate and show the cost of a draft, after some seconds of waiting."""
        await asyncio.sleep(wait)
        heaviest = draft.spec
        self._show(parameters=self._parts.get("parameters", WAITING), time=WAITING, memory=WAITING)
        try:
            words, heaviest, self.size = await asyncio.to_thread(_parameters, draft)
            self._show(parameters=words)
        except Exception as error:
            self._show(parameters=_fault("parameters", error_text(error)))
        try:
            self._show(time=await asyncio.to_thread(_time, draft.specs, self.root))
        except Exception as error:
            self._show(time=_fault("time unknown", error_text(error)))
        await asyncio.sleep(pause)
        await asyncio.to_thread(warm.prepare)
        try:
            memory = self._memory[heaviest.id] = self._memory.get(heaviest.id) or await _memory(heaviest)
        except Exception as error:
            memory = _fault("memory unknown", error_text(error))
        self._show(memory=memory)

    def _show(self, **parts: str) -> None:
        self._parts |= parts
        shown = (self._parts[name] for name in ("parameters", "memory", "time"))
        spans = [part if isinstance(part, Html) else el("span", part) for part in shown]
        joined = [piece for span in spans for piece in (el("span", " · ", class_="lab-muted"), span)][1:]
        self.widget.value = el("div", *joined, class_="lab-num")


def _fault(words: str, why: str) -> Html:
    return el("span", words, title=why, class_="lab-warn")


def _parameters(draft: Draft) -> tuple[Html, RunSpec, Size]:
    """Return the number of trainable parameters as markup, and the spec that has the most of them."""
    kinds = {repr((spec.base_parts, spec.adapter, spec.quantization, spec.dtype)): spec for spec in draft.specs}
    found = [(size_of(spec), spec) for spec in list(kinds.values())[:MOST]]
    found.sort(key=lambda pair: pair[0].trainable)
    (least, _), (most, spec) = found[0], found[-1]
    if not most.trainable:
        return el("span", el("b", "nothing is trained"), f" ({most.base:,} parameters)"), spec, most
    share = f"{100 * most.share:.2f} %" if most.share >= 1e-4 else f"{100 * most.share:.1e} %"
    number = f"{most.trainable:,}"
    if least.trainable != most.trainable:
        number, share = f"{least.trainable:,} – {most.trainable:,}", f"up to {share}"
    tip = f"of the base's {most.base:,} parameters; weights {size(most.weights)}, "
    tip += f"adapter with gradients and AdamW moments {size(most.training)}"
    tip += f". The first {MOST} of {len(kinds)} adapters were counted." if len(kinds) > MOST else ""
    return el("span", el("b", number), f" trainable ({share})", title=tip), spec, most


def _time(specs: Sequence[RunSpec], root: Path) -> Html:
    """Return how long all runs will take, one after the other, as markup."""
    found = [estimate(spec, root) for spec in specs]
    seconds = [each.seconds for each in found]
    if any(each is None for each in seconds):
        return el("span", "time unknown", title="No run with this base has finished here yet.", class_="lab-muted")
    rough = "roughly " if any(each.source == "rough" for each in found) else "about "
    each = f" for all {len(specs)} runs" if len(specs) > 1 else ""
    return el("span", rough + clock(sum(s for s in seconds if s is not None)) + each, title=str(found[0]))


async def _memory(spec: RunSpec) -> Html:
    """Return how much memory a run needs, and whether the machine has it, as markup.

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
        return fits(found["weights"], found["available"], "the weights alone")
    if found["memory"] is None:
        raise BadSpec("It cannot be estimated for data-dependent computations, such as a mixture of experts.")
    return fits(found["memory"]["total"], found["available"], "the largest training step")


def fits(needed: int, available: int, what: str) -> Html:
    """Return whether `needed` bytes fit into the `available` ones, as markup; 0 available means unknown."""
    if not available:
        return el("span", f"~{size(needed)}", title=what)
    of = f"~{size(needed)} of {size(available)}"
    if needed > available:
        return el("span", f"✗ {of}: does not fit", title=f"{what} against the memory of this machine", class_="lab-bad")
    tight = needed >= TIGHT * available
    return el("span", of + ": tight" * tight, title=what, class_="lab-warn" if tight else "")


async def _doctor(path: str) -> dict[str, Any]:
    try:
        code, out, err = await warm.answer("doctor", path, "--json")
    except TimeoutError:
        raise BadSpec(f"The estimate takes longer than {warm.LONGEST:.0f} s.") from None
    if code:
        raise BadSpec(err.rpartition("error: ")[2].strip() or f"The estimate was ended: exit code {code}.")
    found: dict[str, Any] = json.loads(out)
    return found
