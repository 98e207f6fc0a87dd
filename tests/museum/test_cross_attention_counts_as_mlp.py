"""The cross-attention of an encoder-decoder counts as MLP, and the longer encoder as decoder.

Area: models
Elsewhere: found here.
Before: in T5, BART and Whisper `up` also meant q, k, v and o of the cross-attention, and with an encoder longer than
    the decoder, every adapter sat in the encoder.
Here: `q` and `mlp` mean the decoder's self-attention and MLP; cross-attention is `cross.q` and so on, the encoder
    `encoder.q` and so on, in all of its layers.
Verdict: silent → right
"""

import pytest
from odd_models import encoder_decoder

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.placement import sites


@pytest.mark.parametrize(
    ("kind", "ups", "cross"),
    [
        ("t5", "decoder.block.0.layer.2.DenseReluDense.wi", "decoder.block.0.layer.1.EncDecAttention.q"),
        ("bart", "model.decoder.layers.0.fc1", "model.decoder.layers.0.encoder_attn.q_proj"),
        ("marian", "model.decoder.layers.0.fc1", "model.decoder.layers.0.encoder_attn.q_proj"),
    ],
)
def test_cross_attention_counts_as_mlp(kind: str, ups: str, cross: str) -> None:
    anatomy = Anatomy.of(encoder_decoder(kind, **({"max_position_embeddings": 16} if kind == "marian" else {})))
    assert len(anatomy.layers) == 2 and all("decoder" in path for path in anatomy.layers)
    assert [site.path for site in sites(anatomy, "up@0")] == [ups]
    assert sorted(s.role for s in sites(anatomy, "attn+mlp") if s.layer == 0) == ["down", "k", "o", "q", "up", "v"]
    assert [site.path for site in sites(anatomy, "cross.q@0")] == [cross]
    assert [site.layer for site in sites(anatomy, "encoder.q")] == [0, 1, 2]
    assert all("encoder." in site.path for site in sites(anatomy, "encoder.attn+encoder.mlp"))
