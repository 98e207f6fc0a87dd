"""Choose adapters for a prompt, by what they were trained on.

A text is the vector h: (2d,) of the mean hidden state and that of its last token, in the middle layer of the bare base.
With the mean μ_k of the training questions of adapter k, the mean μ of all μ_k, and the covariance Σ of questions
around the mean of their adapter,

    S = (1 - γ) Σ + γ tr(Σ) / 2d I,  γ = 0.5          |v|² = vᵀ S⁻¹ v
    similarity s_k = cosine of h - μ and μ_k - μ in this norm
    weight of k = budget · softmax_k(s_k / 0.02) over the most similar adapters that are within reach

An adapter is within reach if the mean state alone is, in its own such norm, at most 1.3 times as far from those of its
questions as any held-out question is from those of its adapter.

Source: Stylus, Luo et al. 2024, arXiv:2404.18928: retrieve by embedding, compose for each topic by a softmax over the
similarities, and give the adapters a budget of weight, since adding several at full strength destroys the output.
Theirs are texts that a vision-language model writes about an adapter; here they are training questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.injection import injections
from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.rows import read_rows

SHRINK = 0.5
"""γ: the covariance of few questions is known only in part."""
TEMPERATURE = 0.02
"""Of the softmax over similarities."""
REACH = 1.3
"""How much farther than held-out questions a prompt may be."""
LEAST = 0.01
"""Share of the budget below which an adapter is left out."""
BATCH = 32
QUESTIONS = 40
"""Number of training questions by which an adapter is known."""


class Picker:
    """Chooses adapters for prompts.

    Args:
        questions: training questions by name of the adapter; one with fewer than four is never chosen.
        model: the base of the adapters. Adapters in it are switched off while it reads.
        tokenizer: of the base.

    Raises:
        BadSpec: no adapter has enough training questions.
    """

    def __init__(self, questions: Mapping[str, Sequence[str]], model: nn.Module, tokenizer: Any) -> None:
        """Read all training questions."""
        self.model, self.tokenizer = model, tokenizer
        known = {name: texts for name, texts in questions.items() if len(texts) >= 4}
        if not known:
            raise BadSpec("No adapter here has training questions, by which it could be chosen. Add runs of adapters.")
        self.names = list(known)
        states = self._states([text for texts in known.values() for text in texts])
        own = list(torch.split(states, [len(texts) for texts in known.values()]))
        self._means, self._whiten = _fit(own)
        self._middle = self._means.mean(0)
        self._cards = normalize((self._means - self._middle) @ self._whiten, dim=1)
        means = [part[:, : part.shape[1] // 2] for part in own]  # mean states, which change less with the wording
        self._near = _fit(means)
        reach = torch.zeros(len(own), dtype=states.dtype)
        for half in (0, 1):  # each half is held out once
            fitted = _fit([part[half::2] for part in means])
            held = [_distances(part[1 - half :: 2], *fitted)[:, k].max() for k, part in enumerate(means)]
            reach = torch.maximum(reach, torch.stack(held))
        self._reach = REACH * float(reach.max())

    def similarities(self, text: str) -> dict[str, float]:
        """Return the similarity s_k of a text to each adapter, from -1 to 1; 0 if there is only one."""
        own = normalize((self._states([text])[0] - self._middle) @ self._whiten, dim=0)
        return dict(zip(self.names, (self._cards @ own).tolist(), strict=True))

    def distances(self, text: str) -> dict[str, float]:
        """Return the distance of a text from the questions of each adapter, 1 at the end of its reach."""
        state = self._states([text])
        found = _distances(state[:, : state.shape[1] // 2], *self._near)[0] / self._reach
        return dict(zip(self.names, found.tolist(), strict=True))

    def pick(self, prompt: str, *, most: int = 3, budget: float = 1.0, cut: bool = False) -> dict[str, float]:
        """Return names and weights of adapters for a prompt, for `mix`; the weights add up to at most the budget.

        Args:
            prompt: a text.
            most: maximum number of adapters of a topic.
            budget: sum of all weights.
            cut: take each line for a topic of its own; otherwise the prompt is one. Topics share the budget equally,
                and no adapter is chosen for two of them.

        Returns:
            The weights, the largest first; {} if no adapter is within reach, which means the bare base.

        Raises:
            BadSpec: the prompt is empty.
        """
        if not prompt.strip():
            raise BadSpec("There is no adapter for an empty prompt.")
        topics = [part for part in prompt.splitlines() if part.strip()] if cut else [prompt]
        chosen: dict[str, float] = {}
        for topic in topics:
            within = [name for name, far in self.distances(topic).items() if far <= 1 and name not in chosen]
            near = {name: alike for name, alike in self.similarities(topic).items() if name in within}
            kept = sorted(near, key=lambda name: -near[name])[:most]
            strength = {name: math.exp((near[name] - near[kept[0]]) / TEMPERATURE) for name in kept}
            shares = {name: value / math.fsum(strength.values()) for name, value in strength.items()}
            shares = {name: share for name, share in shares.items() if share >= LEAST}
            chosen |= {name: budget / len(topics) * s / math.fsum(shares.values()) for name, s in shares.items()}
        return dict(sorted(chosen.items(), key=lambda pair: -pair[1]))

    @torch.no_grad()
    def _states(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the vectors of texts, (texts, 2d)."""
        found, device = [], weights.device(self.model)
        with ExitStack() as bare:
            for injection in injections(self.model).values():
                bare.enter_context(injection.disabled())
            for first in range(0, len(texts), BATCH):
                rows = [
                    self.tokenizer(text, truncation=True, max_length=512)["input_ids"] for text in texts[first:][:BATCH]
                ]
                longest = max(map(len, rows))
                ids = torch.tensor([row + row[:1] * (longest - len(row)) for row in rows], device=device)
                mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
                layers = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
                states, counts = layers[len(layers) // 2].double() * mask[..., None], mask.sum(1)
                last = states[torch.arange(len(rows), device=device), counts - 1]
                found.append(torch.cat([states.sum(1) / counts[:, None], last], 1).cpu())
        return torch.cat(found)


def training_questions(run: Run) -> tuple[str, ...]:
    """Return the first training questions of a run; empty if its rows have gone."""
    try:
        return tuple(row.instruction for row in read_rows(run.spec).train[:QUESTIONS] if row.instruction)
    except LabError:
        return ()


def _fit(own: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the means (adapters, 2d), and a matrix W (2d, 2d) with W Wᵀ = S⁻¹."""
    means = torch.stack([states.mean(0) for states in own])
    apart = torch.cat([states - mean for states, mean in zip(own, means, strict=True)])
    covariance = apart.T @ apart / len(apart)
    size = covariance.diagonal().mean().clamp(min=1e-12)
    shrunk = (1 - SHRINK) * covariance + SHRINK * size * torch.eye(len(covariance), dtype=covariance.dtype)
    return means, torch.linalg.inv(torch.linalg.cholesky(shrunk)).T


def _distances(states: torch.Tensor, means: torch.Tensor, whiten: torch.Tensor) -> torch.Tensor:
    """Return the distances of texts from adapters, (texts, adapters)."""
    return torch.cdist(states @ whiten, means @ whiten)
