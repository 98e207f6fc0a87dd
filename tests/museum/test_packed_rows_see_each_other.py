"""Rows that are packed into one sequence see each other.

Area: training
Elsewhere: trl#784, #805, #1235, functionary#265, nanoVLM#201, #204, LlamaFactory#7318, unsloth#126, torchtune#875
Here: attention runs per row and positions restart, so that a change of one row leaves the others' logits as they are,
    and the loss is that of the single rows.
Verdict: right → right
"""

import torch

from llm_adapters_lab.models.random_models import tiny
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.loss import FastPaths, Objective
from llm_adapters_lab.training.packing import pack


@torch.no_grad()
def test_packed_rows_see_each_other() -> None:
    model = tiny("tiny:llama").eval()
    a, b, other = ((5, 6, 7, 8, 9), (5, 6, 11, 12), (60, 61, 62, 63, 64))
    rows = {name: Sample(name, ids, ids) for name, ids in {"a": a, "b": b, "other": other}.items()}
    for paths in (FastPaths(packing=True), FastPaths(True, True, True)):
        objective = Objective(model, paths)

        def logits(objective: Objective = objective, *names: str) -> torch.Tensor:
            with objective.predictions(model, [rows[name] for name in names]) as (found, _):
                return found

        alone, together, beside = (logits(objective, *names) for names in (["b"], ["a", "b"], ["other", "b"]))
        assert torch.allclose(together[-len(alone) :], alone, atol=1e-6)
        assert torch.allclose(together[-len(alone) :], beside[-len(alone) :], atol=1e-6)
        assert not torch.allclose(together[: -len(alone)], beside[: -len(alone)], atol=1e-2)
        with objective.losses(model, [rows["a"], rows["b"]]) as both:
            assert torch.allclose(both[-len(alone) :], -alone.log_softmax(-1)[range(len(alone)), b[1:]], atol=1e-5)
    assert pack([rows["a"], rows["b"]], share=False).positions[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
