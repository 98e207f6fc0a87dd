"""Choose adapters of a shelf for a prompt, by what they were trained on.

Texts are compared by the mean hidden state h: (d,) of a middle layer of the bare base. For a card with the mean state
μ_k of its training questions, and the covariance Σ of the states around the mean of their card,

    D_k(h)² = (h - μ_k)ᵀ S⁻¹ (h - μ_k),   S = (1 - γ) Σ + γ tr(Σ)/d I,   γ = 0.1
    weight of k = budget · softmax_k(-D_k² / 2)

over the nearest cards that are within reach: held-out questions of card k have a D_k of at most its reach.

Source: Stylus, Luo et al. 2024, arXiv:2404.18928: retrieve by embedding, compose for each topic, and give the adapters
a budget of weight, since adding several at full strength destroys the output. Theirs are texts that a vision-language
model writes about an adapter, and cosines of their embeddings; here they are training questions, and the weights are
the posterior of a linear discriminant, which needs no temperature.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.composition import mix, stack
from llm_adapters_lab.core.injection import injections
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.results.shelf import Shelf, adapter_name

SHRINK = 0.1
"""γ: the covariance of few questions is known only in part."""
REACH = 1.5
"""How much farther than held-out questions of a card a prompt may be."""
LEAST = 0.01
"""Share of the budget below which an adapter is left out."""
BATCH = 32


class Picker:
    """Chooses adapters of a shelf for prompts.

    Args:
        shelf: the adapters; those with fewer than four training questions on their card are never chosen.
        model: their base. Adapters in it are switched off while it reads.
        tokenizer: of the base.
        base: name of the base on the cards; by default all cards are taken.

    Raises:
        BadSpec: no card has enough training questions.
    """

    def __init__(self, shelf: Shelf, model: nn.Module, tokenizer: Any, base: str | None = None) -> None:
        """Read the training questions of all cards."""
        self.shelf, self.model, self.tokenizer = shelf, model, tokenizer
        cards = [card for card in shelf.select(base) if len(card.questions) >= 4]
        if not cards:
            raise BadSpec(f"No card on the shelf {shelf.root} has training questions. Add adapters from their runs.")
        self.names = [card.name for card in cards]
        states = self._states([question for card in cards for question in card.questions])
        own = list(torch.split(states, [len(card.questions) for card in cards]))
        self._means, self._whiten = _fit(own)
        reach = torch.zeros(len(cards), dtype=states.dtype)
        for half in (0, 1):  # each half is held out once
            fitted = _fit([part[half::2] for part in own])
            held = [_distances(part[1 - half :: 2], *fitted)[:, k].max() for k, part in enumerate(own)]
            reach = torch.maximum(reach, torch.stack(held))
        self._reach = REACH * reach

    def distances(self, text: str) -> dict[str, tuple[float, float]]:
        """Return for each card the distance D_k of a text, and the largest at which it is chosen."""
        found = _distances(self._states([text]), self._means, self._whiten)[0]
        pairs = zip(found.tolist(), self._reach.tolist(), strict=True)
        return dict(zip(self.names, pairs, strict=True))

    def pick(self, prompt: str, *, most: int = 3, budget: float = 1.0, cut: bool = False) -> dict[str, float]:
        """Return names and weights of adapters for a prompt, for `mix`; the weights add up to at most the budget.

        Args:
            prompt: a text.
            most: maximum number of adapters of a topic.
            budget: sum of all weights.
            cut: take each sentence for a topic of its own; otherwise the prompt is one. Topics share the budget
                equally, and no adapter is chosen for two of them.

        Returns:
            The weights, the largest first; {} if no card is within reach, which means the bare base.

        Raises:
            BadSpec: the prompt is empty.
        """
        if not prompt.strip():
            raise BadSpec("There is no adapter for an empty prompt.")
        topics = [part for part in re.split(r"(?<=[.!?])\s+|\n+", prompt) if part.strip()] if cut else [prompt]
        chosen: dict[str, float] = {}
        for topic in topics:
            near = {n: d for n, (d, reach) in self.distances(topic).items() if d <= reach and n not in chosen}
            kept = sorted(near, key=near.__getitem__)[:most]
            best = near[kept[0]] if kept else 0.0
            likely = {name: math.exp((best**2 - near[name] ** 2) / 2) for name in kept}
            shares = {name: value / math.fsum(likely.values()) for name, value in likely.items()}
            shares = {name: share for name, share in shares.items() if share >= LEAST}
            chosen |= {name: budget / len(topics) * s / math.fsum(shares.values()) for name, s in shares.items()}
        return dict(sorted(chosen.items(), key=lambda pair: -pair[1]))

    def use(self, chosen: dict[str, float]) -> None:
        """Load adapters of the shelf into the model as far as they are missing, and mix them; {} is the bare base."""
        for name in chosen:
            if adapter_name(name) not in injections(self.model):
                self.shelf.load(self.model, name, self.tokenizer)
        if chosen:
            mix(self.model, {adapter_name(name): share for name, share in chosen.items()})
        else:
            stack(self.model)

    @torch.no_grad()
    def _states(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the mean hidden states of texts, (texts, d)."""
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
                states = layers[len(layers) // 2].double() * mask[..., None]
                found.append((states.sum(1) / mask.sum(1, keepdim=True)).cpu())
        return torch.cat(found)


def _fit(own: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the means (cards, d), and a matrix W (d, d) with W Wᵀ = S⁻¹."""
    means = torch.stack([states.mean(0) for states in own])
    apart = torch.cat([states - mean for states, mean in zip(own, means, strict=True)])
    covariance = apart.T @ apart / len(apart)
    size = covariance.diagonal().mean().clamp(min=1e-12)
    shrunk = (1 - SHRINK) * covariance + SHRINK * size * torch.eye(len(covariance), dtype=covariance.dtype)
    return means, torch.linalg.inv(torch.linalg.cholesky(shrunk)).T


def _distances(states: torch.Tensor, means: torch.Tensor, whiten: torch.Tensor) -> torch.Tensor:
    """Return the distances D of states to cards, (states, cards)."""
    return torch.cdist(states @ whiten, means @ whiten)
