"""Adapters with a part for each group: mixed batches, packing, padding, cache, baking, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from contract import logits, tokens
from torch import nn

from llm_adapters_lab import inject
from llm_adapters_lab.core import World, bake, grouped, load_adapter, save_adapter
from llm_adapters_lab.core.baking import for_groups
from llm_adapters_lab.core.call_context import context_of
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.registry import all_adapters, get_adapter
from llm_adapters_lab.errors import BadSpec, CannotConvert, CannotInject
from llm_adapters_lab.evaluation.decoding import greedy
from llm_adapters_lab.models import random_models
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.loss import FastPaths, Objective

FAMILIES = pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "opt", "gemma3"])
CASES = {name: {"type": name, **entry.cls.example} for name, entry in all_adapters().items() if entry.cls.baked}
ALL = pytest.mark.parametrize("case", CASES)
NAMES = ("de", "fr", "it")


def adapted(case: str, family: str = "llama", **fields: Any) -> tuple[Any, Injection]:
    """Return a model with an adapter that has learnt something else for each group."""
    torch.manual_seed(0)
    model = random_models.tiny(f"tiny:{family}").eval()
    given = {**CASES[case], "groups": NAMES, **fields}
    injection = inject(model, get_adapter(given["type"]).config(**given))
    with torch.no_grad():
        for p in injection.parameters():
            p.add_(torch.randn_like(p) * (1.0 if p.shape[0] == len(NAMES) else 0.1))
    return model, injection


@FAMILIES
@ALL
def test_a_mixed_batch_equals_one_pass_per_group(case: str, family: str) -> None:
    model, _ = adapted(case, family)
    ids, names = tokens(4), ["de", "it", "de", "fr"]
    with grouped(model, names):
        mixed = logits(model, ids)
    for row, name in enumerate(names):
        with grouped(model, [name]):
            assert torch.allclose(mixed[row], logits(model, ids[row : row + 1])[0], atol=1e-5)
    with grouped(model, ["fr"] * 4):
        assert not torch.allclose(mixed[0], logits(model, ids)[0], atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gemma3"])
@pytest.mark.parametrize("share", [False, True])
@ALL
def test_packed_rows_keep_their_groups_and_share_no_prefix_across_them(case: str, family: str, share: bool) -> None:
    model, _ = adapted(case, family)
    ids = (5, 6, 7, 8, 9, 10)
    rows = [Sample(f"{i}", ids[: 6 - i // 3], ids[: 6 - i // 3], group=NAMES[i % 3]) for i in range(6)]
    found = []
    for paths in (FastPaths(), FastPaths(label_head=True, packing=True, share_prefix=share)):
        with torch.no_grad(), Objective(model, paths).losses(model, rows) as losses:
            found.append(losses)
    assert torch.allclose(*found, atol=1e-5)
    one, other = found[0][:5], found[0][5:10]
    assert not torch.allclose(one, other, atol=1e-4)


@FAMILIES
@ALL
def test_answers_with_padding_cache_and_shared_prompts_are_those_of_each_row_alone(case: str, family: str) -> None:
    model, _ = adapted(case, family)
    rows = [[5, 6, 7, 8, 9], [5, 6, 7, 4], [5, 6, 7]]
    alone = []
    for names in (["de", "fr", "it"], ["fr"] * 3):  # the second shares the prompt, as all rows are of one group
        for row, name in zip(rows, names, strict=True):
            with grouped(model, [name]):
                alone.append(greedy(model, [row], 0, len(row), lambda answer: False)[0])
        done = {0: 5, 1: 4, 2: 3}
        with grouped(model, names):
            made = greedy(model, rows, 0, 6, lambda answer: False)
        assert [answer[: done[i]] for i, answer in enumerate(made)] == alone[-3:]


@FAMILIES
@ALL
def test_baked_equals_generated_and_merges(case: str, family: str) -> None:
    for group in (*NAMES, "mean"):
        model, injection = adapted(case, family)
        with grouped(model, [] if group == "mean" else [group, group]):
            generated = logits(model, tokens())
        kinds = {type(adapter) for adapter in injection.adapters.values()}
        plain = bake(injection, group)
        assert torch.allclose(logits(model, tokens()), generated, atol=1e-6)
        assert kinds.isdisjoint(map(type, plain.adapters.values()))
        assert not any(isinstance(module, tuple(kinds)) for module in model.modules())
        if get_adapter(plain.config.type).cls.merged:
            assert torch.allclose(logits(merge(plain), tokens()), generated, atol=1e-5)


@ALL
def test_saved_groups_are_loaded_and_copies_run_their_own(case: str, tmp_path: Path) -> None:
    model, injection = adapted(case)
    with grouped(model, ["it", "de"]):
        before = logits(model, tokens())
    save_adapter(injection, tmp_path / "adapter", "tiny:llama")
    fresh = random_models.tiny("tiny:llama")
    assert load_adapter(fresh, tmp_path / "adapter").config.groups == NAMES
    with grouped(fresh, ["it", "de"]):
        assert torch.equal(logits(fresh, tokens()), before)


@ALL
def test_two_adapters_may_know_the_groups_in_another_order(case: str) -> None:
    model, injection = adapted(case)
    state = injection.state_dict()
    with grouped(model, ["fr", "it"]):
        alone = logits(model, tokens())
    injection.eject()
    other = inject(model, get_adapter(case).config(**{**CASES[case], "groups": ("it", "fr", "de")}), name="other")
    again = inject(model, injection.config, name="again")
    again.load_state_dict(state)
    with other.disabled(), grouped(model, ["fr", "it"]):
        assert torch.equal(logits(model, tokens()), alone)
    assert context_of(model).groups == ["it", "fr", "de"]


@ALL
def test_what_is_refused(case: str) -> None:
    model, injection = adapted(case)
    with pytest.raises(BadSpec, match=r"knows the group 'es'\. .*de"), grouped(model, ["es", "de"]):
        pass
    with pytest.raises(BadSpec, match="no part for the group 'es'"):
        bake(injection, "es")
    with pytest.raises(CannotInject, match="'group' has 3 rows where the model runs 2"), grouped(model, ["de"] * 3):
        logits(model, tokens())
    inject(model, get_adapter(case).config(**{**CASES[case], "groups": ("es",)}), name="second")
    with pytest.raises(CannotInject, match="no part for 'es'"), grouped(model, ["es", "es"]):
        logits(model, tokens())
    with pytest.raises(Exception, match="adapter.quantize: it changes matrices"):
        get_adapter(case).config(**CASES[case], quantize={"bits": 4})
    with pytest.raises(Exception, match="groups are different names"):
        get_adapter(case).config(**CASES[case], groups=("a", "a"))
    plain = random_models.tiny("tiny:llama")
    with pytest.raises(CannotInject, match="No adapter in this model reads"), grouped(plain, ["de"]):
        pass
    with pytest.raises(CannotConvert, match="no tensors that are generated"):
        bake(inject(plain, get_adapter("bitfit").config()))


def test_a_mixture_of_one_skill_is_lora_and_equal_logits_are_the_mean() -> None:
    for family in ("llama", "gpt2", "gptj", "phi3"):
        model, injection = adapted("poly", family, skills=1, blocks=1, rank=2, at="attn+mlp")
        with grouped(model, ["fr", "it"]):
            one = logits(model, tokens())
        own = {k: v for k, v in injection.state_dict().items() if not k.endswith("Z")}
        injection.eject()
        lora = inject(model, get_adapter("lora").config(rank=2, at="attn+mlp"))
        lora.load_state_dict({name: value[0, 0] for name, value in own.items()})
        assert torch.allclose(logits(model, tokens()), one, atol=1e-6)
        lora.eject()

        model, injection = adapted("poly", family, skills=4, blocks=2, at="attn+mlp")
        for adapter in injection.adapters.values():
            nn.init.constant_(adapter.Z, 0.7)
        with grouped(model, ["de", "it"]):
            equal = logits(model, tokens())
        own = injection.state_dict()
        plain = bake(injection)
        assert torch.allclose(logits(model, tokens()), equal, atol=1e-6)
        for key in plain.adapters:
            mean = own[f"{key}/B"].mean(1).flatten(0, 1)
            assert torch.allclose(plain.adapters[key].B, mean, atol=1e-6)


def test_equal_blocks_are_polytropon_and_the_rank_stays() -> None:
    model, injection = adapted("poly", skills=3, blocks=1, rank=2)
    whole, ids = injection.state_dict(), tokens()
    with grouped(model, ["fr", "it"]):
        one = logits(model, ids)
    injection.eject()
    cut = inject(model, injection.config.model_copy(update={"blocks": 4}))
    parts = {"A": lambda t: t[0].unflatten(-1, (4, -1)).movedim(2, 0), "Z": lambda t: t.expand(-1, 4, -1)}
    parts["B"] = lambda t: t[0].unflatten(1, (4, -1)).movedim(1, 0)
    cut.load_state_dict({name: parts[name[-1]](value) for name, value in whole.items()})
    with grouped(model, ["fr", "it"]):
        assert torch.allclose(logits(model, ids), one, atol=1e-6)
    for adapter in cut.adapters.values():
        (a,), (b,) = adapter.factors([1])
        assert torch.linalg.matrix_rank(b @ a, rtol=1e-4) <= 2


def test_blocks_must_divide_the_widths() -> None:
    with pytest.raises(CannotInject, match="blocks = 5 does not divide the widths 32 and 32"):
        inject(random_models.tiny("tiny:llama"), get_adapter("poly").config(blocks=5, at="q"))


def test_equal_embeddings_are_equal_weights_and_only_groups_that_occur_learn() -> None:
    model, injection = adapted("hyper")
    network = next(iter(injection.adapters.values())).network
    table = network.tables["group"]
    with torch.no_grad():
        table[2] = table[0]
    with grouped(model, ["de", "de"]):
        one = logits(model, tokens())
    with grouped(model, ["it", "it"]):
        assert torch.equal(logits(model, tokens()), one)
    with grouped(model, ["de", "fr"]):
        model(input_ids=tokens()).logits.square().mean().backward()
    assert [bool(row.any()) for row in table.grad] == [True, True, False]


def test_pairs_have_an_embedding_for_each_end() -> None:
    with pytest.raises(CannotInject, match="needs groups such as de-en, not de, fr, it"):
        adapted("hyper", pairs=True)
    pairs = ("de-en", "fr-en", "de-it")
    model, injection = adapted("hyper", groups=pairs, pairs=True, bias=True, reads="input")
    network = next(iter(injection.adapters.values())).network
    assert network.rows == {"source": ("de", "fr"), "target": ("en", "it")}
    with grouped(model, ["de-en", "fr-en"]):
        before = logits(model, tokens())
        with torch.no_grad():
            network.tables["target"][1] += 1
        assert torch.equal(logits(model, tokens()), before)
        with torch.no_grad():
            network.tables["source"][1] += 1
        after = logits(model, tokens())
    assert torch.equal(after[0], before[0])
    assert not torch.allclose(after[1], before[1], atol=1e-4)


def test_rescaled_matrices_start_alike_whatever_the_size_of_the_code() -> None:
    spread: dict[bool, list[float]] = {}
    for rescale in (True, False):
        for code in (16, 64, 256, 1024):
            torch.manual_seed(1)
            config = get_adapter("hyper").config(code=code, hidden=256, rescale=rescale, groups=NAMES)
            injection = inject(random_models.tiny("tiny:llama"), config)
            made = [a.network([0], a.site)["down"].detach() for a in injection.adapters.values()]
            spread.setdefault(rescale, []).append(float(torch.cat([m.flatten() for m in made]).std()))
    assert max(spread[True]) / min(spread[True]) < 1.1
    assert 7 < spread[False][-1] / spread[False][0] < 9


def test_the_generator_does_not_grow_with_the_layers() -> None:
    config = get_adapter("hyper").config(embedding=4, groups=NAMES)
    counts = [inject(random_models.tiny("tiny:llama"), config, at=at).count() for at in ("attn@0+mlp@0", "attn+mlp")]
    assert counts[1] - counts[0] == 4  # the embedding of one layer more


@ALL
def test_only_what_belongs_to_groups_is_trained_if_asked(case: str) -> None:
    model, injection = adapted(case, train="groups")
    trained = injection.parameters()
    names = get_adapter(case).cls.by_group(injection.config)
    tables = [p for a in injection.adapters.values() for name, p in a.named_parameters() if name in names]
    assert len(trained) == len(set(tables)) and set(trained) == set(tables)
    world = World(model, injection.anatomy)
    sites = list(injection.sites.values())
    assert injection.count() == get_adapter(case).cls.parameter_count(injection.config, sites, world)
    assert all(p.shape[0] == len(NAMES) for p in trained)


def test_what_is_made_of_several_parts_or_does_not_fit_is_not_baked_or_carried_over() -> None:
    both = {"of": [{"type": "poly", "rank": 1, "groups": NAMES}, {"type": "norm-tuning"}]}
    model = random_models.tiny("tiny:llama")
    injection = inject(model, get_adapter("union").config(**both))
    with pytest.raises(CannotConvert, match="has several parts"):
        bake(injection, "de")
    with grouped(model, ["de", "it"]):
        logits(model, tokens())
    old, new = (get_adapter("poly").config(groups=groups) for groups in (NAMES, ("it", "es")))
    saved = {"a/Z": torch.arange(6.0).view(3, 2), "a/A": torch.ones(2)}
    carried = for_groups(saved, old, new)
    assert torch.equal(carried["a/Z"], torch.tensor([[4.0, 5.0], [2.0, 3.0]])) and carried["a/A"] is saved["a/A"]
    damaged = {"a/Z": torch.ones(5, 2)}
    assert for_groups(damaged, old, new) == damaged  # which then does not fit
