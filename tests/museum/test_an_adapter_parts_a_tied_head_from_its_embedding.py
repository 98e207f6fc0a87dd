"""An adapter at one of a tied embedding and head parts them, or is merged into both.

Area: export
Elsewhere: peft#2777, peft#1173; peft warns that "this can lead to complications, for example when merging".
Before: no adapter could be put at embedding or head.
Here: refused by name at one of them; at both, one change is trained, merged once, and the model stays tied.
Verdict: refused → right
"""

import pytest
from contract import logits, shake, tokens

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.errors import CannotInject
from llm_adapters_lab.models.random_models import tiny


def test_embedding_and_head_stay_tied() -> None:
    model, ids = tiny("tiny:gemma3"), tokens()
    for at in ("embed", "head"):
        with pytest.raises(CannotInject, match="embed and head share one weight.*Place it at `embed,head`"):
            inject(model, LoRAConfig(rank=2, at=at))
    injection = inject(model, LoRAConfig(rank=2, at="embed,head"))
    assert injection.count() == 2 * (128 + 32)
    shake(injection)
    wanted = logits(model, ids)
    merge(injection)
    assert logits(model, ids).allclose(wanted, atol=1e-5)
    assert model.lm_head.weight is model.model.embed_tokens.weight
