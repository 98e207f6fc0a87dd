"""The lab's decoding loop gives the answers of transformers, for every family and adapter, in every batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import CannotInject, NotFinite
from llm_adapters_lab.evaluation import decoding, predictions
from llm_adapters_lab.evaluation.decoding import (
    can_batch,
    can_join,
    common_prefix,
    drawn,
    greedy,
    likelihoods,
    shared_prefix,
)
from llm_adapters_lab.models import random_models
from llm_adapters_lab.tasks.tokens import pad

ADAPTERS: dict[str, dict[str, Any] | None] = {
    "base": None,
    "lora": {"type": "lora", "rank": 4, "at": "attn+mlp"},
    "series": {"type": "series", "bottleneck": 8},
    "parallel": {"type": "parallel", "bottleneck": 8},
    "prefix": {"type": "prefix", "virtual_tokens": 5},
}
OTHERS: dict[str, dict[str, Any]] = {
    "conv": {"type": "conv", "bottleneck": 8},  # looks back
    "prompt-tuning": {"type": "prompt-tuning", "virtual_tokens": 3},
    "p-tuning": {"type": "p-tuning", "virtual_tokens": 3},
    "parscale": get_adapter("parscale").cls.example | {"type": "parscale"},
}
# MPT counts distances in columns, whatever the mask says: padding stands between virtual tokens and real ones.
PAIRS = [(family, adapter) for family in random_models.TINY for adapter in ADAPTERS]
PAIRS.remove(("mpt", "prefix"))
SHARED = [7, 9, 11, 13, 17]
LENGTHS = (1, 2, 4, 9, 12)
LIMIT = 6


def adapted(family: str, adapter: str) -> Any:
    model = random_models.tiny(f"tiny:{family}")
    if fields := (ADAPTERS | OTHERS)[adapter]:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for p in inject(model, get_adapter(fields["type"]).config(**fields)).parameters():
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


def prompts(shared: list[int] = SHARED) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [shared + torch.randint(3, 128, (n,), generator=generator).tolist() for n in LENGTHS]


def never(answer: list[int]) -> bool:
    return False


def plain(model: Any, rows: list[list[int]]) -> list[list[int]]:
    ids, mask = pad(rows, 0, "left"), pad([[1] * len(row) for row in rows], 0, "left")
    options = {"do_sample": False, "max_new_tokens": LIMIT, "eos_token_id": None, "pad_token_id": 0}
    out: list[list[int]] = model.generate(input_ids=ids, attention_mask=mask, **options)[:, ids.shape[1] :].tolist()
    return out


@pytest.mark.parametrize("family", random_models.TINY)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_answers_equal_those_of_transformers_in_any_batch(family: str, adapter: str) -> None:
    model, rows = adapted(family, adapter), prompts()
    assert can_batch(model)
    if (family, adapter) == ("mpt", "prefix"):
        with pytest.raises(CannotInject, match="counts padding"):
            greedy(model, rows, 0, LIMIT, never)
        assert [greedy(model, [row], 0, LIMIT, never) for row in rows] == [plain(model, [row]) for row in rows]
        return
    expected = plain(model, rows)
    assert greedy(model, rows, 0, LIMIT, never) == expected
    assert [greedy(model, [row], 0, LIMIT, never)[0] for row in rows] == expected


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_rows_without_a_common_prefix_are_answered(adapter: str) -> None:
    model = adapted("llama", adapter)
    rows = [row[i:] for i, row in enumerate(prompts())]
    assert common_prefix(rows) == 0
    assert greedy(model, rows, 0, LIMIT, never) == plain(model, rows)


@pytest.mark.parametrize("adapter", ["base", "prefix"])
@pytest.mark.parametrize("window", [3, 8, 16])
def test_a_sliding_window_shorter_than_the_prompt(adapter: str, window: int) -> None:
    config = random_models.tiny_config("tiny:mistral")
    config.sliding_window = window
    torch.manual_seed(0)
    from transformers import MistralForCausalLM

    model = MistralForCausalLM(config).eval()
    if fields := ADAPTERS[adapter]:
        inject(model, get_adapter(fields["type"]).config(**fields))
    if fields:
        # The window would count the padding between the prefix and the prompt.
        with pytest.raises(CannotInject, match="counts padding"):
            greedy(model, prompts(), 0, LIMIT, never)
        model, alone = MistralForCausalLM(config).eval(), prompts()[0]
        inject(model, get_adapter(fields["type"]).config(**fields))
        assert greedy(model, [alone], 0, LIMIT, never) == plain(model, [alone])
        return
    assert greedy(model, prompts(), 0, LIMIT, never) == plain(model, prompts())


def ends_with(tokens: set[int]) -> Callable[[list[int]], bool]:
    return lambda answer: answer[-1] in tokens


def cut_after(answers: list[list[int]], ends: set[int]) -> list[list[int]]:
    return [answer[: next((i + 1 for i, t in enumerate(answer) if t in ends), LIMIT)] for answer in answers]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_finished_rows_leave_the_batch_without_effect_on_the_others(adapter: str) -> None:
    model, rows = adapted("llama", adapter), prompts()
    free = greedy(model, rows, 0, LIMIT, never)
    ends = {free[0][0], free[2][2], free[3][1]}
    cut = cut_after(free, ends)
    assert len({len(answer) for answer in cut}) > 1
    assert greedy(model, rows, 0, LIMIT, ends_with(ends)) == cut


def many() -> list[list[int]]:
    """Twelve prompts, the shortest first."""
    generator = torch.Generator().manual_seed(3)
    lengths = (1, 1, 2, 2, 3, 4, 5, 7, 8, 9, 11, 12)
    return [SHARED + torch.randint(3, 128, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize(("family", "adapter"), PAIRS)
def test_rows_that_take_the_place_of_others_get_their_own_answers(
    family: str, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "TOGETHER", 16)
    model, rows = adapted(family, adapter), many()
    free = plain(model, rows)
    ends = {free[0][0], free[2][2], free[3][1], free[6][3]}
    cut = cut_after(free, ends)
    prefix, calls = shared_prefix(model, rows), list[int]()
    assert prefix is None or prefix.mask.shape[1] == len(SHARED)
    step, join, joined = decoding.decode_step, decoding._joined, list[int]()
    monkeypatch.setattr(decoding, "decode_step", lambda *given: calls.append(len(given[2])) or step(*given))
    monkeypatch.setattr(decoding, "_joined", lambda parts: joined.append(len(parts)) or join(parts))
    for known in (prefix, None):
        assert greedy(model, rows, 0, LIMIT, ends_with(ends), at_once=4, prefix=known) == cut
    assert greedy(model, rows[::-1], 0, LIMIT, ends_with(ends), at_once=4) == cut[::-1]
    assert all(count <= 4 for count in calls)
    assert (max(joined) > 1) == (adapter != "prefix")  # an adapter with columns of its own answers batch by batch


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("adapter", OTHERS)
def test_adapters_that_remember_or_prepend_get_their_own_answers(family: str, adapter: str) -> None:
    model, rows = adapted(family, adapter), many()
    free = greedy(model, rows, 0, LIMIT, never)
    ends = {free[0][0], free[2][2], free[3][1]}
    cut = cut_after(free, ends)
    assert free == [greedy(model, [row], 0, LIMIT, never)[0] for row in rows]
    assert greedy(model, rows, 0, LIMIT, ends_with(ends), at_once=4, prefix=shared_prefix(model, rows)) == cut


def starts_of(free: list[list[int]]) -> list[list[int]]:
    """What answers may start with: in turn right, right and shorter, wrong at the end, wrong at once, nothing."""
    kinds: tuple[Callable[[list[int]], list[int]], ...] = (
        lambda answer: answer[:3],
        lambda answer: answer[:2],
        lambda answer: [*answer[:2], (answer[2] + 1) % 128],
        lambda answer: [(answer[0] + 1) % 128, *answer[1:3]],
        lambda answer: [],
    )
    return [kinds[i % 5](answer) for i, answer in enumerate(free)]


@pytest.mark.parametrize(("family", "adapter"), PAIRS)
def test_answers_that_start_as_expected_are_the_same(
    family: str, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "TOGETHER", 16)
    model, rows = adapted(family, adapter), many()
    free = plain(model, rows)
    ends = {free[0][4], free[2][2], free[3][1], free[6][3]}
    cut = cut_after(free, ends)
    read = list[int]()
    how: dict[str, Any] = {"at_once": 4, "starts": starts_of(free)}
    assert greedy(model, rows, 0, LIMIT, ends_with(ends), **how) == cut
    assert greedy(model, rows, 0, LIMIT, ends_with(ends), **how, read=lambda batch, part: read.extend(part)) == cut
    assert greedy(model, rows, 0, LIMIT, ends_with(ends), at_once=4, read=lambda batch, part: read.extend(part)) == cut
    assert sorted(read) == sorted([*range(len(rows))] * 2)


@pytest.mark.parametrize("adapter", ["base", "lora", "prefix", *OTHERS])
def test_a_start_that_is_chosen_takes_one_step(adapter: str) -> None:
    model, rows = adapted("llama", adapter), many()[:4]
    free = greedy(model, rows, 0, LIMIT, never)
    steps = list[int]()

    def count(module: Any, args: Any, kwargs: Any) -> None:
        steps.append(kwargs["input_ids"].shape[1])

    model.register_forward_pre_hook(count, with_kwargs=True)
    assert greedy(model, rows, 0, LIMIT, never, at_once=4, starts=[answer[:4] for answer in free]) == free
    own = adapter not in ("base", "lora", "conv")  # with columns of its own, answers are not started
    assert steps[-5:] == [1] * 5 if own else steps[-2:] == [4, 1]


def test_a_start_counts_only_before_the_end_of_an_answer() -> None:
    model, rows = adapted("llama", "base"), many()[:4]
    free = greedy(model, rows, 0, LIMIT, never)
    for length in range(1, LIMIT + 1):  # the limit is within the start, or just after it
        starts = [answer[:4] for answer in free]
        assert greedy(model, rows, 0, length, never, at_once=4, starts=starts) == [answer[:length] for answer in free]
    ends = {answer[1] for answer in free}
    cut = cut_after(free, ends)
    assert greedy(model, rows, 0, LIMIT, ends_with(ends), at_once=4, starts=[a[:4] for a in free]) == cut


def test_tokens_that_are_drawn_may_start_an_answer_too() -> None:
    model, rows = adapted("llama", "lora"), many()
    choose = drawn(torch.rand(len(rows), LIMIT, generator=torch.Generator().manual_seed(4)), 1.0)
    free = greedy(model, rows, 0, LIMIT, never, choose)
    assert greedy(model, rows, 0, LIMIT, never, choose, at_once=4, starts=starts_of(free)) == free


def test_infinite_logits_within_a_start_are_refused() -> None:
    model, rows = adapted("llama", "base"), many()[:4]
    free = greedy(model, rows, 0, LIMIT, never)

    def damage(module: Any, args: Any, kwargs: Any, out: Any) -> None:
        out.logits[kwargs["input_ids"][:, 0] == free[1][0], 0, free[1][1]] = float("inf")

    model.register_forward_hook(damage, with_kwargs=True)
    with pytest.raises(NotFinite, match="1 of"):
        greedy(model, rows, 0, LIMIT, never, at_once=4, starts=[answer[:3] for answer in free])


class Ended:
    """As much of a `StopRule` as decoding needs."""

    def __init__(self, tokens: set[int]) -> None:
        self.tokens = sorted(tokens)

    def __call__(self, answer: list[int]) -> bool:
        return answer[-1] in self.tokens


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3", "qwen3_next", "falcon_h1", "jamba", "mamba2"])
def test_mixtures_and_hybrids_give_the_answers_of_transformers(family: str) -> None:
    model, rows = random_models.tiny(f"tiny:{family}"), many()
    free = predictions._generate(model, 0, rows, LIMIT, Ended(set()), 1)
    ends = {free[0][0], free[2][2], free[6][3]}
    cut = cut_after(free, ends)
    assert predictions.answer(model, 0, rows, LIMIT, Ended(ends), at_once=4) == cut
    assert can_batch(model) == (family in ("mixtral", "gpt_oss", "deepseek_v3"))


@pytest.mark.parametrize("window", [3, 8, 16])
def test_rows_take_the_place_of_others_in_a_sliding_window(window: int) -> None:
    from transformers import MistralForCausalLM

    config = random_models.tiny_config("tiny:mistral")
    config.sliding_window = window
    torch.manual_seed(0)
    model, rows = MistralForCausalLM(config).eval(), many()
    free = plain(model, rows)
    ends = {free[0][1], free[4][2]}
    cut = cut_after(free, ends)
    assert greedy(model, rows, 0, LIMIT, ends_with(ends), at_once=3) == cut
    assert greedy(model, rows[::-1], 0, LIMIT, ends_with(ends), at_once=3) == cut[::-1]


@pytest.mark.parametrize(("family", "adapter"), PAIRS)
def test_likelihoods_equal_those_of_one_pass_per_answer(
    family: str, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PADDING", 4)
    model, rows = adapted(family, adapter), prompts()
    answers = [[[20 + n, 30, 40][: 1 + (n + i) % 3] for i in range(2 + n % 2)] for n in range(len(rows))]
    got = likelihoods(model, rows, answers, 0)
    for row, group, values in zip(rows, answers, got, strict=True):
        assert len(values) == len(group)
        for answer, value in zip(group, values, strict=True):
            with torch.no_grad():
                whole = model(input_ids=torch.tensor([row + answer])).logits[0].log_softmax(-1)
            expected = sum(float(whole[len(row) - 1 + i, token]) for i, token in enumerate(answer))
            assert value == pytest.approx(expected, abs=1e-4)
        assert likelihoods(model, [row], [group], 0)[0] == pytest.approx(values, abs=1e-4)
    assert can_join(model) == (adapter != "prefix")
    apart = likelihoods(model, rows, answers, 0, shared_prefix(model, rows), can_join(model))
    for values, others in zip(got, apart, strict=True):
        assert others == pytest.approx(values, abs=1e-4)


def test_prompts_run_together_up_to_a_number_of_tokens_and_of_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "TOGETHER", 40)
    monkeypatch.setattr(decoding, "PADDING", 6)
    lengths = (3, 3, 4, 9, 10, 10, 11, 12, 50)
    rows, numbers = [[0] * length for length in lengths], range(1, len(lengths))
    # The first three have 1 token of padding, and 6 more with the fourth; then 40 tokens, and 44 with another row.
    assert decoding._groups(numbers, rows, 0) == [[1, 2], [3, 4, 5], [6, 7], [8]]
    assert decoding._groups(numbers, rows, 2) == [[1, 2], [3, 4, 5, 6], [7], [8]]


def test_models_with_another_kind_of_cache_are_recognised() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    small = MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=32, state_size=4)
    assert not can_batch(MambaForCausalLM(small))


def test_the_common_prefix_leaves_each_row_a_token() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert common_prefix([[1], [1, 2]]) == 0
    assert common_prefix([[1, 2, 9, 4], [1, 2, 3]]) == 2
