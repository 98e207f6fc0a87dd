"""An adapter at experts costs what the tokens cost that visit them, not what there are experts."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.models import random_models


def flops(model: torch.nn.Module, ids: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    return counter.get_total_flops()


def test_only_the_experts_that_a_token_visits_do_work() -> None:
    model, ids, rank = random_models.tiny("tiny:mixtral"), torch.arange(3, 12)[None], 2
    plain = flops(model, ids)
    injection = inject(model, LoRAConfig(rank=rank), at="experts")
    per_token = {(site.layer, site.role): rank * (site.d_in + site.d_out) for site in injection.sites.values()}
    visits = ids.numel() * model.config.num_experts_per_tok
    assert flops(model, ids) - plain == 2 * visits * sum(per_token.values())


def test_a_dense_model_pays_nothing_for_what_others_have() -> None:
    model, ids = random_models.tiny("tiny:llama"), torch.arange(3, 12)[None]
    plain = flops(model, ids)
    injection = inject(model, LoRAConfig(rank=2), at="attn+mlp")
    extra = sum(2 * ids.numel() * 2 * (site.d_in + site.d_out) for site in injection.sites.values())
    assert flops(model, ids) - plain == extra
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == len(injection.sites)
