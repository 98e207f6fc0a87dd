"""DPO: learn to prefer chosen answers over rejected ones; the reference is the same model with its adapter off.

For a prompt x with a chosen answer y and a rejected answer z,

    loss = -log σ(m),   m = β [ (log p(y|x) - log q(y|x)) - (log p(z|x) - log q(z|x)) ]

where p is the adapted model, q the bare base, and the log-likelihood of an answer is the sum over its counted labels.

Source: Rafailov et al. 2023, arXiv:2305.18290, equation 7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.weights import evaluating
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.tasks.tokens import Sample, documents
from llm_adapters_lab.training.loss import Objective
from llm_adapters_lab.training.spec import TrainSpec


class PreferenceObjective(Objective):
    """The DPO loss of pairs: rows of two documents, prompt with chosen answer and prompt with rejected answer.

    Beside the loss, it measures the margin m and the share of pairs whose margin is positive.
    """

    measures = ("margin", "accuracy")
    injection: Injection

    def __init__(self, plan: TrainSpec, samples: Sequence[Sample], *parts: Any) -> None:
        """Check the rows; `parts` are the arguments of `Objective`.

        Raises:
            BadSpec: a row is no pair, or an answer of it has no label.
        """
        super().__init__(*parts)
        self.beta = plan.beta
        for sample in samples:
            counts = [document.counted for document in documents([sample])]
            if len(counts) != 2 or 0 in counts:
                raise BadSpec(
                    f"{sample.id}: train.objective = 'dpo' learns from pairs of a chosen and a rejected answer, but "
                    f"this row has {sum(map(bool, counts))} with a label. Use rows with both, or objective likelihood."
                )

    def units(self, samples: Sequence[Sample]) -> int:
        """Return the number of pairs."""
        return len(samples)

    @contextmanager
    def loss(self, prepared: Any, samples: Sequence[Sample]) -> Iterator[torch.Tensor]:
        """Yield the loss, summed over pairs, in nats; see `Objective.loss`."""
        # The reference comes first: adapters keep the penalties of their last pass, which must be the trained one.
        with evaluating(self.model), torch.no_grad(), self.injection.disabled(), self.losses(prepared, samples) as each:
            self._reference = preferences(each, samples)
        with super().loss(prepared, samples) as loss:
            yield loss

    def _sum(self, passes: ExitStack, prepared: Any, samples: Sequence[Sample]) -> torch.Tensor:
        each = passes.enter_context(self.losses(prepared, samples))
        margins = self.beta * (preferences(each, samples) - self._reference)
        self.measured = margins.detach().sum(), (margins.detach() > 0).float().sum()
        return -logsigmoid(margins).sum()


def preferences(losses: torch.Tensor, samples: Sequence[Sample]) -> torch.Tensor:
    """Return log p(chosen) - log p(rejected) of every pair, (pairs,), given the loss of every label, (labels,)."""
    parts = torch.split(losses, [document.counted for document in documents(samples)])
    chosen, rejected = torch.stack([part.sum() for part in parts]).view(-1, 2).unbind(1)
    return rejected - chosen
