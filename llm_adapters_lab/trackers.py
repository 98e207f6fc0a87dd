"""Trackers: the numbers of a run also go to TensorBoard, Weights & Biases, Trackio or MLflow, through Accelerate.

The record stays what counts: a tracker changes no result and is no part of the run id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.events import Event, Scored, Step, Validated
from llm_adapters_lab.spec import RunSpec

PROJECT = "llm-adapters-lab"
_OF_STEP = ("loss", "learning_rate", "gradient_norm", "tokens", "tokens_per_second")


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


def begin(accelerator: Accelerator, spec: RunSpec) -> None:
    """Begin the trackers of an accelerator."""
    if spec.train.trackers:
        folder = str(accelerator.project_dir)
        own: dict[str, Any] = {"wandb": {"name": spec.id, "dir": folder}, "mlflow": {"run_name": spec.id}}
        accelerator.init_trackers(PROJECT, {"id": spec.id, "spec": spec.canonical()}, own)


def follow(accelerator: Accelerator | None, event: Event) -> None:
    """Hand on the numbers of an event."""
    if accelerator is None or not accelerator.trackers:
        return
    fields = event.to_json()
    if isinstance(event, Step):
        accelerator.log({f"train/{key}": fields[key] for key in _OF_STEP}, step=event.step)
    elif isinstance(event, Validated):
        accelerator.log({"validation/loss": event.loss}, step=event.step)
    elif isinstance(event, Scored):
        accelerator.log({f"accuracy/{event.task}": event.score["accuracy"]})


def end(accelerator: Accelerator | None) -> None:
    """Let the trackers write what they hold."""
    if accelerator is None:
        return
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers.clear()
