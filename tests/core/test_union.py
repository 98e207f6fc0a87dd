"""Union: several adapters in one spec are the same as several adapters by hand, and act as one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from contract import logits, shake, tokens
from small_runs import small

from llm_adapters_lab.core.hooks import MARKS
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.registry import adapter_config, get_adapter
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import BadSpec, CannotConvert, CannotInject, CannotMerge
from llm_adapters_lab.events import Step
from llm_adapters_lab.models import random_models
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.spec import TrainSpec

IDS = tokens()
FOUR = pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma3"])
LORA = {"type": "lora", "rank": 4, "at": "attn+mlp"}
SERIES = {"type": "series", "bottleneck": 8, "at": "attn+mlp", "init": "normal"}
NORMS = {"type": "norm-tuning"}
MANY = [
    {"type": "prefix", "virtual_tokens": 5},
    {**LORA, "sparse": {"score": "random", "sparsity": 0.5}},
    {"type": "series", "bottleneck": 8, "at": "attn+mlp", "quantize": {"bits": 4}},
    {"type": "conv", "bottleneck": 8},
    NORMS,
]


def union(*parts: Any) -> Any:
    return adapter_config({"type": "union", "of": list(parts)})


def put(family: str, config: Any, **options: Any) -> tuple[Any, Injection]:
    model = random_models.tiny(f"tiny:{family}")
    torch.manual_seed(0)
    return model, inject(model, config, **options)


def losses(model: Any, *injections: Injection, steps: int = 4) -> list[float]:
    rows = [Sample(f"r{n}", ids := tuple(tokens(1, 9)[0].roll(n).tolist()), ids) for n in range(8)]
    plan = TrainSpec(batch=4, max_steps=steps, epochs=9, learning_rate=1e-2, precision="fp32")
    return [event.loss for event in train(model, injections[0], rows, plan) if isinstance(event, Step)]


@FOUR
@pytest.mark.parametrize(
    "part", [LORA, SERIES, NORMS, {"type": "prefix", "virtual_tokens": 5}], ids=lambda p: p["type"]
)
def test_a_union_of_one_is_that_adapter_to_the_bit(family: str, part: dict[str, Any]) -> None:
    (model, whole), (other, single) = put(family, union(part)), put(family, adapter_config(part))
    assert whole.count() == single.count()
    assert losses(model, whole) == losses(other, single)
    assert torch.equal(logits(model, IDS), logits(other, IDS))
    assert [key.removeprefix("0/") for key in whole.state_dict()] == list(single.state_dict())


@FOUR
def test_it_is_what_several_injections_are(family: str) -> None:
    (model, whole), (other, first) = (
        put(family, union(LORA, SERIES, NORMS)),
        put(family, adapter_config(LORA), name="a"),
    )
    second = inject(other, adapter_config(SERIES), name="b")
    third = inject(other, adapter_config(NORMS), name="c")
    assert whole.count() == first.count() + second.count() + third.count()
    assert torch.equal(logits(model, IDS), logits(other, IDS))
    for number, single in enumerate((first, second, third)):
        for key, tensor in whole.part(number).state_dict().items():
            assert torch.equal(tensor, single.state_dict()[key])
    shake(whole)
    for number, single in enumerate((first, second, third)):
        single.load_state_dict(whole.part(number).state_dict())
    assert torch.equal(logits(model, IDS), logits(other, IDS))


@FOUR
def test_parts_at_one_output_follow_their_order_and_merge_in_it(family: str) -> None:
    def shaken(*parts: Any) -> tuple[Any, Injection]:
        model, injection = put(family, union(*parts))
        for number, part in enumerate(parts):
            generator = torch.Generator().manual_seed(len(part["type"]))
            with torch.no_grad():
                for p in injection.part(number).parameters():
                    p.add_(torch.randn(p.shape, generator=generator) * 0.1)
        return model, injection

    scaled = {"type": "ia3", "at": "attn+mlp"}
    (model, one), (other, _) = shaken(LORA, scaled), shaken(scaled, LORA)
    seen = logits(model, IDS)
    assert not torch.allclose(seen, logits(other, IDS), atol=1e-5)
    torch.testing.assert_close(logits(merge(one), IDS), seen, atol=1e-5, rtol=1e-5)


@FOUR
def test_it_merges_saves_loads_and_leaves_no_trace(family: str, tmp_path: Path) -> None:
    model, injection = put(family, union(LORA, NORMS, {"type": "krona", "factor": 8, "at": "q,down"}))
    plain = logits(random_models.tiny(f"tiny:{family}"), IDS)
    shake(injection)
    seen = logits(model, IDS)
    save_adapter(injection, tmp_path / "a")
    again = random_models.tiny(f"tiny:{family}")
    loaded = load_adapter(again, tmp_path / "a")
    assert torch.equal(logits(again, IDS), seen)
    torch.testing.assert_close(logits(merge(loaded), IDS), seen, atol=1e-5, rtol=1e-5)
    injection.eject()
    assert torch.equal(logits(model, IDS), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks or set(MARKS) & set(m.__dict__) for m in model.modules())


@FOUR
def test_modifiers_and_a_whole_model_adapter_inside_parts(family: str, tmp_path: Path) -> None:
    model, injection = put(family, union(*MANY))
    plain = injection.count()
    shake(injection)
    with pytest.raises(CannotMerge, match="prefix"):
        merge(injection)
    assert plain < sum(p.numel() for p in injection.parameters())  # the mask drops some
    save_adapter(injection, tmp_path / "a")
    again = random_models.tiny(f"tiny:{family}")
    load_adapter(again, tmp_path / "a")
    torch.testing.assert_close(logits(again, IDS), logits(model, IDS), atol=1e-5, rtol=1e-5)
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    texts = [model.generate(input_ids=IDS, use_cache=cache, **options) for cache in (True, False)]
    assert torch.equal(*texts)


def test_two_parts_with_modifiers_of_their_own_train() -> None:
    sparse = {**LORA, "sparse": {"score": "magnitude", "sparsity": 0.5, "warmup": 2}}
    split = {"type": "parallel", "bottleneck": 8, "split": {"parts": 2, "of": "all"}}
    model, injection = put("llama", union(sparse, split))
    assert len(losses(model, injection)) == 4
    kept = [
        module.kept
        for adapter in injection.adapters.values()
        for module in adapter.modules()
        if hasattr(module, "kept")
    ]
    assert kept
    assert all(0 < float(mask.float().mean()) < 1 for mask in kept)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"of": [{"type": "union", "of": [LORA]}]}, r"of\[0\] is a union itself"),
        ({"of": []}, "of must be"),
        ({"of": [{"type": "lorra"}]}, "no adapter 'lorra'.*Did you mean 'lora'"),
        ({"of": [{"type": "lora", "rnk": 3}]}, r"of\[0\]\.rnk.*Did you mean 'rank'"),
        ({"of": [LORA, 3]}, r"of\[1\] needs a type"),
        ({"of": 3}, "of must be a list of adapters"),
        ({"of": [{**LORA, "split": {"parts": 2}}, {**SERIES, "split": {"parts": 2}}]}, "Only one part"),
    ],
)
def test_what_cannot_be_a_union_is_refused_in_the_spec(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(BadSpec, match=match):
        RunSpec.parse({"adapter": {"type": "union", **fields}})


def test_what_cannot_act_together_is_refused_by_name(tmp_path: Path) -> None:
    model = random_models.tiny("tiny:llama")
    for parts, match in (
        ([{"type": "prefix", "virtual_tokens": 3}, {"type": "prompt-tuning", "virtual_tokens": 3}], "whole model"),
        ([NORMS, {"type": "full-fine-tuning"}], "Two parts train the parameters of"),
        ([{**NORMS, "sparse": {"sparsity": 0.5}}], "own parameters"),
    ):
        with pytest.raises(CannotInject, match=match):
            inject(model, union(*parts))
    with pytest.raises(CannotInject, match="adapter.sparse.*Put it into a part"):
        inject(model, adapter_config({"type": "union", "of": [LORA], "sparse": {"sparsity": 0.5}}))
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(CannotMerge, match="'dora' at .* follows 'lora'"):
        merge(inject(model, union(LORA, {"type": "dora", "rank": 2, "at": "q"}), name="second"))
    with pytest.raises(CannotConvert, match="part 'norm-tuning'"):
        to_peft(inject(random_models.tiny("tiny:llama"), union(LORA, NORMS)), tmp_path / "p")
    to_peft(inject(random_models.tiny("tiny:llama"), union(LORA, {"type": "ia3", "at": "k,v"})), tmp_path / "q")
    assert sorted(p.name for p in (tmp_path / "q").iterdir()) == ["0", "1"]
    for number in "01":
        load_adapter(random_models.tiny("tiny:llama"), tmp_path / "q" / number)


def test_the_id_knows_the_parts_and_not_how_they_are_written() -> None:
    def spec(*parts: Any) -> RunSpec:
        return RunSpec.parse({"adapter": {"type": "union", "of": list(parts)}})

    assert spec("lora", NORMS).id == spec({"type": "lora", "at": "q,v", "rank": 8}, NORMS).id
    assert spec("lora", NORMS).id != spec(NORMS, "lora").id
    assert RunSpec.parse(spec("pfeiffer").model_dump(mode="json")).id == spec("pfeiffer").id
    assert spec("pfeiffer").adapter.parts[0].bias


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "phi3"])
def test_houlsby_whole_starts_near_the_base_and_nearer_with_a_smaller_scale(family: str) -> None:
    plain = logits(random_models.tiny(f"tiny:{family}"), IDS)
    whole = RunSpec.parse({"adapter": {"type": "houlsby-whole"}}).adapter
    assert whole is not None
    series, norms = whole.parts
    far = {}
    for std in (0.01, 0.001):
        model, injection = put(family, union(series.model_copy(update={"init_std": std}), norms))
        far[std] = float((logits(model, IDS) - plain).abs().max())
        width, layers = model.config.hidden_size, len(injection.anatomy.layers)
        assert injection.part(0).count() == layers * 2 * (2 * width * 64 + width + 64)
    assert 50 < far[0.01] / far[0.001] < 200
    assert get_adapter("series").config().init_std == 0.02


def test_a_run_trains_scores_and_resumes_it(tmp_path: Path) -> None:
    record = run(
        small("lora", adapter={"type": "union", "of": [{"type": "pfeiffer", "bottleneck": 8}, NORMS]}), root=tmp_path
    )
    assert record.summary["status"] == "finished"
    assert record.summary["adapter"]["of"][0]["at"] == "mlp"
