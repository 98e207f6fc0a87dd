"""The loss on a text with and without the adapter, and which held-out rows a run answers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llm_adapters_lab import RunSpec, run
from llm_adapters_lab.config import change
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluation.forgetting import TEXTS, loss_per_token, read_text, windows
from llm_adapters_lab.models.blueprint import blueprint
from llm_adapters_lab.models.loading import load_base
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.runs.rows import read_rows

SPEC: dict[str, Any] = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 4, "at": "attn+mlp"},
    "data": {"task": "mini-addsub", "rows": 128, "validation": 32},
    "train": {"batch": 16, "max_steps": 16, "learning_rate": 0.01, "evaluate_every": 8},
    "eval": {"tasks": [], "forgetting": "stories"},
}


def spec(**changes: Any) -> RunSpec:
    return RunSpec.parse(change(SPEC, changes))


def test_the_texts_are_read_in_pieces_of_which_no_token_is_lost() -> None:
    tokenizer = blueprint("nano").tokenizer
    for name in TEXTS:
        pieces = windows(tokenizer, read_text(name), 256)
        assert len(read_text(name)) > 7000 and all(1 < len(piece) <= 128 for piece in pieces)
    assert [len(piece) for piece in windows(tokenizer, "a b c d e f g", 8)] == [4, 3]
    with pytest.raises(BadSpec, match="no two tokens"):
        windows(tokenizer, "")


def test_the_loss_is_the_mean_over_predicted_tokens() -> None:
    base = load_base("nano")
    pieces = windows(base.tokenizer, read_text("stories"), 256)[:3]
    loss, count = loss_per_token(base.model, pieces)
    plain = []
    for piece in pieces:
        logits = base.model(torch.tensor([piece])).logits[0].detach().log_softmax(-1)
        plain += [-float(logits[i, token]) for i, token in enumerate(piece[1:])]
    assert count == len(plain) == sum(len(piece) - 1 for piece in pieces)
    assert loss == pytest.approx(sum(plain) / len(plain), rel=1e-5)


def test_a_run_measures_what_it_forgets(tmp_path: Path) -> None:
    bare = run(spec(adapter=None), root=tmp_path).summary["forgetting"]
    assert bare["loss"] == bare["base_loss"] and bare["tokens"] > 4000
    record = run(spec(), root=tmp_path)
    found = record.summary["forgetting"]
    assert found["base_loss"] == pytest.approx(bare["loss"], abs=1e-6) and found["loss"] > bare["loss"]
    (event,) = record.events("ReadText")
    assert (event["loss"], event["text"]) == (found["loss"], "stories")
    own = tmp_path / "own.txt"
    own.write_text(read_text("stories"), encoding="utf-8")
    assert run(spec(**{"eval.forgetting": str(own)}), root=tmp_path).summary["forgetting"]["loss"] == found["loss"]
    assert "forgetting" not in run(spec(**{"eval.forgetting": None}), root=tmp_path).summary


@pytest.mark.parametrize("name", ["nothing", "."])
def test_a_text_that_is_none_is_refused_before_the_run(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="neither stories nor prose nor a text file"):
        run(spec(**{"eval.forgetting": name}), root=tmp_path)
    assert list(tmp_path.iterdir()) == []


PADDED = {"train.packing": False}


@pytest.mark.parametrize("changes", [{}, PADDED, PADDED | {"train.label_head": False}, {"train.micro_tokens": 200}])
def test_right_rows_are_those_that_greedy_decoding_answers(changes: dict[str, Any], tmp_path: Path) -> None:
    record = run(spec(**changes), root=tmp_path)
    held = [event["right"] for event in record.events("Validated")]
    assert [len(right) for right in held] == [32, 32]
    base, _ = restore(record)
    rows = read_rows(record.spec).samples(base.tokenizer, record.spec.data)[0][:32]
    model = base.model
    best = max(event["step"] for event in record.events("Validated") if event["best"])
    right = held[best // 8 - 1]
    for sample, mark in zip(rows, right, strict=True):
        first = next(i for i, label in enumerate(sample.labels) if label != -100)
        written = list(sample.ids[:first])
        while len(written) < len(sample.ids):
            written.append(int(model(torch.tensor([written])).logits[0, -1].argmax()))
        assert (written == list(sample.ids)) == (mark == "1")
    assert 0 < right.count("1") < 32  # else the comparison says nothing
