"""Prompts with a common beginning are answered otherwise in a batch, if virtual tokens are in front.

Area: scoring
Elsewhere: found here.
Before: the common beginning was read once for prompts of different lengths, but prompt tuning and P-tuning put their
    virtual tokens after the padding of each row, so keys and values stood in the wrong columns: up to 9 of 12 answers
    of a batch differed from those of the prompts alone, and a benchmark had P-tuning at 4.5 instead of 11.2 %.
Here: such prompts are read whole; in a batch they have the answers and likelihoods that they have alone.
Verdict: silent → right
"""

import pytest
import torch

from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.evaluation.decoding import greedy, likelihoods
from llm_adapters_lab.models.random_models import tiny

PROMPTS = [[7, 9, 11, 13, 17, *range(20, 20 + length)] for length in (1, 2, 4, 9, 12)]
OPTIONS = [[5], [6, 8]]


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_virtual_tokens_and_a_shared_beginning(family: str, method: str) -> None:
    model = tiny(f"tiny:{family}").eval()
    injection = inject(model, get_adapter(method).config(type=method, virtual_tokens=3))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))

    def answers(*prompts: list[int]) -> list[list[int]]:
        return greedy(model, prompts, 0, 6, lambda answer: False)

    assert answers(*PROMPTS) == [answers(prompt)[0] for prompt in PROMPTS]
    together = likelihoods(model, PROMPTS, [OPTIONS] * len(PROMPTS), 0)
    alone = [likelihoods(model, [prompt], [OPTIONS], 0)[0] for prompt in PROMPTS]
    assert torch.allclose(torch.tensor(together), torch.tensor(alone), atol=1e-4)
