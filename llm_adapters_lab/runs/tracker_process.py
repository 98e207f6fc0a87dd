"""The process that reads the log of one run and sends its metrics to one tracker, through Accelerate.

    python -m llm_adapters_lab.runs.tracker_process NAME FOLDER    # FOLDER is <run>/trackers

It follows the log until its standard input is closed, which also happens when the run dies. Lines on its standard
output are messages for the reader of the run; the tracker's own output goes to standard error.
"""

from __future__ import annotations

import os
import re
import select
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from llm_adapters_lab.files import read_json
from llm_adapters_lab.privacy import without_home
from llm_adapters_lab.runs.event_log import Cursor, read_new
from llm_adapters_lab.runs.record import Run

PROJECT = "llm-adapters-lab"
SECONDS = 0.3
_STEP_METRICS = ("loss", "learning_rate", "gradient_norm", "tokens", "tokens_per_second")
_LAUNCHER_VARIABLES = ("LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE")


def metrics(event: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of an event by name."""
    if event["event"] == "Step":
        found = {key: event[key] for key in _STEP_METRICS} | event.get("measures", {})
        return {f"train/{key}": value for key, value in found.items()}
    if event["event"] == "Validated":
        return {"validation/loss": event["loss"]}
    if event["event"] == "Scored":  # MLflow allows few characters, and custom tasks have paths
        task = re.sub(r"[^\w.-]+", "_", event["task"])[:200]
        return {f"accuracy/{task}": event["score"]["accuracy"]}
    return {}


def parameters(part: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Return the fields of a spec by dotted names, without those that are None."""
    found: dict[str, Any] = {}
    for key, value in part.items():
        if isinstance(value, dict):
            found |= parameters(value, f"{before}{key}.")
        elif value is not None:
            found[before + key] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return found


def start(name: str, folder: Path, say: Callable[[str], None]) -> GeneralTracker:
    """Start a tracker. W&B starts offline if there is no login or no network."""
    run, here = Run(folder.parent), str(folder / name)
    own: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": name, "logging_dir": str(folder)},
        "wandb": {"run_name": os.environ.get("WANDB_PROJECT", PROJECT), "name": run.id},
        "trackio": {"run_name": PROJECT, "name": run.id},
        "mlflow": {"experiment_name": PROJECT, "run_name": run.id},
    }
    if "WANDB_DIR" not in os.environ:
        own["wandb"]["dir"] = here
    tracker: GeneralTracker = LOGGER_TYPE_TO_CLASS[name](**own[name])
    try:
        tracker.start()
    except Exception as error:
        if name != "wandb":
            raise
        tracker = LOGGER_TYPE_TO_CLASS[name](**own[name], mode="offline")
        tracker.start()
        say(f"It stays offline; `wandb sync {Path(tracker.tracker.dir).parent}` sends the metrics. {_first(error)}")
    tracker.store_init_configuration({"id": run.id} | parameters(read_json(run.folder / "spec.json")))
    return tracker


def follow(run: Run, tracker: GeneralTracker) -> None:
    """Send the log of a run until standard input is closed; scores are logged at the last step."""
    cursor, step, over, more = Cursor(), 0, False, True
    while more or not over:
        over = over or bool(select.select([sys.stdin], [], [], 0 if more else SECONDS)[0])
        found = read_new(run.log, cursor)
        if found.restarted:  # by another attempt, which has its own process
            break
        for event in found.events:
            step = event["step"] if event["event"] == "Step" else step
            if values := metrics(event):
                tracker.log(values, step=step)
        cursor, more = found.cursor, found.more


def main(name: str, folder: Path) -> int:
    """Follow a run with a tracker, and return the exit code."""
    reader = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(text: str) -> None:
        print(text, file=sys.stderr)
        with suppress(OSError):  # the run may be gone
            print(without_home(" ".join(text.split())), file=reader)

    for variable in _LAUNCHER_VARIABLES:  # this process is alone
        os.environ.pop(variable, None)
    PartialState(cpu=True)
    try:
        tracker = start(name, folder, say)
        follow(Run(folder.parent), tracker)
        tracker.finish()
    except Exception as error:
        traceback.print_exc()
        say(f"It failed; the run continues without it. {type(error).__name__}: {_first(error)}")
        return 1
    return 0


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
