"""Small run folders made of real record files, for tests of what reads them, and what two runs must have in common."""

import math
from pathlib import Path
from typing import Any

from llm_adapters_lab.evaluation.statistics import wilson
from llm_adapters_lab.events import Norms, Scored, Step, Validated
from llm_adapters_lab.files import append_line
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
QKEYS = {f"model.layers.{layer}.self_attn.{name}": layer + 0.5 for layer in range(2) for name in ("q_proj", "v_proj")}

TIMES = ("seconds", "tokens_per_second", "seconds_left", "peak_memory_bytes")


def timeless(record: Run) -> dict[str, Any]:
    """Return everything a finished run has left, but for times and for what tells that it was interrupted."""
    summary = record.summary
    train = {key: value for key, value in (summary.pop("train") or {}).items() if key not in TIMES}
    told = [e for e in record.events() if e["event"] not in ("Resumed", "Noticed", "Finished")]
    return {
        "summary": summary,
        "train": train,
        "events": [{key: value for key, value in event.items() if key not in TIMES} for event in told],
        "predictions": list(record.predictions()),
        "adapter": {path.name: path.read_bytes() for path in (record.folder / "adapter").glob("*")},
        "files": sorted(str(path.relative_to(record.folder)) for path in record.folder.rglob("*")),
    }


def make_run(
    root: Path,
    adapter: dict[str, Any] | None,
    right: dict[str, int],
    *,
    seed: int = 0,
    steps: int = 6,
    norms: dict[str, float] | None = None,
    text: str = "The answer is 7.",
    data: dict[str, Any] | None = None,
    done: bool = True,
) -> Run:
    """Write a run whose tasks have 20 questions, of which so many were answered right."""
    fields = {"base": "nano", "adapter": adapter, "seed": seed, "data": data or {}}
    spec = RunSpec.parse({**fields, "eval": {"tasks": ["mini-addsub"]}})
    run = Run(root / spec.id)
    run.folder.mkdir(parents=True)
    run.write("spec.json", spec.model_dump(mode="json"))
    size = 1000 * (seed + 1) if adapter else 0
    for step in range(1, steps + 1) if adapter else ():
        run.append(Step(step, steps, 2 * math.exp(-step / steps), 1e-3, 0.5, 10 * step, 0.1 * step, 100.0, 0.0))
    if adapter:
        run.append(Norms(1, {"model.layers.0.early": 9.0}))
        run.append(Norms(steps, QKEYS if norms is None else norms))
        run.append(Validated(steps, 0.8, True))
    scores = {}
    for task, correct in right.items():
        low, high = wilson(correct, 20)
        scores[task] = {"accuracy": correct / 20, "correct": correct, "total": 20, "low": low, "high": high}
        scores[task] |= {"chance": None, "majority": 0.1, "in_format": 0.9}
        run.append(Scored(task, scores[task]))
        for i in range(20):
            answer = {"extracted": "7" if i else None, "gold": "7", "correct": i < correct}
            row = {"task": task, "id": f"{task}/test/{i}", "prompt": f"3 + 4 = {text}", "text": text, **answer}
            append_line(run.folder / "predictions.jsonl", row)
    if done:
        times = {"steps": steps, "tokens": 60, "seconds": 0.6, "tokens_per_second": 100.0}
        train = {**times, "peak_memory_bytes": 2_000_000, "loss_first": 1.7, "loss_last": 0.7} if adapter else None
        counts = {"trainable_parameters": size, "base_parameters": 50_000}
        fixed = {"id": spec.id, "status": "finished", "adapter": adapter, "base": "nano", **counts}
        where = {"torch": "2", "device": "cpu"}
        run.write("summary.json", {**fixed, "scores": scores, "train": train, "environment": where})
    return run


def make_answers(root: Path, adapter: dict[str, Any] | None, right: list[bool]) -> Run:
    """Write a finished run that has answered so many questions of mini-bool, with log-likelihoods."""
    run = make_run(root, adapter, {"mini-bool": 0})
    (run.folder / "predictions.jsonl").unlink()
    score = {"accuracy": sum(right) / len(right), "correct": sum(right), "total": len(right), "low": 0.0, "high": 1.0}
    score |= {"chance": 0.5, "majority": 0.5, "in_format": 1.0, "protocol": "lab", "shots": 0, "extraction": "lab"}
    run.write("summary.json", run.summary | {"scores": {"mini-bool": score}})
    for i, good in enumerate(right):
        likely, said = {True: -0.25, False: -1.5}, "true" if good else "false"
        row = {"task": "mini-bool", "id": f"mini-bool/test/{i}", "prompt": f"Is {i} true?", "prompt_hash": f"{i}"}
        row |= {"text": f"it is {said}", "extracted": said, "gold": "true", "correct": good}
        options = {"label": {"true": likely[good], "false": likely[not good]}, "text": {}}
        append_line(run.folder / "predictions.jsonl", row | {"options": options})
    return run
