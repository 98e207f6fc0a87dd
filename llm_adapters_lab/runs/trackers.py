"""Trackers: the numbers of a run also go to TensorBoard, Weights & Biases, Trackio or MLflow.

The record stays what counts: a tracker changes no result, is no part of the run id, and may fail without harm. Each is
a process of its own (`tracking`) that reads the log of the run, so that what it does with the network, its settings
and the one run that it knows of per process concerns nobody else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from accelerate.tracking import get_available_trackers

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.privacy import without_home
from llm_adapters_lab.runs.event_log import last_lines
from llm_adapters_lab.runs.processes import command
from llm_adapters_lab.runs.record import Run

PATIENCE = 60.0
"""Seconds that the end of a run waits for all of its trackers to send what they hold."""
_late: list[subprocess.Popen[bytes]] = []  # forgotten, they would be warned about


def require(names: Sequence[str]) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        BadSpec: one is not.
    """
    here = {str(tracker) for tracker in get_available_trackers()}
    if missing := [name for name in names if name not in here]:
        raise BadSpec(
            f"train.trackers names {', '.join(missing)}, which is not installed here: `pip install "
            f"{' '.join(missing)}`, or leave it out; the record of the run has the same numbers."
        )


class Trackers:
    """The trackers of one run, from where it begins or goes on to its end; each is told the log from its beginning."""

    def __init__(self, names: Sequence[str], record: Run) -> None:
        """Begin them.

        Args:
            names: as in `TrainSpec.trackers`.
            record: of the run; they write into its folder `trackers`, unless their own settings say otherwise.
        """
        self.folder, self._processes = record.folder / "trackers", dict[str, subprocess.Popen[bytes]]()
        self._told: list[str] = []
        shutil.rmtree(self.folder, ignore_errors=True)  # of an earlier attempt, whose steps come again
        for name in dict.fromkeys(names):
            try:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
                self._processes[name] = self._begin(name)
            except OSError as error:
                self._told.append(without_home(f"{name} could not begin, and the run goes on without it. {error}"))

    def _begin(self, name: str) -> subprocess.Popen[bytes]:
        python, environment = command()
        words = [*python[:-1], "llm_adapters_lab.runs.tracker_process", name, str(self.folder)]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=settings(self.folder / name) | environment,
                start_new_session=True,  # an interrupt is for the run, which ends its trackers
            )
        assert process.stdout
        os.set_blocking(process.stdout.fileno(), False)
        return process

    def warnings(self) -> list[str]:
        """Return what the trackers have to say that a reader of the run should know."""
        told, self._told = self._told, []
        return told + [text for name in [*self._processes] for text in self._news(name)]

    def end(self) -> list[str]:
        """Let them take in the rest of the log and send it, in bounded time; returns what `warnings` does."""
        until, told = time.monotonic() + PATIENCE, self.warnings()
        for process in self._processes.values():
            assert process.stdin
            process.stdin.close()
        for name, process in list(self._processes.items()):
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            told += self._news(name)
        for name, process in self._processes.items():
            assert process.stdout
            process.stdout.close()
            _late.append(process)
            told.append(f"{name} has not sent everything yet; its process {process.pid} goes on with it.")
        self._processes.clear()
        return told

    def _news(self, name: str) -> list[str]:
        process = self._processes[name]
        code = process.poll()  # before it is read, so that nothing comes after
        assert process.stdin and process.stdout
        told = []
        with suppress(BlockingIOError):  # it says nothing
            said = os.read(process.stdout.fileno(), 1 << 16).decode(errors="replace")
            told = [f"{name}: {line}" for line in said.splitlines()]
        if code is not None:
            process.stdin.close()
            process.stdout.close()
            del self._processes[name]
            if code and not told:
                last = without_home(" ".join(last_lines(self.folder / f"{name}.log", 1)))
                told.append(f"{name} has ended with code {code}, and the run goes on without it. {last}".strip())
        return told


def settings(folder: Path) -> dict[str, str]:
    """Return what trackers do if nobody has said otherwise, as variables of the environment: all into one folder."""
    return {
        "TRACKIO_DIR": str(folder),
        "MLFLOW_TRACKING_URI": (folder / "mlruns").absolute().as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",  # its databases need more than mlflow-skinny brings
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_INIT_TIMEOUT": "30",
    }
