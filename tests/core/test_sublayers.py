"""Roles by layer: one small model of each kind of architecture."""

from itertools import groupby

import pytest
from odd_models import FAMILIES, family

from llm_adapters_lab.core import placement
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.errors import EmptyPlacement

ATTN, MLP, SSM, LATENT = "attn: q k v o", "mlp: gate up down", "ssm: in_proj out_proj", "attn: q_a q_b kv_a kv_b o"
MOE = "experts: gate_up×4 down×4"
SHARED = f"{MOE}; shared: gate up down"
LAYERS = {
    "mixtral": [f"{ATTN}; {MOE}; router"] * 2,
    "gpt_oss": [f"{ATTN}; {MOE}; router"] * 2,
    "llama4_text": [f"{ATTN}; {SHARED}; router"] * 2,
    "deepseek_v3": [f"{LATENT}; {MLP}", f"{LATENT}; {SHARED}; router"],
    "longcat_flash": [
        f"attn: q_a×2 q_b×2 kv_a×2 kv_b×2 o×2; mlp: gate×2 up×2 down×2; {MOE}; router"
    ],  # two of each in every layer
    "qwen3_next": [f"attn: in_proj×2 out_proj; {SHARED}; router", f"{ATTN}; {SHARED}; router"],
    "mamba2": [SSM] * 2,
    "jamba": [f"{SSM}; {MLP}", f"{ATTN}; {MOE}; router"],
    "nemotron_h": [SSM, ATTN, "experts: up×4 down×4; shared: up down; router"],  # one part a layer
    "lfm2_moe": [f"conv: in_proj out_proj; {MLP}", f"{ATTN}; {MOE}; router"],
    "falcon_h1": [f"{SSM}; {ATTN}; {MLP}"] * 2,  # two mixers side by side
    "granitemoehybrid": [f"{part}; shared: gate_up down; {MOE}; router" for part in (SSM, ATTN)],
    "recurrent_gemma": [f"ssm: in_proj×2 out_proj; {MLP}"] * 2 + [f"{ATTN}; {MLP}"],
    "zamba2": [SSM, f"{SSM}; {ATTN}; mlp: gate_up down"],
    "gemma4_text": [f"attn: {roles}; {MLP}" for roles in ("q k v o", "q k o", "q k v o", "q o")],
    "rwkv": ["attn: k v attn.gate o; mlp: up gate down"] * 2,
}


def layers(anatomy: Anatomy) -> list[str]:
    """Return the sublayers and roles of each layer."""
    found = []
    for index in range(len(anatomy.layers)):
        parts = []
        for part, sites in groupby((s for s in anatomy.projections if s.layer == index), key=lambda s: s.sublayer):
            roles = [s.role.removeprefix(f"{part}.") if part != "attn" else s.role for s in sites]
            counts = (f"{role}×{n}" if (n := roles.count(role)) > 1 else role for role in dict.fromkeys(roles))
            parts.append(part if part == "router" else f"{part}: {' '.join(counts)}")
        found.append("; ".join(parts))
    return found


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_layer_is_read_for_itself(kind: str) -> None:
    anatomy = Anatomy.of(family(kind))
    assert layers(anatomy) == LAYERS[kind]
    # Every projection has a name of its own, and every term of a placement reaches what it names.
    assert len({site.key for site in anatomy.projections}) == len(anatomy.projections)
    for role in anatomy.roles:
        level: placement.Level = "sublayer" if role in {s.role for s in anatomy.sublayers} else "projection"
        known = anatomy.sublayers if level == "sublayer" else anatomy.projections
        chosen = {s.key for s in placement.sites(anatomy, f"{role}?", level)}
        assert {s.key for s in known if s.role == role} <= chosen or role == "shared"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("jamba", "mamba.x_proj (Linear) in layers 0; mamba.dt_proj (Linear) in layers 0"),
        ("zamba2", "gate_up_proj_adapter_list (ModuleList) in layers 1"),
        ("gemma4_text", "Layers 3 without k and v use those of others. Layers 1 without v use k for both."),
    ],
)
def test_the_remark_names_what_no_placement_selects(kind: str, words: str) -> None:
    assert words in Anatomy.of(family(kind)).remark


@pytest.mark.parametrize(
    ("kind", "at", "level", "roles"),
    [
        ("deepseek_v3", "q@0", "projection", "q_a q_b"),
        ("deepseek_v3", "k@0", "projection", "kv_a kv_b"),
        ("deepseek_v3", "kv@0", "projection", "kv_a kv_b"),
        ("nemotron_h", "mixer?", "projection", "in_proj out_proj q k v o"),
        ("nemotron_h", "attn@1+ssm@0", "sublayer", "ssm attn"),
        ("nemotron_h", "up@2", "projection", ""),
        ("nemotron_h", "experts.up@2", "projection", "experts.up experts.up experts.up experts.up"),
        ("nemotron_h", "router@2", "projection", "router"),
        ("falcon_h1", "mixer@0", "sublayer", "ssm attn"),
        ("deepseek_v3", "mlp", "sublayer", "mlp mlp"),  # the shared expert lies in the block
        ("deepseek_v3", "shared@1", "sublayer", "shared"),
        ("granitemoehybrid", "mlp@0", "sublayer", "shared mlp"),  # it lies beside the block
        ("granitemoehybrid", "shared@0", "projection", "shared.gate_up shared.down"),
        ("longcat_flash", "mlp", "sublayer", "mlp mlp mlp"),
        ("llama4_text", "mlp.in", "sublayer", "mlp mlp"),
    ],
)
def test_placements_select_sublayers(kind: str, at: str, level: placement.Level, roles: str) -> None:
    anatomy = Anatomy.of(family(kind))
    if not roles:
        with pytest.raises(EmptyPlacement, match="at `experts`"):
            placement.sites(anatomy, at, level)
        return
    assert [s.role for s in placement.sites(anatomy, at, level)] == roles.split()


@pytest.mark.parametrize("kind", ["jamba", "nemotron_h"])
def test_mlp_and_attention_take_no_router(kind: str) -> None:
    sites = placement.sites(Anatomy.of(family(kind)), "attn?+mlp?+mixer?+experts?+shared?")
    assert sites and not any(site.role == "router" for site in sites)
