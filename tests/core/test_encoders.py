"""Encoders and encoder-decoders: roles, injection, saving and merging; adapters of causal text decoders are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from contract import shake, tokens
from odd_models import encoder, encoder_decoder
from torch.nn import functional

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.placement import describe, sites
from llm_adapters_lab.core.registry import all_adapters, get_adapter
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import BadSpec, CannotInject, EmptyPlacement, LabError

TEXT = {"input_ids": tokens(2, 6)}
BOTH = {**TEXT, "decoder_input_ids": tokens(2, 5)}
SOUND = torch.randn(2, 64, generator=torch.Generator().manual_seed(4))
INPUTS: dict[str, dict[str, Any]] = {
    "t5": BOTH,
    "bart": BOTH,
    "whisper": {"input_features": SOUND.view(2, 8, 8).repeat(1, 1, 4), "decoder_input_ids": tokens(2, 5)},
    "bert": TEXT,
    "vit": {"pixel_values": functional.pad(SOUND, (0, 704)).view(2, 3, 16, 16)},
    "wav2vec2": {"input_values": SOUND},
    "audio-spectrogram-transformer": {"input_values": SOUND.repeat(1, 2).view(2, 16, 8)},
}
PAIRS = ("t5", "bart", "whisper")
KINDS = pytest.mark.parametrize("kind", INPUTS)


def model(kind: str) -> Any:
    if kind == "whisper":
        return encoder_decoder(kind, num_mel_bins=8, max_source_positions=16, max_target_positions=16)
    return encoder_decoder(kind) if kind in PAIRS else encoder(kind)


def run(made: Any, kind: str) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = made(**INPUTS[kind]).logits
        return found


def put(made: Any, method: str, at: str = "") -> Injection:
    entry = get_adapter(method)
    return inject(made, entry.config(type=method, **entry.cls.example), at=at or None)


@KINDS
def test_the_layers_of_encoder_and_decoder_have_roles(kind: str) -> None:
    anatomy = Anatomy.of(model(kind))
    own = ("q", "k", "v", "o", "up", "down")
    assert len(anatomy.layers) == 2
    if kind not in PAIRS:
        assert anatomy.roles == (*own, "attn", "mlp")
        with pytest.raises(EmptyPlacement, match="encoder.q in layers 0-1, which it has nowhere"):
            sites(anatomy, "q,encoder.q")
        return
    cross = ("cross.q", "cross.k", "cross.v", "cross.o")
    assert set(anatomy.roles) == {*own, *cross, *(f"encoder.{role}" for role in own)} | {
        *("attn", "cross", "mlp", "encoder.attn", "encoder.mlp")
    }
    assert sites(anatomy, "decoder.q,decoder.cross.k@1") == sites(anatomy, "q,cross.k@1")
    assert [site.layer for site in sites(anatomy, "encoder.attn@-1")] == [2] * 4  # the encoder has a layer more
    with pytest.raises(BadSpec, match="layers 0 to 2"):
        sites(anatomy, "encoder.q@3")
    everything = [site.path for site in anatomy.projections]
    again = sites(anatomy, describe(anatomy, everything))
    assert sorted(site.path for site in again) == sorted(everything)


@pytest.mark.parametrize("at", ["attn+mlp", "encoder.attn+encoder.mlp", "cross", "encoder.q@2,encoder.down@0+cross.v"])
@KINDS
def test_lora_starts_at_the_base_merges_and_is_saved(kind: str, at: str, tmp_path: Path) -> None:
    if kind not in PAIRS and at != "attn+mlp":
        with pytest.raises((BadSpec, EmptyPlacement), match="roles: q, k, v, o, up, down, attn, mlp|layers 0 to 1"):
            put(model(kind), "lora", at)
        return
    made = model(kind)
    plain = run(made, kind)
    injection = put(made, "lora", at)
    assert torch.equal(run(made, kind), plain)
    shake(injection)
    changed = run(made, kind)
    for key in injection.sites:  # none is dead
        with injection.disabled([key]):
            assert not torch.equal(run(made, kind), changed), key
    save_adapter(injection, tmp_path)
    again = model(kind)
    loaded = load_adapter(again, tmp_path)
    assert torch.equal(run(again, kind), changed)
    merge(loaded)
    assert torch.allclose(run(again, kind), changed, atol=1e-5)
    injection.eject()
    assert torch.equal(run(made, kind), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.modules())


@pytest.mark.parametrize("method", all_adapters())
@KINDS
def test_every_adapter_works_or_is_refused_by_name(kind: str, method: str) -> None:
    made, cls = model(kind), get_adapter(method).cls
    plain = run(made, kind)
    needs_rows = cls.scope == "model" or cls.needs_context or cls.looks_back
    if needs_rows and (kind not in PAIRS or method in ("prefix", "parscale")):
        with pytest.raises(
            LabError, match="acts on rows of tokens" if kind not in PAIRS else "no plain key/value cache"
        ):
            put(made, method)
    elif method == "trainable-tokens" and kind not in ("whisper", "bert"):  # no tokens, or shared by three modules
        with pytest.raises(CannotInject, match="no token embedding of its own"):
            put(made, method)
    else:
        injection = put(made, method)
        shake(injection)
        changed = run(made, kind)
        assert changed.shape == plain.shape and not torch.equal(changed, plain)
        injection.eject()
    assert torch.equal(run(made, kind), plain)


def test_adapters_that_follow_the_decoder_are_refused_in_the_encoder() -> None:
    with pytest.raises(CannotInject, match="follows the calls of the decoder, and encoder.block.0"):
        put(model("t5"), "conv", "mlp+encoder.mlp")


def test_bottlenecks_sit_in_the_encoder_and_at_cross_attention(tmp_path: Path) -> None:
    made = model("t5")
    injection = put(made, "series", "encoder.mlp+encoder.attn@2+cross+mlp.in")
    assert [site.role for site in injection.sites.values()].count("encoder.mlp") == 3
    shake(injection)
    changed = run(made, "t5")
    for key in injection.sites:
        with injection.disabled([key]):
            assert not torch.equal(run(made, "t5"), changed), key
    save_adapter(injection, tmp_path)
    load_adapter(again := model("t5"), tmp_path)
    assert torch.equal(run(again, "t5"), changed)
