"""Start runs from a panel: one at once if nothing else works, otherwise through the queue."""

from __future__ import annotations

from collections.abc import Sequence

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.runs.queue import queued
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import state
from llm_adapters_lab.sweeps import queue
from widgets.kit import kernel_runs, warm
from widgets.kit.workspace import Workspace


def start(specs: Sequence[RunSpec], workspace: Workspace) -> list[Run]:
    """Start runs: a single one at once if no run is active or waits, otherwise one after another through the queue.

    Finished runs are not repeated, active ones are not started twice, and interrupted ones are resumed. Checking a spec
    takes a fraction of a second, so call this by `asyncio.to_thread` for several.

    Args:
        specs: of the runs, in the order in which they are to be started.
        workspace: says where; if its runs are threads of the kernel, there can be only one.

    Returns:
        The record of every spec, in order; `status.state` tells which are finished, active or queued.

    Raises:
        LabError: some cannot be run, or the root cannot be written to; none is started.
    """
    root, wanted = workspace.root, {spec.id: spec for spec in specs}
    runs = [Run(root / name) for name in wanted]
    todo = [spec for run, spec in zip(runs, wanted.values(), strict=True) if not run.done and not state(run).works]
    if not workspace.process:
        if len(todo) > 1:
            raise LabError(
                f"{len(todo)} runs cannot share this kernel. Start one of them, or make the lab without process=False."
            )
        for spec in todo:
            kernel_runs.launch(spec, root)
    elif len(todo) == 1 and not queued(root) and not queue.active(root):
        warm.launch(todo[0], root)
    elif todo:
        queue.enqueue(todo, root)
        keep(workspace)
    return runs


def keep(workspace: Workspace) -> None:
    """Let the queued runs be started, if any waits and no process does that."""
    queue.keep(workspace.root, begin=warm.begin)


def start_now(run: Run) -> None:
    """Start a queued run at once, beside those that are active.

    Raises:
        LabError: its spec cannot be run.
    """
    queue.start_now(run, warm.begin)
