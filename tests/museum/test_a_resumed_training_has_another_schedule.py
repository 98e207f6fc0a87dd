"""An interrupted training is resumed with another schedule, and nothing reports it.

Area: training
Elsewhere: ace-step#742, miles#2572, LlamaFactory#7100, accelerate#3732
Here: the schedule is in the run id, so that a changed one is another run that starts at its first step; the same spec
    resumes with every step in the log once, and ends with the same losses.
Verdict: right → right
"""

import threading
from pathlib import Path

from llm_adapters_lab.events import Event, Step
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.spec import RunSpec


def test_a_resumed_training_has_another_schedule(tmp_path: Path) -> None:
    def spec(**changes: object) -> RunSpec:
        train = {"batch": 4, "max_steps": 5, "learning_rate": 0.01, "checkpoint_every": 1} | changes
        return RunSpec.parse({"adapter": {"type": "lora", "rank": 2}, "data": {"rows": 16}, "train": train})

    stop = threading.Event()

    def interrupt(event: Event) -> None:
        if isinstance(event, Step) and event.step == 2:
            stop.set()

    whole = run(spec(), root=tmp_path / "whole")
    stopped = run(spec(), root=tmp_path / "runs", stop=stop, on_event=interrupt)
    assert stopped.summary["status"] == "stopped"
    for change in ({"max_steps": 7}, {"learning_rate": 0.02}, {"schedule": "cosine"}, {"epochs": 0.5}):
        other = run(spec(**change), root=tmp_path / "runs")
        assert other.id != stopped.id
        assert next(other.events("Started", "Resumed"))["event"] == "Started"
        assert next(other.events("Step"))["step"] == 1
    resumed = run(spec(), root=tmp_path / "runs")
    kept = ("step", "loss", "learning_rate")
    curves = [[[event[key] for key in kept] for event in record.events("Step")] for record in (whole, resumed)]
    assert curves[0] == curves[1]
