"""A site gets an adapter, but the model never calls its module, so the adapter learns nothing.

Area: training
Elsewhere: found here; peft#899 shows the crash of the same kind in several processes.
Before: full fine-tuning of Falcon-H1 left `conv1d` at its start, because the mixer reads its weight from outside.
Here: what mixers read from outside is trained; the first step names sites that got no gradient, such as the
    cross-attention of a BART decoder that runs alone.
Verdict: silent → told
"""

import pytest
from fast_path_cases import samples

from llm_adapters_lab.adapters.full_fine_tuning import FullFineTuningConfig
from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.events import Noticed
from llm_adapters_lab.models import random_models
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.spec import TrainSpec


@pytest.mark.parametrize(
    ("family", "config", "unused"),
    [
        ("falcon_h1", FullFineTuningConfig(), 0),
        ("bart", LoRAConfig(at="q,up"), 0),
        ("bart", LoRAConfig(at="q,cross.q"), 2),
    ],
)
def test_a_site_is_never_used(family: str, config: AdapterConfig, unused: int) -> None:
    model = random_models.tiny(f"tiny:{family}")
    events = list(train(model, inject(model, config), samples(4), TrainSpec(batch=2, max_steps=2)))
    told = [event.text for event in events if isinstance(event, Noticed)]
    assert len(told) == (unused > 0)
    assert all(f"no gradient to {unused} of" in text and "layers.1.encoder_attn.q_proj" in text for text in told)
