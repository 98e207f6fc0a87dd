"""Do a run of a sweep on a node: Ray and Slurm carry a `Job` there and call `run_job`."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from llm_adapters_lab.errors import ClusterError
from llm_adapters_lab.events import Event, Started
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.sweeps.nodes import Job, check_node


def run_job(job: Job) -> None:
    """Do a run on this machine, or resume it.

    Raises:
        ClusterError: see `check_node`; or the base has other weights than on another node.
        Exception: from `run`.
    """
    check_node(job)
    if (job.folder / "stop").exists():
        return
    torch.set_num_threads(job.threads)
    spec = RunSpec.parse(job.spec)

    def on_event(event: Event) -> None:
        if isinstance(event, Started):
            check_base(job, spec, Run(Path(job.root) / spec.id))

    with _stop_event(job.folder / "stop") as stop:
        run(spec, root=job.root, stop=stop, on_event=on_event)


def check_base(job: Job, spec: RunSpec, record: Run) -> None:
    """Check that the base has the weights that the first node of the sweep has loaded under its name.

    Raises:
        ClusterError: it has not.
    """
    own = json.loads((record.folder / "hashes.json").read_text(encoding="utf-8"))["base"]
    loaded = [*spec.base_parts, spec.dtype, spec.quantization]
    name = hashlib.sha256(json.dumps(loaded).encode()).hexdigest()[:16]
    first = job.folder / name
    with tempfile.NamedTemporaryFile("w", dir=job.folder, encoding="utf-8") as part:
        json.dump({"hash": own, "node": platform.node()}, part)
        part.flush()
        with suppress(FileExistsError):
            os.link(part.name, first)  # unlike a rename, it never replaces the file of another node
    found = json.loads(first.read_text(encoding="utf-8"))
    if found["hash"] != own:
        raise ClusterError(
            f"The base {spec.base} on the node {platform.node()} has other weights ({own[:12]}) than on "
            f"{found['node']} ({found['hash'][:12]}). Put the same files on both, or use a folder they share."
        )


@contextmanager
def _stop_event(path: Path) -> Iterator[threading.Event]:
    """Yield an event that is set once a file exists."""
    stop, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            if path.exists():
                stop.set()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield stop
    finally:
        over.set()
