"""What units read, heads, virtual tokens and activity over a data set: equal to plain formulas on tiny models."""

from typing import Any

import pytest
import torch
from contract import ALL, CASES, FAMILIES, config, shake
from odd_models import family as odd

from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import NoView
from llm_adapters_lab.inspection.dataset_activity import KINDS, ActivityMoments
from llm_adapters_lab.inspection.heads import head_changes
from llm_adapters_lab.inspection.probes import has_virtual_tokens, virtual_shares
from llm_adapters_lab.inspection.recorder import Recorder
from llm_adapters_lab.inspection.recording import Moments
from llm_adapters_lab.inspection.units import readers, reading_sites, unit_tokens
from llm_adapters_lab.inspection.weight_metrics import norms, weight_change
from llm_adapters_lab.models import random_models
from llm_adapters_lab.tasks.tokens import IGNORED


def adapted(case: str, family: str = "llama", **changes: Any) -> Injection:
    injection = inject(random_models.tiny(f"tiny:{family}"), config(case, **changes))
    shake(injection)
    return injection


def first(injection: Injection, role: str) -> str:
    return next(key for key, site in injection.sites.items() if site.role == role)


def test_readers_are_the_matrices_that_are_applied_first():
    injection = adapted("lora", at="q,down")
    for key in injection.sites:
        (reader,) = readers(injection, key)
        assert torch.equal(reader.weight, injection.adapters[key].A) and reader.of == "x"
    injection = adapted("hydra")
    for key, adapter in injection.adapters.items():
        found = {reader.of: reader.weight for reader in readers(injection, key)}
        assert torch.equal(found["x"], adapter.A_parallel) and torch.equal(found["y"], adapter.A_sequential)
    for case, of in (("series", "y"), ("parallel", "x")):
        injection = adapted(case)
        for key, adapter in injection.adapters.items():
            (reader,) = readers(injection, key)
            assert torch.equal(reader.weight, adapter.bottleneck.down.weight) and reader.of == of
    injection = adapted("conv")
    key = next(iter(injection.adapters))
    (reader,) = readers(injection, key)  # behind a norm of its own
    assert torch.equal(reader.weight, injection.adapters[key].V.weight)
    assert readers(adapted("ia3"), next(iter(adapted("ia3").sites))) == []


def test_masked_matrices_are_read_as_they_are_in_effect():
    injection = adapted("lora-sparse")
    key = next(iter(injection.sites))
    (reader,) = readers(injection, key)
    assert torch.equal(reader.weight, injection.adapters[key].A)
    assert (reader.weight == 0).float().mean() > 0.2


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gpt_neox", "mixtral"])
def test_units_of_the_first_layer_read_what_they_see_at_a_lone_token(family: str):
    """In layer 0 the score is the unit's own input at that token, if there is no context and no position."""
    injection = adapted("lora", family, at="qkv" if family in ("gpt2", "gpt_neox") else "q")
    key, model = next(iter(injection.sites)), injection.model
    (found,) = unit_tokens(injection, key, k=3, limit=4)
    assert found.norm.startswith(injection.anatomy.layers[0])
    if family == "gpt2":
        model.transformer.wpe.weight.data.zero_()
    size = model.config.vocab_size
    with Recorder(model, injection.sites[key].path, "x") as seen, torch.no_grad():
        model(input_ids=torch.arange(size)[:, None], use_cache=False)
    x = seen[injection.sites[key].path].x[:, 0]
    scores = x @ injection.adapters[key].A.T
    z = (scores - scores.mean(0)) / scores.std(0)
    order = scores.std(0).argsort(descending=True)
    assert found.units.tolist() == order[:4].tolist()
    for at, unit in enumerate(found.units.tolist()):
        assert found.high[at].tolist() == z[:, unit].topk(3).indices.tolist()
        assert found.low[at].tolist() == z[:, unit].topk(3, largest=False).indices.tolist()
        assert torch.allclose(found.high_scores[at], z[:, unit].topk(3).values, atol=2e-3)
    assert torch.allclose(found.spread, scores.std(0)[found.units], rtol=2e-3)


def test_a_bottleneck_behind_a_sublayer_reads_embeddings_of_unit_size():
    injection = adapted("series")
    key = next(iter(injection.sites))
    (found,) = unit_tokens(injection, key, k=2, limit=3, vocabulary=100)
    rows = injection.model.get_input_embeddings().weight[:100]
    rows = rows / rows.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)  # that of the padding is zero
    scores = rows @ injection.adapters[key].bottleneck.down.weight.T
    z = (scores - scores.mean(0)) / scores.std(0)
    assert found.norm == ""
    for at, unit in enumerate(found.units.tolist()):
        assert found.high[at].tolist() == z[:, unit].topk(2).indices.tolist()


def test_units_that_do_not_read_the_stream_are_refused():
    injection = adapted("lora", at="q,o,down")
    assert {injection.sites[key].role for key in reading_sites(injection)} == {"q"}
    with pytest.raises(NoView, match="inside a sublayer"):
        unit_tokens(injection, first(injection, "down"))
    injection = adapted("ia3")
    with pytest.raises(NoView, match="no down projection"):
        unit_tokens(injection, next(iter(injection.sites)))
    assert reading_sites(injection) == []


@ALL
def test_probing_leaves_no_trace(case: str):
    injection = adapted(case)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in injection.model.modules()]
    before = injection.state_dict()
    for key in reading_sites(injection):
        unit_tokens(injection, key, k=1, limit=1)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in injection.model.modules()] == hooks
    assert all(torch.equal(before[name], value) for name, value in injection.state_dict().items())


@FAMILIES
def test_units_are_named_in_every_family(family: str):
    injection = adapted("parallel", family)
    keys = reading_sites(injection)
    assert keys == list(injection.sites)
    (found,) = unit_tokens(injection, keys[-1], k=2)
    assert found.high.shape == found.low.shape == (8, 2)


def test_heads_are_rows_of_q_k_v_and_columns_of_o():
    injection = adapted("lora", at="q,k,v,o,up")  # 4 query heads, 2 of keys and values, of width 8
    found = head_changes(injection)
    assert len(found) == 2 * 4
    for key, change in found.items():
        delta, heads = weight_change(injection, key), {"q": 4, "k": 2, "v": 2, "o": 4}[change.role]
        own = injection.model.get_submodule(injection.sites[key].path).weight
        for h in range(heads):
            part = slice(8 * h, 8 * h + 8)
            block = delta[:, part] if change.role == "o" else delta[part]
            base = own[:, part] if change.role == "o" else own[part]
            assert change.change[h] == pytest.approx(float(block.norm()), rel=1e-5)
            assert change.relative[h] == pytest.approx(float(block.norm() / base.norm()), rel=1e-4)
        assert float(change.change.square().sum()) == pytest.approx(norms(injection)[key].change ** 2, rel=1e-4)


def test_heads_that_are_missing_or_fused_are_refused():
    for case, changes, words in (
        ("lora", {"at": "up,down"}, "at none of the attention projections"),
        ("prefix", {}, "at none of the attention projections"),
        ("series-linear", {}, "at none of the attention projections"),
    ):
        with pytest.raises(NoView, match=words):
            head_changes(adapted(case, **changes))
    with pytest.raises(NoView, match="at none of the attention projections"):
        head_changes(adapted("lora", "gpt2", at="qkv"))


def test_only_the_layers_of_a_hybrid_that_have_attention_have_heads():
    model = odd("lfm2_moe")
    injection = inject(model, get_adapter("lora").config(rank=2, at="q?,v?"))
    shake(injection)
    assert {change.layer for change in head_changes(injection).values()} == {1}


@pytest.mark.parametrize("case", ["prefix", "prompt-tuning", "p-tuning-lstm"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_virtual_shares_are_sums_of_the_attention_weights(case: str, family: str):
    injection, ids = adapted(case, family), torch.arange(5, 12)
    shares = virtual_shares(injection.model, ids, injection)
    model = injection.model
    model.set_attn_implementation("eager")
    seen: list[torch.Tensor] = []
    for path in injection.anatomy.layers:
        layer = model.get_submodule(path)
        attention = next(m for n, m in layer.named_children() if "attn" in n)
        attention.register_forward_hook(lambda m, a, out: seen.append(out[1]))
    with torch.no_grad():
        model(input_ids=ids[None], use_cache=False)
    assert list(shares) == [0, 1]
    for layer, pattern in enumerate(seen):
        expected = pattern[0, :, -7:, :5].sum(-1)
        assert shares[layer].shape == (4, 7) and torch.allclose(shares[layer], expected, atol=1e-6)
        assert bool((shares[layer] > 0).all()) and bool((shares[layer] < 1).all())


def test_methods_without_virtual_tokens_have_no_share():
    injection = adapted("lora")
    assert not has_virtual_tokens(injection)
    with pytest.raises(NoView, match="no virtual tokens"):
        virtual_shares(injection.model, torch.arange(5, 9), injection)


def test_layers_without_attention_have_no_share():
    model = odd("granitemoehybrid")
    injection = inject(model, get_adapter("prompt-tuning").config(virtual_tokens=3))
    assert list(virtual_shares(model, torch.arange(5, 11), injection)) == [1]


def rows(count: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    random = torch.Generator().manual_seed(3)
    found = []
    for n in range(count):
        ids = torch.randint(3, 128, (4 + n,), generator=random)
        ids[0], ids[-1] = 1, 2
        labels = ids.clone()
        labels[:2] = IGNORED
        found.append((ids, labels))
    return found


@pytest.mark.parametrize("case", ["lora", "series", "parallel-both", "ia3", "series-in", "dora"])
def test_running_moments_are_those_of_all_tokens_at_once(case: str):
    injection, given = adapted(case), rows()
    values: dict[tuple[str, str], list[float]] = {}
    for ids, labels in given:
        with torch.no_grad(), Recorder(injection.model, what=("base", "contributions")) as seen:
            injection.model(input_ids=ids[None])
        for key, recording in seen.items():
            added, base = recording.contributions["default"][0].double(), recording.base[0].double()
            for i, share in enumerate((added.norm(dim=-1) / base.norm(dim=-1)).tolist()):
                kind = "control" if ids[i] in (1, 2) else "prompt" if labels[i] == IGNORED else "answer"
                values.setdefault((key, kind), []).append(share)
    last = ActivityMoments(injection, [2, 1])
    for ids, labels in given:
        last.add(ids, labels)
    table = last.table()
    assert last.rows == len(given)
    assert set(table) == {key for key, _ in values} and all(tuple(found) == KINDS for found in table.values())
    for (key, kind), own in values.items():
        expected, found = torch.tensor(own, dtype=torch.float64), table[key][kind]
        assert found.count == len(own)
        assert found.mean == pytest.approx(float(expected.mean()), rel=1e-9)
        assert found.std == pytest.approx(float(expected.std()), rel=1e-7)


def test_moments_merge_exactly_whatever_the_blocks():
    values = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e6
    moments = Moments("covariance")
    for block in values.split([1, 7, 0, 92, 900]):
        moments.add(block)
    assert float(moments.mean) == pytest.approx(float(values.mean()), rel=1e-15)
    assert float(moments.value()) == pytest.approx(float(values.var()), rel=1e-9)


def test_kinds_without_tokens_are_not_a_number():
    injection = adapted("lora")
    moments = ActivityMoments(injection)
    moments.add(torch.tensor([5, 6, 7]), torch.tensor([IGNORED, IGNORED, 7]))
    found = next(iter(moments.table().values()))
    assert [found[kind].count for kind in KINDS] == [2, 1, 0]
    assert found["control"].mean != found["control"].mean and found["answer"].std != found["answer"].std


@pytest.mark.parametrize("case", [case for case in CASES if get_adapter(CASES[case]["type"]).cls.scope == "model"])
def test_methods_that_add_nothing_at_a_site_have_no_activity(case: str):
    with pytest.raises(NoView):
        ActivityMoments(adapted(case))
