"""Anatomy and placement: every family is analysed, every invalid placement explained."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters_lab.core import placement
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.errors import BadSpec, EmptyPlacement, LabError, UnknownAnatomy
from llm_adapters_lab.models import random_models
from llm_adapters_lab.models.blueprint import Blueprint

SPLIT = {"q", "k", "v", "o"}


@pytest.mark.parametrize("family", random_models.TINY)
def test_every_projection_of_every_family_has_one_role(family: str) -> None:
    model = random_models.tiny(f"tiny:{family}")
    anatomy = Anatomy.of(model)
    assert len(anatomy.layers) == 2
    for layer in range(2):
        roles = [s.role for s in anatomy.projections if s.layer == layer]
        assert len(roles) == len(set(roles))
        assert set(roles) & SPLIT in ({"o"}, SPLIT)
        assert ("qkv" in roles) != ("q" in roles)
        assert {"o", "down"} < set(roles)
        assert {"up"} & set(roles) or {"gate_up"} & set(roles)
    # All linear modules of the layers are found, and nothing else.
    prefix = anatomy.layers[0].rpartition(".")[0]
    linear = {n for n, m in model.named_modules() if n.startswith(prefix + ".") and type(m).__name__ in LINEAR}
    assert {s.path for s in anatomy.projections} == linear
    assert [s.role for s in anatomy.sublayers] == ["attn", "mlp"] * 2
    assert [s.role for s in anatomy.entries] == ["attn", "mlp"] * 2


LINEAR = {"Linear", "Conv1D", "FalconLinear"}


@pytest.mark.parametrize("family", random_models.TINY)
def test_the_meta_device_gives_the_same_anatomy(family: str) -> None:
    assert Anatomy.of(Blueprint(f"tiny:{family}").skeleton) == Anatomy.of(random_models.tiny(f"tiny:{family}"))


def test_equal_widths_are_distinguished_by_name() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    anatomy = Anatomy.of(LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape)))
    assert [s.role for s in anatomy.projections] == ["q", "k", "v", "o", "gate", "up", "down"]


@pytest.mark.parametrize(("kind", "module"), [("mixtral", "experts"), ("qwen2_moe", "experts"), ("olmoe", "experts")])
def test_routed_experts_are_rejected_by_name(kind: str, module: str) -> None:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    fields = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    fields |= {"vocab_size": 64, "intermediate_size": 32, "pad_token_id": 0}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**fields))
    with pytest.raises(UnknownAnatomy, match=rf"model\.layers\.0\.mlp.*{module}"):
        Anatomy.of(model)


def test_a_model_that_is_not_a_decoder_is_rejected_with_its_module_tree() -> None:
    with pytest.raises(UnknownAnatomy, match="no list of equal decoder layers"):
        Anatomy.of(torch.nn.Sequential(torch.nn.Linear(3, 4)))


def roles(at: str, family: str = "llama", level: placement.Level = "projection") -> list[tuple[str, int]]:
    return [(s.role, s.layer) for s in placement.sites(Anatomy.of(random_models.tiny(f"tiny:{family}")), at, level)]


def test_the_placement_language() -> None:
    assert roles("q,v") == [("q", 0), ("v", 0), ("q", 1), ("v", 1)]
    assert roles("down@1") == [("down", 1)]
    assert roles("down@-1") == [("down", 1)]
    assert roles("q@0-1, v@0") == [("q", 0), ("v", 0), ("q", 1)]
    assert roles("q@0,1+o@0") == [("q", 0), ("o", 0), ("q", 1)]
    assert roles("mlp@0") == [("gate", 0), ("up", 0), ("down", 0)]
    assert roles("mlp@0", level="sublayer") == [("mlp", 0)]
    assert roles("attn+mlp", level="sublayer") == [("attn", 0), ("mlp", 0), ("attn", 1), ("mlp", 1)]
    assert roles("q,v", "gpt2") == [("qkv", 0), ("qkv", 1)]
    assert roles("gate,up,down", "gpt2") == [("up", 0), ("down", 0), ("up", 1), ("down", 1)]
    assert roles("q,v@1") == [("q", 1), ("v", 1)]
    assert roles("q+v@1") == [("q", 0), ("q", 1), ("v", 1)]
    assert roles("q,v@0,down@1+o") == [("q", 0), ("v", 0), ("o", 0), ("down", 1), ("o", 1)]
    assert roles("up@0", "phi3") == [("gate_up", 0)]
    assert roles("q.in+down.in@1") == [("q", 0), ("q", 1), ("down", 1)]


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("qq", "names 'qq', which is not a role.*'q'"),
        ("q.out", "not of the form"),
        ("q@7", "layers 0 to 1"),
        ("q@1-0", "has layers .1-0.; write them as 0-7"),
        ("q@x", "not of the form"),
        ("", "not of the form"),
        ("q,,v", "not of the form"),
    ],
)
def test_bad_placements_are_explained(at: str, message: str) -> None:
    with pytest.raises(BadSpec, match=message):
        roles(at)


def test_an_empty_placement_lists_the_roles() -> None:
    with pytest.raises(EmptyPlacement, match="2 layers with the roles: qkv, o, up, down, attn, mlp"):
        roles("gate", "gpt2")


@given(st.text(alphabet="qkvo,+@.-in0123 mlpatdw_", max_size=20))
def test_any_text_is_a_placement_or_a_named_error(at: str) -> None:
    anatomy = ANATOMY
    try:
        found = placement.sites(anatomy, at)
    except LabError:
        return
    assert found
    assert len({s.key for s in found}) == len(found)


ANATOMY = Anatomy.of(random_models.tiny("tiny:llama"))


@pytest.mark.parametrize("family", random_models.TINY)
@pytest.mark.parametrize("at", ["q,v", "attn+mlp", "down@0", "q@-1", "up,down@1"])
def test_describe_is_the_inverse_of_sites(at: str, family: str) -> None:
    anatomy = Anatomy.of(random_models.tiny(f"tiny:{family}"))
    chosen = placement.sites(anatomy, at)
    assert {s.path for s in placement.sites(anatomy, placement.describe(anatomy, [s.path for s in chosen]))} == {
        s.path for s in chosen
    }
    inside = placement.describe(anatomy, [s.path for s in chosen], "in")
    assert {(s.path, s.side) for s in placement.sites(anatomy, inside)} == {(s.path, "in") for s in chosen}
