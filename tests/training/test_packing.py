"""Packed rows and micro-batches: every token once, no attention to other rows, positions from zero."""

from collections import Counter
from itertools import pairwise
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_adapters_lab.models import random_models
from llm_adapters_lab.tasks.tokens import IGNORED, Sample
from llm_adapters_lab.training import packing
from llm_adapters_lab.training.batches import micro_batches
from llm_adapters_lab.training.packing import GROUP_COST, pack, packed_attention

# Few different tokens, so that rows often have a common beginning.
IDS = st.lists(st.integers(3, 5), min_size=1, max_size=9)
ROWS = st.lists(st.tuples(IDS, st.integers(0, 9)), min_size=1, max_size=7).map(
    lambda rows: [
        Sample(f"row/{i}", tuple(ids), tuple([IGNORED] * min(head, len(ids)) + ids[head:]))
        for i, (ids, head) in enumerate(rows)
    ]
)


@given(ROWS)
def test_without_sharing_every_token_is_stored_once(rows: list[Sample]) -> None:
    packed = pack(rows, share=False)
    assert packed.ids[0].tolist() == [token for row in rows for token in row.ids]
    assert packed.positions[0].tolist() == [column for row in rows for column in range(len(row.ids))]


@given(ROWS)
def test_with_sharing_every_prefix_is_stored_once(rows: list[Sample]) -> None:
    packed = pack(rows, share=True)
    beginnings = {row.ids[: end + 1] for row in rows for end in range(len(row.ids))}
    assert packed.ids.shape[1] == len(beginnings)


@pytest.mark.parametrize("cost", [GROUP_COST, 0])
@given(rows=ROWS, share=st.booleans())
def test_the_rows_can_be_recovered_from_a_packed_batch(rows: list[Sample], share: bool, cost: int) -> None:
    with mock.patch.object(packing, "GROUP_COST", cost):
        packed = pack(rows, share=share)
    assert len(packed.groups) == (1 if cost else len({len(row.ids) for row in rows}))
    for number, row in enumerate(rows):
        found = packed.rows[number, : len(row.ids)]
        assert tuple(packed.ids[0, found].tolist()) == row.ids
        assert packed.positions[0, found].tolist() == list(range(len(row.ids)))
    for some in (packed, packed.repeat(3)):
        columns = torch.cat([torch.arange(group.shape[1]).repeat(len(group)) for group in some.groups])
        assert torch.equal(columns[some.places], some.positions[0])
        flat = torch.cat([group.flatten() for group in some.groups])
        assert torch.equal(flat[some.places], torch.arange(some.ids.shape[1]))
    assert {*packed.read.tolist()} == {*packed.reads.tolist()}
    wanted = [(row.ids[: c + 1], row.labels[c + 1]) for row in rows for c in range(len(row.ids) - 1)]
    wanted = [(before, label) for before, label in wanted if label != IGNORED]
    columns = packed.rows.tolist()
    known = {columns[n][c]: row.ids[: c + 1] for n, row in enumerate(rows) for c in range(len(row.ids))}
    assert [known[read] for read in packed.reads.tolist()] == [before for before, _ in wanted]
    assert packed.labels.tolist() == [label for _, label in wanted]


@settings(max_examples=20, deadline=None)
@given(ROWS, st.booleans(), st.integers(0, 6))
def test_no_row_attends_to_another(rows: list[Sample], share: bool, changed: int) -> None:
    model = random_models.tiny("tiny:llama")
    changed %= len(rows)
    other = [Sample(r.id, tuple(t + 60 for t in r.ids), r.labels) if i == changed else r for i, r in enumerate(rows)]

    def hidden(given: list[Sample]) -> list[torch.Tensor]:
        packed = pack(given, share=share)
        with torch.no_grad(), packed_attention(model.config, packed):
            out = model.model(input_ids=packed.ids, position_ids=packed.positions, use_cache=False).last_hidden_state[0]
        return [out[packed.rows[n, : len(row.ids)]] for n, row in enumerate(given)]

    for number, (before, after) in enumerate(zip(hidden(rows), hidden(other), strict=True)):
        same = torch.allclose(before, after, atol=1e-5)
        assert same == (number != changed), number


@given(ROWS, st.none() | st.integers(1, 4), st.none() | st.integers(1, 30), st.booleans(), st.integers(0, 3))
def test_micro_batches_hold_every_row_once_within_their_limits(
    rows: list[Sample], most: int | None, tokens: int | None, padded: bool, halvings: int
) -> None:
    chunks = micro_batches(rows, most, tokens, padded=padded, halvings=halvings)
    assert Counter(row.id for chunk in chunks for row in chunk) == Counter(row.id for row in rows)
    lengths = [len(row.ids) for chunk in chunks for row in chunk]
    assert lengths == sorted(lengths)
    for chunk in chunks:
        assert most is None or len(chunk) <= most
        count = len(chunk) * len(chunk[-1].ids) if padded else sum(len(row.ids) for row in chunk)
        assert tokens is None or count <= tokens or len(chunk) == 1
    if not halvings and tokens:
        for one, two in pairwise(chunks):
            fuller = (len(one) + 1) * len(two[0].ids) if padded else sum(len(r.ids) for r in one) + len(two[0].ids)
            assert fuller > tokens or len(one) == most, "there was room for another row"


def test_the_model_is_restored_after_an_error() -> None:
    model = random_models.tiny("tiny:llama")
    packed = pack([Sample("a", (5, 6), (5, 6))], share=True)
    with pytest.raises(ValueError, match="on purpose"), packed_attention(model.config, packed):
        raise ValueError("on purpose")
    assert model.config._attn_implementation == "sdpa"
