"""Gradient accumulation weights the labels of short answers more than those of long ones.

Area: training
Elsewhere: transformers#24725, trl#2414, torchtune#1875, mlx-lm#1413, #1544
Here: every micro-batch is divided by the counted labels of the whole step, so that 16 x 1, 4 x 4 and 1 x 16 rows give
    the same loss and the same gradients.
Verdict: right → right
"""

import torch
from accelerate import Accelerator

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.models.random_models import tiny
from llm_adapters_lab.tasks.tokens import IGNORED, Sample
from llm_adapters_lab.training.spec import TrainSpec
from llm_adapters_lab.training.step import GradientComputer


def test_accumulation_weights_short_answers_more() -> None:
    lengths = [1, 2, 3, 5, 8, 13, 21, 34, 55, 60, 1, 1, 2, 40, 50, 60]
    answers = [tuple(3 + (7 * n + i) % 120 for i in range(length)) for n, length in enumerate(lengths)]
    rows = [Sample(str(n), (5, 6, *ids), (IGNORED, IGNORED, *ids)) for n, ids in enumerate(answers)]

    def step(micro_batch: int) -> tuple[float, list[torch.Tensor]]:
        model = tiny("tiny:llama").double()
        torch.manual_seed(0)
        injection = inject(model, LoRAConfig(rank=4, at="q,v,down"))
        plan, accelerator = TrainSpec(batch=16, micro_batch=micro_batch), Accelerator(cpu=True)
        computer = GradientComputer(model, injection, rows, plan, pad_id=0)
        with computer.ready(accelerator) as prepared:
            loss = computer.step(accelerator, prepared, rows)
        return loss, [p.grad.clone() for p in injection.parameters() if p.grad is not None]

    whole, gradients = step(16)
    for micro_batch in (4, 1):
        loss, found = step(micro_batch)
        assert abs(loss - whole) < 1e-6
        assert all(torch.allclose(a, b, atol=1e-6, rtol=1e-4) for a, b in zip(gradients, found, strict=True))
