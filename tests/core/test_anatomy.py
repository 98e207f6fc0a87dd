"""Anatomy and placement: every family is analysed, every invalid placement explained."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from odd_models import EXPERTS, decoder

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


class Layer(torch.nn.Module):
    """A decoder layer with attention, and further parts as given."""

    def __init__(self, **parts: torch.nn.Module) -> None:
        super().__init__()
        self.attn = Attention(**{name: torch.nn.Linear(8, 8) for name in ("q", "k", "v", "o")})
        for name, part in parts.items():
            self.add_module(name, part)


class Attention(torch.nn.ModuleDict):
    def __init__(self, **parts: torch.nn.Module) -> None:
        super().__init__(parts)


class CrossAttention(Attention):
    pass


def mlp(width: int = 16) -> torch.nn.Module:
    return torch.nn.ModuleDict({"up": torch.nn.Linear(8, width), "down": torch.nn.Linear(width, 8)})


def linears(**shapes: tuple[int, int]) -> torch.nn.ModuleDict:
    return torch.nn.ModuleDict({name: torch.nn.Linear(*shape) for name, shape in shapes.items()})


def anatomy_of(**parts: torch.nn.Module) -> Anatomy:
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([Layer(**parts)])
    model.config = SimpleNamespace(hidden_size=8)  # type: ignore[assignment]
    return Anatomy.of(model)


EXPERT_LIST = torch.nn.ModuleDict({"gate": torch.nn.Linear(8, 2), "experts": torch.nn.ModuleList([mlp(), mlp()])})
NAMED_EXPERTS = torch.nn.ModuleDict({"experts": torch.nn.ModuleDict({"expert_0": mlp(), "expert_1": mlp()})})
CONVOLUTION = torch.nn.ModuleDict({"conv": torch.nn.Conv1d(8, 8, 3, groups=8), **mlp()})


@pytest.mark.parametrize(
    ("parts", "left_out"),
    [
        ({}, ["other"]),
        ({"retention": linears(q=(8, 8), k=(8, 8), out=(8, 8))}, ["other", "retention"]),
        ({"cross": CrossAttention(**mlp())}, ["cross", "other"]),
        ({"encoder_attn": Attention(**mlp())}, ["encoder_attn", "other"]),
    ],
)
def test_what_is_neither_attention_nor_a_plain_mlp_has_no_role(
    parts: dict[str, torch.nn.Module], left_out: list[str]
) -> None:
    anatomy = anatomy_of(**parts, mlp=mlp(), other=torch.nn.Linear(8, 8))
    assert [s.path for s in placement.sites(anatomy, "mlp")] == ["layers.0.mlp.up", "layers.0.mlp.down"]
    assert sorted(path for path, _ in anatomy.left_out) == [f"layers.0.{name}" for name in left_out]
    assert all(f"{name} (" in anatomy.remark for name in left_out)


@pytest.mark.parametrize(
    ("parts", "found", "wholes"),
    [
        ({"mixer": CONVOLUTION}, {"mixer.up": "in_proj", "mixer.down": "out_proj"}, {"mixer.down": "conv"}),
        ({"moe": EXPERT_LIST}, {"moe.experts.1.up": "experts.up", "moe.gate": "router"}, {"moe": "mlp"}),
        ({"moe": NAMED_EXPERTS}, {"moe.experts.expert_0.down": "experts.down"}, {"moe": "mlp"}),
        ({"retention": linears(q=(8, 8), k=(8, 8), v=(8, 8), out=(8, 8))}, {}, {"retention.out": "ssm"}),
        ({"other_attn": Attention(**linears(q=(8, 8), k=(8, 8), v=(8, 8), o=(8, 8)))}, {}, {"other_attn.o": "attn"}),
        ({"other_mlp": mlp()}, {"other_mlp.up": "up"}, {"other_mlp.down": "mlp"}),
    ],
)
def test_a_layer_may_have_several_mixers_and_feed_forward_parts(
    parts: dict[str, torch.nn.Module], found: dict[str, str], wholes: dict[str, str]
) -> None:
    anatomy = anatomy_of(**parts, mlp=mlp())
    roles = {s.path.removeprefix("layers.0."): s.role for s in anatomy.projections}
    usual = {"attn.q": "q", "attn.k": "k", "attn.v": "v", "attn.o": "o", "mlp.up": "up", "mlp.down": "down"}
    assert roles.items() >= (usual | found).items()
    own = {s.path.removeprefix("layers.0."): s.role for s in anatomy.sublayers}
    assert own == {"attn.o": "attn", "mlp.down": "mlp"} | wholes


def test_an_mlp_may_lie_open_in_the_layer_or_in_a_module_for_each_projection() -> None:
    for parts in (dict(mlp()), {"intermediate": linears(dense=(8, 16)), "output": linears(dense=(16, 8))}):
        anatomy = anatomy_of(**parts)
        assert [s.role for s in placement.sites(anatomy, "mlp")] == ["up", "down"] and not anatomy.left_out


def test_a_single_wide_projection_of_twice_the_width_is_gate_and_up_together() -> None:
    anatomy = anatomy_of(mlp=linears(wi=(8, 32), wo=(16, 8)))
    assert [s.role for s in placement.sites(anatomy, "gate,up")] == ["gate_up"]


def test_an_mlp_with_two_output_projections_is_refused() -> None:
    with pytest.raises(UnknownAnatomy, match="exactly one output projection of width 8"):
        anatomy_of(mlp=linears(a=(8, 16), b=(16, 8), c=(16, 8)))


def test_of_two_wide_projections_w1_is_the_gate() -> None:
    open_ = anatomy_of(mlp=linears(w1=(8, 16), w2=(16, 8), w3=(8, 16)))
    assert [s.role for s in placement.sites(open_, "mlp")] == ["gate", "up", "down"]
    experts = torch.nn.ModuleList([linears(w1=(8, 16), w2=(16, 8), w3=(8, 16)) for _ in range(2)])
    listed = anatomy_of(moe=torch.nn.ModuleDict({"experts": experts}))
    assert [s.path for s in placement.sites(listed, "experts.gate")] == [f"layers.0.moe.experts.{e}.w1" for e in (0, 1)]
    assert [s.path for s in placement.sites(anatomy_of(mlp=linears(w1=(8, 16), w2=(16, 8))), "up")] == [
        "layers.0.mlp.w1"
    ]


def test_a_model_that_is_not_a_decoder_is_rejected_with_its_module_tree() -> None:
    with pytest.raises(UnknownAnatomy, match="no list of decoder layers"):
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
    assert roles("q?,up.in?@1") == [("q", 1), ("up", 1)]
    assert roles("q,qkv?,kv?") == [("q", 0), ("q", 1)]


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
        ("q@0?", "not of the form"),
        ("q??", "not of the form"),
    ],
)
def test_bad_placements_are_explained(at: str, message: str) -> None:
    with pytest.raises(BadSpec, match=message):
        roles(at)


def test_an_empty_placement_lists_the_roles() -> None:
    for at in ("gate", "gate?", "kv,gate"):
        with pytest.raises(EmptyPlacement, match="2 layers with the roles: qkv, o, up, down, attn, mlp"):
            roles(at, "gpt2")
    with pytest.raises(EmptyPlacement, match="asks for kv in layers 1, which it has nowhere"):
        roles("q,kv@1", "llama")


def test_a_gate_is_passed_over_only_where_the_mlp_has_none() -> None:
    experts = Anatomy.of(decoder("mixtral", **EXPERTS))
    with pytest.raises(EmptyPlacement, match="gate in layers 0-1, which it has nowhere.*at `experts`.*`gate\\?`"):
        placement.sites(experts, "q,gate")


@given(st.text(alphabet="qkvo,+@?.-in0123 mlpatdw_", max_size=20))
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
