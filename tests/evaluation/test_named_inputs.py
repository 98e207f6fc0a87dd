"""Rows with further inputs of their own get the same answers and scores in a batch as one at a time."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from memory_adapter import memories, reading_memory

from llm_adapters_lab.core.call_context import context_of
from llm_adapters_lab.errors import CannotInject
from llm_adapters_lab.evaluation.decoding import (
    can_batch,
    common_prefix,
    context_length,
    greedy,
    likelihoods,
    make_sampler,
    stream,
)
from llm_adapters_lab.evaluation.likelihood import _uncached_likelihoods
from llm_adapters_lab.evaluation.predictions import _generate, evaluate
from llm_adapters_lab.models import loading, random_models
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import pad

ROWS = [[7, 9, 11, 13, *range(20, 20 + n)] for n in (1, 2, 4, 9)]
MEMORY = memories(len(ROWS))
LIMIT = 6
Complete = Callable[[list[int]], bool]


def never(answer: list[int]) -> bool:
    return False


@pytest.fixture(params=["llama", "gpt2", "bloom"])
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    model = random_models.tiny(f"tiny:{request.param}")
    with reading_memory(model):
        yield model


def one_by_one(model: Any, is_complete: Complete) -> list[list[int]]:
    answers = []
    for i, row in enumerate(ROWS):
        with context_of(model).given(memory=MEMORY[i : i + 1]):
            answers += greedy(model, [row], 0, LIMIT, is_complete)
    return answers


def test_rows_that_end_at_different_lengths_keep_their_inputs(model: Any) -> None:
    assert can_batch(model)
    assert common_prefix(ROWS) == 4
    free = one_by_one(model, never)
    ends = {free[0][0], free[1][2], free[2][4]}

    def is_complete(answer: list[int]) -> bool:
        return answer[-1] in ends

    alone = one_by_one(model, is_complete)
    assert len({len(answer) for answer in alone}) > 1
    with context_of(model).given(memory=MEMORY):
        assert greedy(model, ROWS, 0, LIMIT, never) == free
        assert greedy(model, ROWS, 0, LIMIT, is_complete) == alone
        assert greedy(model, ROWS, 0, LIMIT, is_complete, at_once=2) == alone  # new rows bring theirs
        assert greedy(model, ROWS[::-1], 0, LIMIT, never) != free[::-1]  # to each row its own memory
    with context_of(model).given(memory=MEMORY.flip(0)):
        assert greedy(model, ROWS[::-1], 0, LIMIT, is_complete) == alone[::-1]


def test_transformers_generates_the_same_with_a_cache_and_without(model: Any) -> None:
    free = one_by_one(model, never)
    ids, mask = pad(ROWS, 0, "left"), pad([[1] * len(row) for row in ROWS], 0, "left")
    options = {"max_new_tokens": LIMIT, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with context_of(model).given(memory=MEMORY):
        for use_cache in (True, False):
            out = model.generate(input_ids=ids, attention_mask=mask, use_cache=use_cache, **options)
            assert out[:, ids.shape[1] :].tolist() == free
    with context_of(model).given(memory=MEMORY[:1]):
        assert list(stream(model, ROWS[0], LIMIT, never, make_sampler())) == free[0]


class EndTokens:
    """As much of a `StopRule` as beams are given."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = sorted({*tokens})


def test_every_beam_has_the_inputs_of_its_row(model: Any) -> None:
    def beams(rows: list[list[int]], memory: torch.Tensor, end: EndTokens) -> list[list[int]]:
        with context_of(model).given(memory=memory):
            return _generate(model, 0, rows, LIMIT, end, 3)  # type: ignore[arg-type]

    free = [beams([row], MEMORY[i : i + 1], EndTokens(2))[0] for i, row in enumerate(ROWS)]
    for end in (EndTokens(2), EndTokens(free[0][0], free[1][2], free[2][4])):
        alone = [beams([row], MEMORY[i : i + 1], end)[0] for i, row in enumerate(ROWS)]
        assert beams(ROWS, MEMORY, end) == alone
        assert beams(ROWS, MEMORY.flip(0), end) != alone
    # Bloom repeats one token, which its beams avoid where it would end them.
    assert len({len(answer) for answer in alone}) > 1 or model.config.model_type == "bloom"


@pytest.mark.parametrize("score", [likelihoods, _uncached_likelihoods])
def test_likelihoods_are_those_of_one_row_at_a_time(model: Any, score: Any) -> None:
    answers = [[[20 + n, 30, 40][: 1 + (n + i) % 3] for i in range(2 + n % 2)] for n in range(len(ROWS))]
    with context_of(model).given(memory=MEMORY):
        together = score(model, ROWS, answers, 0)
    for i, (row, group) in enumerate(zip(ROWS, answers, strict=True)):
        with context_of(model).given(memory=MEMORY[i : i + 1]):
            assert likelihoods(model, [row], [group], 0)[0] == pytest.approx(together[i], abs=1e-4)


@pytest.mark.parametrize("protocol", ["lab", "paper", "options"])
def test_an_evaluation_gives_each_example_its_own_inputs(protocol: str) -> None:
    base, task = loading.load_base("nano"), get_task("mini-bool")
    rows = task.load("test", None)[:5]
    memory = memories(5)
    with reading_memory(base.model):
        with context_of(base.model).given(memory=memory):
            options: dict[str, Any] = {"protocol": protocol, "max_new_tokens": 4}
            found = {p["id"]: p for p in evaluate(base.model, base.tokenizer, task, rows, batch=3, **options)}
            assert context_length(base.model) == base.model.config.max_position_embeddings
        for i, row in enumerate(rows):
            with context_of(base.model).given(memory=memory[i : i + 1]):
                (alone,) = evaluate(base.model, base.tokenizer, task, [row], **options)
            scores = found[row.id].pop("options")["label"]
            assert alone.pop("options")["label"] == pytest.approx(scores, abs=1e-4)
            assert alone == found[row.id]


def test_a_wrong_number_of_inputs_is_named(model: Any) -> None:
    with context_of(model).given(memory=MEMORY[:3]), pytest.raises(CannotInject, match="has 3 rows where .* runs 4"):
        greedy(model, ROWS, 0, LIMIT, never)
