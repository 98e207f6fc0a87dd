"""Reward: learn from answers that the adapted model draws itself, by how much better they are than their siblings.

Of every question x in a batch, k answers y are drawn at temperature T and scored; then one step is taken on

    loss = -Σ A(y) log p(y|x) / (batch · k),   A(y) = r(y) - mean of the rewards of the other k - 1 answers

where log p is at the same temperature, over all drawn tokens, the end token included.

Source: Ahmadian et al. 2024, arXiv:2402.14740, equation 8 (REINFORCE, leave one out), without a KL penalty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from llm_adapters_lab.core import weights
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluation.decoding import can_batch, context_length, drawn, greedy
from llm_adapters_lab.tasks.tokens import IGNORED, Sample
from llm_adapters_lab.training.distributed import sharded
from llm_adapters_lab.training.loss import Objective, call_inputs, row_inputs
from llm_adapters_lab.training.spec import TrainSpec


@dataclass(frozen=True)
class Rollout(Sample):
    """A question with an answer that was drawn, whose tokens are the labels.

    Attributes:
        reward: of the answer.
        advantage: its reward minus the mean reward of the other answers to the question.
    """

    reward: float = 0.0
    advantage: float = 0.0


@dataclass(frozen=True)
class Answering:
    """How questions are answered in training, and what an answer is worth.

    Attributes:
        reward: ``reward(row id, tokens)`` returns what an answer is worth.
        is_complete: tells of an answer so far whether it is complete.
        limit: maximum number of tokens of an answer.
    """

    reward: Callable[[str, list[int]], float]
    is_complete: Callable[[list[int]], bool]
    limit: int

    def longest(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return the questions with the longest possible answers."""
        asked = [(sample, question(sample)) for sample in samples]
        return [replace(s, ids=(ids := q + q[-1:] * self.limit), labels=ids) for s, q in asked]


def question(sample: Sample) -> tuple[int, ...]:
    """Return the token ids of a row up to its last answer: the last labels without a gap."""
    end = len(sample.ids)
    while end and sample.labels[end - 1] == IGNORED:
        end -= 1
    while end and sample.labels[end - 1] != IGNORED:
        end -= 1
    return sample.ids[:end] or sample.ids


class RewardObjective(Objective):
    """The loss of answers that are drawn in every step.

    Beside the loss, it measures the mean reward and the share of idle answers: those from which nothing is learnt, as
    all answers to the question have the same reward.
    """

    measures = ("reward", "idle")

    def __init__(self, plan: TrainSpec, samples: Sequence[Sample], answering: Answering | None, *parts: Any) -> None:
        """Check that answers can be drawn; the last `parts` are the arguments of `Objective`.

        Raises:
            BadSpec: they cannot, by this model or in this many processes, or a question leaves no room for one.
        """
        super().__init__(*parts)
        if answering is None:
            raise BadSpec("train.objective = 'reward' needs something that scores answers. Give an `answering`.")
        if sharded() or not can_batch(self.model):
            reason = "parameters are sharded" if sharded() else f"{type(self.model).__name__} has a cache of its own"
            raise BadSpec(f"train.objective = 'reward' draws answers, which is not supported where {reason}.")
        self.answering, self.plan = answering, plan
        fits, longest = context_length(self.model), max(len(question(sample)) for sample in samples)
        if fits is not None and longest + answering.limit > fits:
            raise BadSpec(
                f"The longest question has {longest} tokens; with up to {answering.limit} for the answer that is more "
                f"than the {fits} that fit the model. Lower data.max_tokens or eval.max_new_tokens."
            )

    def units(self, samples: Sequence[Sample]) -> int:
        """Return the number of answers."""
        return len(samples)

    def draw(self, accelerator: Accelerator, seed: int, step: int, samples: list[Sample]) -> list[Sample]:
        """Draw `answers` answers to every question of a batch, which depend on adapter, seed and step only.

        Every process answers its share of the questions, and all of them get all answers.
        """
        count, limit = self.plan.answers, self.answering.limit
        generator = torch.Generator().manual_seed((seed << 32) + step)
        uniforms = torch.rand(len(samples) * count, limit, generator=generator, dtype=torch.float64)
        mine = range(accelerator.process_index, len(samples), accelerator.num_processes)
        numbers = [number * count + i for number in mine for i in range(count)]
        size, found = self.plan.micro_batch or len(numbers), list[list[int]]()
        with weights.evaluating(self.model):
            for start in range(0, len(numbers), size):
                part = numbers[start : start + size]
                rows, choose = [samples[n // count] for n in part], drawn(uniforms[part], self.plan.temperature)
                asked, done = [question(row) for row in rows], self.answering.is_complete
                with call_inputs(self._decoder, row_inputs(self._decoder, rows, weights.device(self.model))):
                    found += greedy(self.model, asked, self.pad_id, limit, done, choose)
        said = dict(gather_object(list(zip(numbers, found, strict=True))))
        groups = [[said[number * count + i] for i in range(count)] for number in range(len(samples))]
        return [rollout for pair in zip(samples, groups, strict=True) for rollout in self._judged(*pair)]

    def _judged(self, sample: Sample, answers: Sequence[list[int]]) -> list[Rollout]:
        asked, rewards = question(sample), [self.answering.reward(sample.id, answer) for answer in answers]
        blank = [IGNORED] * len(asked)
        gains = [reward - (sum(rewards) - reward) / (len(rewards) - 1) for reward in rewards]
        return [
            Rollout(sample.id, (*asked, *answer), (*blank, *answer), sample.extras, (), sample.group, reward, gain)
            for answer, reward, gain in zip(answers, rewards, gains, strict=True)
        ]

    def _sum(self, passes: ExitStack, prepared: Any, samples: Sequence[Sample]) -> torch.Tensor:
        each = passes.enter_context(self.losses(prepared, samples, temperature=self.plan.temperature))
        losses = torch.stack([part.sum() for part in torch.split(each, [sample.counted for sample in samples])])
        rollouts = [sample for sample in samples if isinstance(sample, Rollout)]
        rewards, advantages = losses.new_tensor([(row.reward, row.advantage) for row in rollouts]).unbind(1)
        self.measured = rewards.sum(), (advantages == 0).float().sum()
        return (advantages * losses).sum()
