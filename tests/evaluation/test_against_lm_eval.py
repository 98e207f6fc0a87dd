"""The likelihoods of options equal those of EleutherAI's lm-eval, as saved by golden/make_lm_eval.py."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llm_adapters_lab.errors import ModelUnavailable
from llm_adapters_lab.evaluation.predictions import evaluate
from llm_adapters_lab.evaluation.scoring import likeliest
from llm_adapters_lab.models import loading
from llm_adapters_lab.tasks.registry import get_task

FILES = sorted((Path(__file__).parent / "golden").glob("lm_eval_*.json"))
DATA = os.environ.get("LAB_DATA")  # read before the tests hide it


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_scores_equal_those_of_lm_eval(file: Path) -> None:
    golden = json.loads(file.read_text(encoding="utf-8"))
    embedded = golden["base"] == "nano"
    if not embedded and not (DATA and os.environ.get("LAB_SLOW")):
        pytest.skip("needs the data files (LAB_DATA), the base, and minutes (LAB_SLOW=1)")
    try:
        base = loading.load_base(golden["base"])
    except ModelUnavailable:
        pytest.skip(f"{golden['base']} is not here")
    task = get_task(golden["task"])
    rows = task.load("test", Path(DATA) if DATA and not embedded else None)[: len(golden["label"])]
    found = {p["id"]: p for p in evaluate(base.model, base.tokenizer, task, rows, protocol="options", batch=16)}
    for kind in ("label", "text"):
        right = 0
        for name, item in golden[kind].items():
            scores = found[name]["options"][kind]
            right += likeliest(scores) == found[name]["gold"]
            if kind == "text":  # `acc_norm` of lm-eval: divided by the characters of the option
                words = dict(next(row.options for row in rows if row.id == name))
                expected = {label: value / len(words[label]) for label, value in scores.items()}
                assert found[name]["options"]["text_norm"] == pytest.approx(expected)
            assert apart(scores) == pytest.approx(apart(item["scores"]), abs=2e-3), (kind, name)
            if kind == "label":
                assert found[name]["prompt_hash"] == item["prompt_hash"]
        assert abs(right - sum(item["correct"] for item in golden[kind].values())) <= 1


def apart(scores: dict[str, Any]) -> dict[str, float]:
    """Return scores relative to the first: lm-eval also counts the common beginning of all answers."""
    first = next(iter(scores.values()))
    return {name: value - first for name, value in scores.items()}
