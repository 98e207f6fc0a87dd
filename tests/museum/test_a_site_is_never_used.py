"""A site gets an adapter, but the model never calls its module, so the adapter learns nothing.

Area: training
Elsewhere: found here; peft#899 shows the crash of the same kind in several processes.
Before: full fine-tuning of Falcon-H1 left `conv1d` at its start, because the mixer reads its weight from outside.
Here: the first step names the sites that got no gradient.
"""

import pytest
from fast_path_cases import samples
from odd_models import MAMBA, decoder

from llm_adapters_lab.adapters.full_fine_tuning import FullFineTuningConfig
from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.events import Noticed
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.spec import TrainSpec


@pytest.mark.parametrize(("config", "unused"), [(FullFineTuningConfig(), 2), (LoRAConfig(at="q,up"), 0)])
def test_a_site_is_never_used(config: AdapterConfig, unused: int) -> None:
    model = decoder("falcon_h1", **MAMBA)
    events = list(train(model, inject(model, config), samples(4), TrainSpec(batch=2, max_steps=2)))
    told = [event.text for event in events if isinstance(event, Noticed)]
    assert len(told) == (unused > 0)
    assert all(f"no gradient to {unused} of" in text and "layers.1.mamba.conv1d" in text for text in told)
