"""Masks, parts and low bits for any adapter: exact counts, exact files, and rejected configs."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import CASES, config, logits, shake, tokens
from safetensors.torch import load_file
from torch.nn.utils import parametrize

from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.modifiers import configs, low_bit, partition
from llm_adapters_lab.core.modifiers import masks as sparse
from llm_adapters_lab.core.modifiers.base import modified
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import BadSpec, CannotInject, CannotMerge, StateMismatch, TrainingFailed
from llm_adapters_lab.events import Step
from llm_adapters_lab.models import random_models
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.tokens import IGNORED, Sample
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.spec import TrainSpec

SERIES = {"type": "series", "bottleneck": 8, "init": "normal"}


def made(fields: dict[str, Any], family: str = "llama") -> tuple[Any, Injection]:
    torch.manual_seed(0)
    model = random_models.tiny(f"tiny:{family}")
    return model, inject(model, get_adapter(fields["type"]).config.model_validate(fields))


def samples(rows: int = 8) -> list[Sample]:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(3, 120, (rows, 10), generator=generator).tolist()
    return [Sample(str(i), tuple(row), (*[IGNORED] * 5, *row[5:])) for i, row in enumerate(drawn)]


def fit(model: Any, injection: Injection, steps: int = 4, **plan: Any) -> list[float]:
    spec = TrainSpec(
        **{"batch": 4, "max_steps": steps, "epochs": 10, "learning_rate": 1e-2, "precision": "fp32", **plan}
    )
    return [event.loss for event in train(model, injection, samples(), spec) if isinstance(event, Step)]


def kept(injection: Injection) -> torch.Tensor:
    return torch.cat([mask.kept.flatten() for _, _, mask in modified(injection.adapters)])


# All


PLAIN = [case for case, fields in CASES.items() if not {"sparse", "split", "quantize", "of"} & fields.keys()]
MODIFIERS: list[dict[str, Any]] = [
    {"sparse": {"score": "random", "sparsity": 0.5}},
    {"split": {"parts": 2, "of": "all"}},
    {"quantize": {"bits": 1}},
]


@pytest.mark.parametrize("modifier", MODIFIERS, ids=lambda modifier: next(iter(modifier)))
@pytest.mark.parametrize("case", PLAIN)
def test_every_method_computes_with_what_every_modifier_returns(
    case: str, modifier: dict[str, Any], tmp_path: Path
) -> None:
    (plain, whole), model = made(CASES[case]), random_models.tiny("tiny:llama")
    if "groups" in type(whole.config).model_fields:  # its matrices are generated
        with pytest.raises(ValueError, match="it changes matrices"):
            config(case, **modifier)
        return
    matrices = [name for name, tensor in whole.state_dict().items() if tensor.ndim > 1]
    if (
        CASES[case].get("encoder") == "lstm"
        or not matrices
        or any(adapter.trains_base or adapter.for_tokens for adapter in whole.adapters.values())
    ):
        with pytest.raises(CannotInject, match="matrices|recurrent|own parameters"):
            inject(model, config(case, **modifier))
        return
    injection = inject(model, config(case, **modifier))
    shake(injection)
    own = {
        key.replace("parametrizations.", "").replace(".original", ""): t for key, t in injection.state_dict().items()
    }
    whole.load_state_dict({key: own[key] for key in whole.state_dict()})
    save_adapter(injection, tmp_path)
    seen = logits(model, tokens())
    load_adapter(loaded := random_models.tiny("tiny:llama"), tmp_path)
    torch.testing.assert_close(logits(loaded, tokens()), seen, atol=1e-5, rtol=1e-5)
    torch.manual_seed(1)
    assert not torch.allclose(logits(model.train(), tokens()), logits(plain, tokens()), atol=1e-4)
    with suppress(CannotMerge):
        torch.testing.assert_close(logits(merge(injection).eval(), tokens()), seen, atol=1e-3, rtol=1e-3)


# Masks


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("score", ["random", "magnitude", "snip", "grasp", "synflow"])
def test_exactly_the_requested_fraction_is_kept_and_the_rest_stays_zero(score: str, scope: str) -> None:
    model, injection = made({**SERIES, "sparse": {"score": score, "sparsity": 0.7, "scope": scope}})
    sizes = [w.numel() for _, w, _ in modified(injection.adapters)]
    expected = round(0.3 * sum(sizes)) if scope == "global" else sum(round(0.3 * size) for size in sizes)
    assert injection.count() == expected
    fit(model, injection, weight_decay=0.5)
    assert int(kept(injection).sum()) == expected
    for _, w, mask in modified(injection.adapters):
        assert not bool((w * mask.kept)[~mask.kept].any())
    adapter = injection.adapters[next(iter(injection.adapters))]
    down = adapter.bottleneck.down
    assert torch.equal(down.weight == 0, ~down.parametrizations.weight[0].kept)
    assert injection.count() == expected


def test_the_weight_whose_removal_changes_the_loss_most_has_the_highest_snip_score() -> None:
    """For a quadratic loss, removing a weight w with gradient g changes the loss by about |w g|."""
    model, injection = made({**SERIES, "at": "mlp@0", "sparse": {"score": "snip", "sparsity": 0.99}})
    rows = samples(4)
    list(train(model, injection, rows, TrainSpec(batch=4, max_steps=1, learning_rate=1e-12, precision="fp32")))
    ids = torch.tensor([row.ids for row in rows])
    labels = torch.tensor([row.labels for row in rows])[:, 1:].flatten()

    def loss() -> float:
        out = model(ids).logits[:, :-1].flatten(0, 1).double()
        return float(torch.nn.functional.cross_entropy(out, labels, ignore_index=IGNORED))

    everything = [(v, m) for _, v, m in modified(injection.adapters)]
    for _, m in everything:
        m.kept.fill_(True)
    with torch.no_grad():
        whole, changes = loss(), []
        for v, _ in everything:
            flat = v.view(-1)
            for i in range(0, flat.numel(), 3):
                old = flat[i].item()
                flat[i] = 0.0
                changes.append((abs(loss() - whole), v, i))
                flat[i] = old
    out = model(ids).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(out, labels, ignore_index=IGNORED).backward()
    scores = [float((v.detach().view(-1)[i] * v.grad.view(-1)[i]).abs()) for _, v, i in changes]
    rank = torch.corrcoef(
        torch.stack([torch.tensor(x).argsort().argsort().float() for x in (scores, [c for c, _, _ in changes])])
    )
    assert rank[0, 1] > 0.95
    best = max(range(len(scores)), key=scores.__getitem__)
    assert sorted(range(len(changes)), key=lambda i: -changes[i][0]).index(best) < 3


def test_ties_do_not_remove_more_weights_than_requested() -> None:
    masks = [sparse.Mask(torch.Size([20, 20]), configs.SparseConfig(sparsity=0.25, scope="tensor"))]
    masks[0].dropped = 100
    sparse._choose(masks, [torch.zeros(20, 20)])
    assert int(masks[0].kept.sum()) == 300


@pytest.mark.parametrize("kind", ["lora", "series"])
def test_snip_needs_a_warmup_if_the_output_projection_is_zero(kind: str) -> None:
    size = {"rank": 4} if kind == "lora" else {"bottleneck": 8}
    plan = {"score": "snip", "sparsity": 0.5}
    model, injection = made({"type": kind, **size, "sparse": plan})
    with pytest.raises(TrainingFailed, match=r"All snip scores of the adapter are zero.*warmup"):
        fit(model, injection)
    model, injection = made({"type": kind, **size, "sparse": {**plan, "warmup": 2}})
    fit(model, injection, steps=2)
    assert bool(kept(injection).all())
    model, injection = made({"type": kind, **size, "sparse": {**plan, "warmup": 2}})
    fit(model, injection, steps=3)
    assert int(kept(injection).sum()) == injection.count()


def test_large_sparse_has_the_count_of_the_dense_one() -> None:
    _, dense = made({"type": "series", "bottleneck": 8})
    _, large = made({"type": "series", "bottleneck": 32, "sparse": {"sparsity": 0.75}})
    assert large.count() == dense.count()


# Parts


def test_parts_are_disjoint_of_equal_size_and_cover_the_matrix() -> None:
    (parts,) = partition.parts([torch.zeros(7, 9)], configs.SplitConfig(parts=4))
    counts = torch.bincount(parts.part.flatten().long(), minlength=4)
    assert counts.sum() == 63
    assert counts.max() - counts.min() <= 1
    w = torch.randn(7, 9)
    torch.manual_seed(0)
    drawn = {tuple(parts(w).flatten().tolist()) for _ in range(64)}
    assert len(drawn) == 4
    assert torch.allclose(torch.tensor(list(drawn)).mean(0), w.flatten())
    assert torch.equal(parts.eval()(w), w)


def test_one_part_is_the_plain_adapter_and_after_training_there_is_one_ordinary_adapter() -> None:
    plain = fit(*made(SERIES))
    assert fit(*made({**SERIES, "split": {"parts": 1}})) == pytest.approx(plain, abs=0)
    model, injection = made({**SERIES, "split": {"parts": 4, "of": "all"}})
    assert fit(model, injection) != plain
    _, ordinary = made(SERIES)
    assert injection.count() == ordinary.count()
    ids = tokens()
    assert torch.equal(logits(model, ids), logits(model, ids))
    other, twin = made(SERIES)
    state = {
        key.replace("parametrizations.", "").removesuffix(".original"): v for key, v in injection.state_dict().items()
    }
    twin.load_state_dict({key: v for key, v in state.items() if not key.endswith("part")})
    assert torch.equal(logits(other, ids), logits(model, ids))


def test_the_divergence_is_symmetric_zero_for_equal_inputs_and_agrees_with_torch() -> None:
    a, b = torch.randn(5, 11), torch.randn(5, 11)
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    kl = torch.nn.functional.kl_div
    expected = (kl(p, q, log_target=True, reduction="sum") + kl(q, p, log_target=True, reduction="sum")) / 2
    assert torch.allclose(partition.divergence(a, b), expected, atol=1e-5)
    assert torch.allclose(partition.divergence(a, b), partition.divergence(b, a))
    assert float(partition.divergence(a, a)) == 0


# Low bits


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["lora", "series"])
def test_the_file_has_the_expected_size_and_restores_every_bit(kind: str, bits: int, tmp_path: Path) -> None:
    size = {"rank": 3} if kind == "lora" else {"bottleneck": 7}
    model, injection = made({"type": kind, **size, "quantize": {"bits": bits}})
    fit(model, injection)
    before = logits(model, tokens())
    for _, w, _ in modified(injection.adapters):
        assert w.detach().unique().numel() > 2**bits or bits == 8
    values = [getattr(m, n) for a in injection.adapters.values() for m in a.modules() for n in _names(m)]
    assert all(v.unique().numel() <= 2**bits for v in values)

    save_adapter(injection, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter.safetensors")
    expected = sum(-(-w.numel() * bits // 8) + 8 for _, w, _ in modified(injection.adapters))
    assert sum(t.numel() * t.element_size() for t in stored.values()) == expected

    again = random_models.tiny("tiny:llama")
    loaded = load_adapter(again, tmp_path / "adapter")
    assert torch.equal(logits(again, tokens()), before)
    save_adapter(loaded, tmp_path / "twice")
    twice = load_file(tmp_path / "twice" / "adapter.safetensors")
    assert all(torch.equal(t, twice[key]) for key, t in stored.items())
    assert fit(again, loaded)[0] == pytest.approx(fit(model, injection)[0], rel=0.2)  # and training can continue


def _names(module: torch.nn.Module) -> list[str]:
    return list(module.parametrizations) if parametrize.is_parametrized(module) else []


def test_the_codebook_is_that_of_the_paper_and_more_bits_reduce_the_error() -> None:
    assert low_bit.codebook(1).tolist() == pytest.approx([-0.6745, 0.6745], abs=1e-4)
    w, errors = torch.randn(64, 64), []
    for bits in (1, 2, 4, 8):
        rounded = low_bit.Quantiser(bits)(w)
        errors.append(float((rounded - w).abs().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * errors[0]


def test_the_gradient_is_straight_through_and_a_constant_matrix_does_not_change() -> None:
    w = torch.randn(4, 6, requires_grad=True)
    weights = torch.randn(4, 6)
    (low_bit.Quantiser(1)(w) * weights).sum().backward()
    assert torch.equal(w.grad, weights)
    for value in (0.0, 3.5):
        assert torch.equal(low_bit.Quantiser(1)(torch.full((3, 3), value)), torch.full((3, 3), value))


def test_a_damaged_file_is_rejected_and_nothing_is_loaded(tmp_path: Path) -> None:
    _, injection = made({"type": "lora", "rank": 3, "quantize": {"bits": 1}})
    shake(injection)
    state = injection.saved_tensors()
    before = injection.state_dict()
    name = next(key for key in state if key.endswith(low_bit.BITS))
    for wrong in (state[name][:-1], state[name].float()):
        with pytest.raises(StateMismatch, match="bytes and two finite numbers"):
            injection.load_saved({**state, name: wrong})
    with pytest.raises(StateMismatch, match="missing"):
        injection.load_saved({key: t for key, t in state.items() if key != name})
    assert all(torch.equal(t, before[key]) for key, t in injection.state_dict().items())


# All modifiers


@pytest.mark.parametrize(
    "wrapper",
    [{"sparse": {"score": "snip", "sparsity": 0.5, "warmup": 2}}, {"split": {}}, {"quantize": {"bits": 2}}],
    ids=lambda wrapper: next(iter(wrapper)),
)
def test_a_run_is_trained_scored_saved_and_restored_exactly(wrapper: dict[str, Any], tmp_path: Path) -> None:
    fields = {
        "adapter": {"type": "lora", "rank": 4, **wrapper},
        "data": {"rows": 16, "max_tokens": 128},
        "train": {"batch": 8, "epochs": 8, "learning_rate": 1e-2, "schedule": "constant"},
        "eval": {"tasks": ["mini-addsub"], "rows": 4, "max_new_tokens": 4},
    }
    record = run(RunSpec.parse(fields), root=tmp_path)
    losses = [event["loss"] for event in record.events("Step")]
    assert losses[-1] < losses[0]
    base, injection = restore(record)
    assert injection is not None
    assert record.summary["trainable_parameters"] == injection.count()
    stored = load_file(record.folder / "adapter" / "adapter.safetensors").values()
    assert record.summary["adapter_bytes"] == sum(t.numel() * t.element_size() for t in stored)
    again = run(RunSpec.parse(fields), root=tmp_path / "again")
    assert [e["loss"] for e in again.events("Step")] == losses
    ids = torch.tensor([[5, 6, 7, 8]])
    hooked = base.model(ids).logits
    assert torch.allclose(merge(injection)(ids).logits, hooked, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "error", "expected"),
    [
        ({"type": "bitfit", "split": {}}, CannotInject, "'bitfit' has no matrices"),
        ({"type": "ia3", "sparse": {}}, CannotInject, "'ia3' has no matrices"),
        ({"type": "norm-tuning", "quantize": {}}, CannotInject, "trains the base's own parameters"),
        ({"type": "p-tuning", "encoder": "lstm", "hidden": 8, "sparse": {}}, CannotInject, "recurrent weights"),
        ({"type": "lora", "sparse": {}, "quantize": {}}, BadSpec, "adapter.sparse and adapter.quantize exclude"),
    ],
)
def test_adapters_that_cannot_be_modified_are_rejected_by_name(
    fields: dict[str, Any], error: type[Exception], expected: str
) -> None:
    model = random_models.tiny("tiny:llama")
    ids = tokens()
    plain = logits(model, ids)
    with pytest.raises(error, match=expected):
        inject(model, get_adapter(fields["type"]).config.model_validate(fields))
    assert torch.equal(logits(model, ids), plain)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"sparse": {"sparsity": 1.0}}, "adapter.sparse.sparsity"),
        ({"sparse": {"score": "snop"}}, "adapter.sparse.score"),
        ({"quantize": {"bits": 3}}, "adapter.quantize.bits"),
        ({"split": {"parts": 0}}, "adapter.split.parts"),
        ({"split": {"bits": 1}}, "bits"),
    ],
)
def test_bad_fields_are_named(part: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadSpec, match=expected):
        RunSpec.parse({"adapter": {"type": "lora", **part}})
