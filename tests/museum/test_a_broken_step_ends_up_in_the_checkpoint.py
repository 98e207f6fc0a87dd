"""A step that makes the adapter infinite ends up in the checkpoint or the result.

Area: training
Elsewhere: fp16 overflow, and losses of nan that are noticed hours later, in many threads; found here.
Before: infinite weights after the last step were saved, and a validation loss of nan stayed the best one for ever.
Here: training fails with the step and its rows, before such a state is saved; the last good one is kept.
Verdict: silent → refused
"""

import pytest
from small_bases import samples

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.errors import TrainingFailed
from llm_adapters_lab.models.loading import tiny
from llm_adapters_lab.training.checkpoints import TrainingState
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.spec import TrainSpec


@pytest.mark.filterwarnings("ignore:.*invalid value.*:RuntimeWarning")
def test_no_state_that_is_not_finite_is_kept() -> None:
    model = tiny("tiny:llama")
    injection = inject(model, LoRAConfig(rank=2, at="q,v"))
    plan = TrainSpec(batch=2, max_steps=1, schedule="constant")
    plan = plan.model_copy(update={"learning_rate": 1e39})  # more than a spec allows
    kept: list[TrainingState] = []
    with pytest.raises(TrainingFailed, match=r"The largest weight of step 1 is (nan|inf); its rows begin with row/\d"):
        list(train(model, injection, samples(6), plan, after_step=kept.append))
    assert not kept
