"""Cluster: what a run needs of another machine, looked at there before any work, and how it is done there.

The engines (Ray, Slurm) carry an `Order` to a node and call `carry_out`. All nodes see the root of the runs under one
path; beside the runs stands, as long as the sweep goes on,

<root>/.nodes/<mark>/    by which a node knows that this is the same folder
                  stop   there once the sweep is to end: every run is saved after the step it is at
                  <base> hash of a base as the first node has loaded it; any other must have the same

Nothing here imports torch before the node is known to have the right one.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from llm_adapters_lab._version import __version__
from llm_adapters_lab.errors import NodesDiffer, Unreachable
from llm_adapters_lab.events import Event, Started
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy")
"""What has a part in the numbers of a run."""
SECONDS = 30.0
"""Within which every node has to answer."""
SAVING = 60.0
"""Seconds that runs have to save themselves when their sweep is stopped."""
_PATIENCE = 5.0  # for a network file system to show what another machine has made


class Order(NamedTuple):
    """What a node is asked to do, as plain data.

    Attributes:
        spec: fields of the run; empty to look at the node only.
        root: folder of all runs, the same on all nodes.
        mark: name of the folder that proves it.
        versions: what the node must have, of `versions`.
        threads: of the processor; another number may change the last bits of a result.
    """

    spec: dict[str, Any]
    root: str
    mark: str
    versions: dict[str, str]
    threads: int = 1


def versions() -> dict[str, str]:
    """Return the versions of what has a part in the numbers; builds for a GPU and for none count as the same."""
    found = {"python": ".".join(platform.python_version_tuple()[:2]), "llm_adapters_lab": __version__}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name).partition("+")[0]
    return found


@contextmanager
def marked(root: Path) -> Iterator[Path]:
    """Make the folder by which nodes know the root; afterwards it is gone.

    Raises:
        Unreachable: the root cannot be written to from here.
    """
    try:
        (root / ".nodes").mkdir(parents=True, exist_ok=True)
        mark = Path(tempfile.mkdtemp(dir=root / ".nodes"))
        mark.chmod(0o777)  # the nodes may work as another user
    except OSError as error:
        raise Unreachable(f"{root} cannot be written to from here: {error}. Choose another root (--root).") from None
    try:
        yield mark
    finally:
        shutil.rmtree(mark, ignore_errors=True)


def fit(order: Order) -> str:
    """Look whether this machine can do an order; returns its name.

    Raises:
        NodesDiffer: it has other versions than the machine that asks.
        Unreachable: it does not see the root, or cannot write to it.
    """
    node, own = platform.node(), versions()
    wrong = [f"{n} {own.get(n, 'missing')}, not {v}" for n, v in order.versions.items() if own.get(n) != v]
    if wrong:
        raise NodesDiffer(f"The node {node} has {'; '.join(wrong)}. Install the same there (constraints.txt).")
    mark, until = _mark(order), time.monotonic() + _PATIENCE
    while not mark.is_dir():
        if time.monotonic() > until:
            where = "another folder there" if Path(order.root).is_dir() else "not there"
            said = f"The node {node} does not see the root {order.root} of this sweep: it is {where}."
            raise Unreachable(f"{said} Choose a root on storage that all nodes share under one path (--root).")
        time.sleep(0.1)
    try:
        with tempfile.TemporaryFile(dir=mark):
            pass
    except OSError as error:
        raise Unreachable(f"The node {node} cannot write to {order.root}: {error.strerror}.") from None
    return node


def carry_out(order: Order) -> None:
    """Do a run on this machine, or go on with it.

    Raises:
        NodesDiffer: see `fit`; or its base has other weights than that of another node.
        Unreachable: see `fit`.
        Exception: what `run` raises.
    """
    fit(order)
    if (_mark(order) / "stop").exists():
        return
    import torch

    torch.set_num_threads(order.threads)
    spec = RunSpec.parse(order.spec)

    def look(event: Event) -> None:
        if isinstance(event, Started):
            same_base(order, spec, Run(Path(order.root) / spec.id))

    with _watched(_mark(order) / "stop") as stop:
        run(spec, root=order.root, stop=stop, on_event=look)


def same_base(order: Order, spec: RunSpec, record: Run) -> None:
    """Refuse a base whose weights are not those that the first node of the sweep has loaded under its name.

    Raises:
        NodesDiffer: they are not.
    """
    own = json.loads((record.folder / "hashes.json").read_text(encoding="utf-8"))["base"]
    named = hashlib.sha256(json.dumps([spec.base, spec.dtype, spec.trust_remote_code]).encode()).hexdigest()[:16]
    first = _mark(order) / named
    with tempfile.NamedTemporaryFile("w", dir=first.parent, encoding="utf-8") as part:
        json.dump({"hash": own, "node": platform.node()}, part)
        part.flush()
        with suppress(FileExistsError):
            os.link(part.name, first)  # unlike a rename, it puts nothing in the place of another's
    found = json.loads(first.read_text(encoding="utf-8"))
    if found["hash"] != own:
        raise NodesDiffer(
            f"The base {spec.base} on the node {platform.node()} has other weights ({own[:12]}) than on "
            f"{found['node']} ({found['hash'][:12]}). Put the same files on both, or name a folder they share."
        )


def _mark(order: Order) -> Path:
    return Path(order.root) / ".nodes" / order.mark


@contextmanager
def _watched(path: Path) -> Iterator[threading.Event]:
    """Set the event that this gives once a file is there."""
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
