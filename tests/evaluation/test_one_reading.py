"""An answer and the likelihoods of the labels come from one reading of the prompt, and are those of two."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from memory_adapter import memories, reading_memory

from llm_adapters_lab.core.call_context import context_of
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import NotFinite
from llm_adapters_lab.evaluation import decoding, predictions
from llm_adapters_lab.evaluation.likelihood import _label_targets, _parted
from llm_adapters_lab.evaluation.predictions import evaluate
from llm_adapters_lab.models import loading, random_models
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.formats import get_format
from llm_adapters_lab.tasks.registry import get_task

BOOL = get_task("mini-bool")
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "at": "attn+mlp"},
    "prefix": {"virtual_tokens": 5},  # with columns of its own
    "prompt-tuning": {"virtual_tokens": 3},
    "conv": {"bottleneck": 8},  # looks back
    "parscale": get_adapter("parscale").cls.example,
}
CASES = [(family, adapter) for family in random_models.TINY for adapter in ("base", "prefix")]
CASES += [("llama", adapter) for adapter in ("lora", "prompt-tuning", "conv", "parscale", "memory")]
CASES += [("bloom", "conv"), ("gpt2", "memory"), ("mixtral", "base"), ("falcon_h1", "base"), ("mamba2", "base")]
CASES += [("mistral", "window")]
CASES.remove(("mpt", "prefix"))  # is refused


def rows(worded: bool) -> list[Example]:
    """Seven of mini-bool, whose labels have one token, and six whose labels begin alike, by two lengths."""
    found, names = BOOL.load("test", None)[:7], ("answer1", "answer2", "answer10")
    for i in range(6):
        answer, words = names[i % 3], ("red", "a blue", "dark green") if worded else names
        output = answer if i % 2 else f"the correct answer is {answer}"
        text = "which of " + "the " * i + "ropes ?"
        found.append(Example(f"worded/{i}", text, "", output, answer, tuple(zip(names, words, strict=True))))
    return found


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return loading.load_base("nano").tokenizer


@pytest.fixture
def model(request: pytest.FixtureRequest, tokenizer: Any) -> Iterator[Any]:
    """A random model for the tokens of nano, whose answers end at different lengths."""
    from transformers import AutoModelForCausalLM

    family, adapter = request.param
    config = random_models.tiny_config(f"tiny:{family}")
    config.vocab_size = len(tokenizer)
    if adapter == "window":
        config.sliding_window, adapter = 8, "base"
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = list(range(3, len(tokenizer), 4))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():  # so that it does not repeat one token
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    if adapter == "memory":
        with reading_memory(model), context_of(model).given(memory=memories(13)):
            yield model
        return
    if adapter != "base":
        with torch.no_grad():
            for p in inject(model, get_adapter(adapter).config(type=adapter, **ADAPTERS[adapter])).parameters():
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    yield model


@pytest.fixture
def labelled(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Get the rows of every batch of which labels are read."""
    read, found = predictions.read_labels, list[list[int]]()
    monkeypatch.setattr(predictions, "read_labels", lambda *given: found.append(given[-1]) or read(*given))
    monkeypatch.setattr(decoding, "TOGETHER", 200)
    return found


@pytest.mark.parametrize("model", CASES, indirect=True, ids="-".join)
def test_both_are_those_of_separate_readings(model: Any, tokenizer: Any, labelled: list[list[int]]) -> None:
    def made(**options: Any) -> dict[str, Any]:
        found = evaluate(model, tokenizer, BOOL, rows(worded=True), batch=4, max_new_tokens=6, **options)
        return {p["id"]: p for p in found}

    both = made()
    assert sorted(row for part in labelled for row in part) == (list(range(13)) if decoding.can_batch(model) else [])
    answers, scores = made(likelihood=False), made(protocol="options")
    assert list(both) == list(answers)
    for name, p in both.items():
        options = p.pop("options")
        assert p == answers[name]
        for kind, values in scores[name]["options"].items():
            assert options[kind] == pytest.approx(values, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    "model", [("llama", "lora"), ("mpt", "base"), ("mistral", "window")], indirect=True, ids="-".join
)
def test_rows_are_read_beside_others_that_are_answered(
    model: Any, tokenizer: Any, labelled: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, join, answered, beside = decoding.decode_step, decoding._joined, list[Any](), list[int]()

    def stepping(model: Any, batch: Any, *given: Any, **options: Any) -> Any:
        if not options:  # a token of each answer, not a start
            answered.append(batch)
        return step(model, batch, *given, **options)

    def joining(parts: Any) -> Any:
        if len(parts) > 1 and any(parts[0] is batch for batch in answered):
            beside.append(len(labelled))
        return join(parts)

    monkeypatch.setattr(decoding, "decode_step", stepping)
    monkeypatch.setattr(decoding, "_joined", joining)
    list(evaluate(model, tokenizer, BOOL, rows(worded=True), batch=4, max_new_tokens=6))
    assert beside and beside[-1] > 1  # labels of the rows that join were read just before


@pytest.mark.parametrize("model", [("llama", "lora"), ("llama", "prompt-tuning")], indirect=True, ids="-".join)
def test_every_token_of_a_prompt_runs_once(model: Any, tokenizer: Any) -> None:
    form, asked, counts = get_format(tokenizer, BOOL.template), rows(worded=False), []
    model.register_forward_pre_hook(lambda module, args, kwargs: ran.append(kwargs), with_kwargs=True)
    for likelihood in (False, True):
        ran: list[dict[str, Any]] = []
        list(evaluate(model, tokenizer, BOOL, asked, batch=4, max_new_tokens=6, likelihood=likelihood))
        counts.append(sum(int((each["input_ids"] != tokenizer.pad_token_id).sum()) for each in ran))
    labels = [_parted(tokenizer, _label_targets(BOOL, row, form)) for row in asked]
    lengths = {len(begun) for begun, _ in labels}
    assert len(lengths) == 3 and 0 in lengths
    # What the labels begin with once; of the rest all but the last token, which is predicted and not read.
    more = sum(len(begun) + sum(len(label) - 1 for label in rest) for begun, rest in labels)
    assert counts[1] - counts[0] == more


@pytest.mark.parametrize("model", [("llama", "base")], indirect=True, ids="-".join)
def test_a_row_whose_labels_are_nan_is_named(model: Any, tokenizer: Any) -> None:
    asked = rows(worded=False)[:8]
    begun, _ = _parted(tokenizer, _label_targets(BOOL, asked[-1], get_format(tokenizer, BOOL.template)))

    def damage(module: Any, args: Any, kwargs: Any, out: Any) -> None:
        if kwargs["input_ids"].shape == (1, len(begun)):
            out.logits.fill_(float("nan"))

    model.register_forward_hook(damage, with_kwargs=True)
    with pytest.raises(NotFinite, match="mini-bool cannot be scored, rows worded/0. The logits of 1 of 1 rows"):
        list(evaluate(model, tokenizer, BOOL, asked, batch=4, max_new_tokens=6))


def test_nothing_is_shared_where_prompts_are_not_answered_greedily(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(predictions, "read_labels", refuse)
    base = loading.load_base("nano")
    for protocol in ("paper", "options"):
        made = evaluate(base.model, base.tokenizer, BOOL, rows(worded=False), protocol=protocol, max_new_tokens=2)
        assert all(p["options"]["label"] for p in made)
