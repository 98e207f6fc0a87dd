"""Recorded activations are not those of the model itself.

Area: comparison
Elsewhere: TransformerLens#496, #615, #685, #693, #1272, SAELens#469: reimplemented models drift from the originals.
Here: for every family, the recorded stream, the sum of its parts and the last row of the logit lens, with final norm,
cap and multipliers, are the model's own.
Verdict: right → right
"""

import pytest
import torch
from contract import FAMILIES, config, logits, shake, tokens

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.inspection import Recorder, logit_lens
from llm_adapters_lab.models.random_models import tiny


@FAMILIES
@pytest.mark.parametrize("adapted", [False, True])
def test_the_stream_and_the_lens_are_the_models(family: str, adapted: bool) -> None:
    model, ids = tiny(f"tiny:{family}"), tokens(1, 6)
    if adapted:
        shake(inject(model, config("lora")))
    anatomy = Anatomy.of(model)
    with Recorder(model, "layers") as seen, torch.no_grad():
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    keys = ["embed", *anatomy.layers[:-1]]  # the last state of the model is behind its final norm
    assert all(torch.allclose(seen[key].y, state, atol=1e-5) for key, state in zip(keys, hidden, strict=False))
    lens, own = logit_lens(model, ids, k=3), logits(model, ids)[0].softmax(-1)
    assert torch.allclose(lens.probability[-1], own.topk(3).values, atol=1e-5)
