"""Nodes: the other machines of a sweep, checked before any work.

All nodes see the root of the runs under the same path. During the sweep it contains

<root>/.nodes/<mark>/    by which a node recognises the root
                  stop   exists once the sweep is to end: every run is saved after the current step
                  <base> hash of a base as the first node has loaded it; all others must have the same

Nothing here imports torch, so that a node with another version can say so.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from llm_adapters_lab._version import __version__
from llm_adapters_lab.errors import ClusterError

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy")
"""Packages that affect the numbers of a run."""
NODE_TIMEOUT = 30.0
"""Seconds within which every node has to answer."""
SAVE_TIMEOUT = 60.0
"""Seconds that runs have to save themselves when their sweep is stopped."""
_VISIBLE_WITHIN = 5.0  # a network file system may take a while to show what another machine has created


class Job(NamedTuple):
    """What a node is asked to do, as plain data.

    Attributes:
        spec: fields of the run; empty to check the node only.
        root: folder of all runs, the same on all nodes.
        mark: name of the folder by which the root is recognised.
        versions: those of the machine that asks, see `versions`.
        threads: number of CPU threads; another number may change the last bits of a result.
    """

    spec: dict[str, Any]
    root: str
    mark: str
    versions: dict[str, str]
    threads: int = 1

    @property
    def folder(self) -> Path:
        """The folder by which the root is recognised."""
        return Path(self.root) / ".nodes" / self.mark


def versions() -> dict[str, str]:
    """Return the versions of what affects the numbers; builds with and without GPU support count as equal."""
    found = {"python": ".".join(platform.python_version_tuple()[:2]), "llm_adapters_lab": __version__}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name).partition("+")[0]
    return found


@contextmanager
def marked_root(root: Path) -> Iterator[Path]:
    """Create the folder by which nodes recognise the root, and delete it afterwards.

    Raises:
        ClusterError: the root is not writable from here.
    """
    try:
        (root / ".nodes").mkdir(parents=True, exist_ok=True)
        mark = Path(tempfile.mkdtemp(dir=root / ".nodes"))
        mark.chmod(0o777)  # the nodes may run as another user
    except OSError as error:
        raise ClusterError(f"{root} cannot be written to from here: {error}. Choose another root (--root).") from None
    try:
        yield mark
    finally:
        shutil.rmtree(mark, ignore_errors=True)


def check_node(job: Job) -> str:
    """Check that this machine can do a job; return its name.

    Raises:
        ClusterError: it has other versions than the machine that asks, does not see the root, or cannot write to it.
    """
    node, own = platform.node(), versions()
    if wrong := [f"{n} {own.get(n, 'missing')}, not {v}" for n, v in job.versions.items() if own.get(n) != v]:
        raise ClusterError(f"The node {node} has {'; '.join(wrong)}. Install the same there (constraints.txt).")
    until = time.monotonic() + _VISIBLE_WITHIN
    while not job.folder.is_dir():
        if time.monotonic() > until:
            where = "another folder there" if Path(job.root).is_dir() else "not there"
            raise ClusterError(
                f"The node {node} does not see the root {job.root} of this sweep: it is {where}. "
                "Choose a root on storage that all nodes share under one path (--root)."
            )
        time.sleep(0.1)
    try:
        with tempfile.TemporaryFile(dir=job.folder):
            pass
    except OSError as error:
        raise ClusterError(f"The node {node} cannot write to {job.root}: {error.strerror}.") from None
    return node
