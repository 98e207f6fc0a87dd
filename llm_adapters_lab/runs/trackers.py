"""Experiment trackers: copy the metrics of a run to TensorBoard, Weights & Biases, Trackio or MLflow.

The record remains authoritative: a tracker changes no result, is not part of the run id, and may fail without harm.
Each runs in a process of its own (`tracker_process`) that reads the log of the run, so that its network access, its
settings and its limit of one run per process do not affect the run.
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
"""Seconds that the end of a run waits for its trackers to finish sending."""
_late: list[subprocess.Popen[bytes]] = []  # kept, because Python warns about forgotten ones


def require(names: Sequence[str]) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        BadSpec: one is not.
    """
    here = {str(tracker) for tracker in get_available_trackers()}
    if missing := [name for name in names if name not in here]:
        raise BadSpec(
            f"train.trackers names {', '.join(missing)}, which is not installed: `pip install "
            f"{' '.join(missing)}`, or leave it out: the record of the run has the same metrics."
        )


class Trackers:
    """The trackers of one run; each reads the log from its beginning, also when the run is resumed."""

    def __init__(self, names: Sequence[str], record: Run) -> None:
        """Start them.

        Args:
            names: as in `TrainSpec.trackers`.
            record: of the run; they write to its folder `trackers` unless configured otherwise.
        """
        self.folder, self._processes = record.folder / "trackers", dict[str, subprocess.Popen[bytes]]()
        self._messages: list[str] = []
        shutil.rmtree(self.folder, ignore_errors=True)  # of an earlier attempt, whose steps are logged again
        for name in dict.fromkeys(names):
            try:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
                self._processes[name] = self._start(name)
            except OSError as error:
                self._messages.append(without_home(f"{name} could not start; the run continues without it. {error}"))

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        python, environment = command()
        words = [*python[:-1], "llm_adapters_lab.runs.tracker_process", name, str(self.folder)]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=settings(self.folder / name) | environment,
                start_new_session=True,  # an interrupt goes to the run, which ends its trackers
            )
        assert process.stdout
        os.set_blocking(process.stdout.fileno(), False)
        return process

    def warnings(self) -> list[str]:
        """Return messages of the trackers for the reader of the run."""
        messages, self._messages = self._messages, []
        return messages + [text for name in [*self._processes] for text in self._output(name)]

    def end(self) -> list[str]:
        """Wait, for at most `PATIENCE` seconds, until they have sent the rest of the log; return their messages."""
        until, messages = time.monotonic() + PATIENCE, self.warnings()
        for process in self._processes.values():
            assert process.stdin
            process.stdin.close()
        for name, process in list(self._processes.items()):
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            messages += self._output(name)
        for name, process in self._processes.items():
            assert process.stdout
            process.stdout.close()
            _late.append(process)
            messages.append(f"{name} has not sent everything yet; its process {process.pid} continues.")
        self._processes.clear()
        return messages

    def _output(self, name: str) -> list[str]:
        process = self._processes[name]
        code = process.poll()  # polled before reading, so that nothing is missed
        assert process.stdin and process.stdout
        messages = []
        with suppress(BlockingIOError):  # no output
            said = os.read(process.stdout.fileno(), 1 << 16).decode(errors="replace")
            messages = [f"{name}: {line}" for line in said.splitlines()]
        if code is not None:
            process.stdin.close()
            process.stdout.close()
            del self._processes[name]
            if code and not messages:
                last = without_home(" ".join(last_lines(self.folder / f"{name}.log", 1)))
                messages.append(f"{name} ended with code {code}; the run continues without it. {last}".strip())
        return messages


def settings(folder: Path) -> dict[str, str]:
    """Return default settings of the trackers as environment variables: everything goes to one folder."""
    return {
        "TRACKIO_DIR": str(folder),
        "MLFLOW_TRACKING_URI": (folder / "mlruns").absolute().as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",  # its databases need more than mlflow-skinny brings
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_INIT_TIMEOUT": "30",
    }
