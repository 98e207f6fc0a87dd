"""Regimes: low-rank heads that train one adapter together, each on its own rows.

Of a batch, head h of H learns from the rows h, h + H, ...: it has its own mean loss, gradient clipping and moments. For
these rows an adapted projection is

    y = W x + s (B_h A_h - B°_h A°_h) x

with A: (r, d_in), B: (d_out, r), s = alpha / r; W holds what has been merged, ° marks the factors at the last merge.
Only factors are exchanged between processes, each of which has its share of the heads.

LTE: A_h is orthogonal and B_h zero at the start. Every T steps

    W <- W + s/H Σ_h (B_h A_h - B°_h A°_h)

and the heads continue, so that W gains a rank of H r at most; or, with `reset`, each starts
over with a new A_h and without moments, and the rank grows with every merge. Source: Huh et al. 2024, arXiv:2402.16828.

HD-PiSSA: with W = U S V' at the start, B_h = U_h √S_h and A_h = √S_h V'_h hold the singular directions h r to h r + r,
and stay. What AdamW would change in them is merged into W after every step, which gains a rank of 2 H r in each:

    W <- W + Σ_h (B_h A_h - B°_h A°_h),   then   A_h = A°_h,  B_h = B°_h

Source: Wang et al. 2025, arXiv:2505.18777.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import linear

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.call_context import CallContext, attach_context, detach_context
from llm_adapters_lab.core.hooks import Sequence as AdapterSequence
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import CannotInject
from llm_adapters_lab.events import Merged
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.loss import Objective
from llm_adapters_lab.training.spec import Regime

CONTEXT = "heads"
TOLERANCE = 1e-4
"""Singular values below this share of the largest do not count for a rank."""
LARGEST = 2048
"""Longest shorter side of a full update whose rank is measured at merges; singular values take cubic time."""


def check_sites(config: AdapterConfig, regime: Regime, sites: Iterable[Site]) -> None:
    """Check that heads can be at all sites.

    Raises:
        CannotInject: they cannot.
    """
    rank = regime.heads * config.rank  # type: ignore[attr-defined]
    for site in sites:
        if site.role == "embed" or site.routed:
            what = "reads token ids" if site.role == "embed" else "sees only the tokens that are sent to it"
            raise CannotInject(f"{site.path} {what}, where train.regime has no rows to tell heads apart. Leave it out.")
        if regime.name == "hd-pissa" and rank > (width := min(site.d_in, site.d_out)):
            raise CannotInject(
                f"{regime.heads} heads of rank {config.rank} need {rank} singular directions, but "  # type: ignore[attr-defined]
                f"{site.path} has {width}. Lower train.regime.heads or adapter.rank, or place it elsewhere."
            )


class HeadsAt(nn.Module):
    """The heads of one site that this process trains.

    Attributes:
        A: (own heads, r, d_in).
        B: (own heads, d_out, r).
        A0: of all heads at the last merge, (H, r, d_in).
        B0: likewise, (H, d_out, r).
        scale: s.
        own: which of the H heads are trained here.
        numbers: what they are called in the running call.
    """

    A0: torch.Tensor
    B0: torch.Tensor
    numbers: torch.Tensor
    context: CallContext

    def __init__(self, a: torch.Tensor, b: torch.Tensor, scale: float, own: slice) -> None:
        """Begin with the factors of all heads."""
        super().__init__()
        self.scale, self.own = scale, own
        self.register_buffer("A0", a)
        self.register_buffer("B0", b)
        self.A, self.B = nn.Parameter(a[own].clone()), nn.Parameter(b[own].clone())

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y with what the head of each token has learnt since the last merge; in evaluation, y.

        Raises:
            CannotInject: the call does not tell which row is of which head.
        """
        if not self.training:
            return y
        if (group := self.context.group) is None:
            raise CannotInject("The heads of train.regime learn from rows that are assigned to them; use `train`.")
        mine = group[..., None] == self.numbers
        # Two equal products cancel exactly where nothing has been learnt.
        change = self._product(x, self.A, self.B, mine) - self._product(x, self.A0[self.own], self.B0[self.own], mine)
        return y + self.scale * change

    @staticmethod
    def _product(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
        """Return B_h A_h x with the head h of each token; all heads are computed, and the others set to zero."""
        between = linear(x, a.flatten(0, 1)).view(*x.shape[:-1], *a.shape[:2])
        if x.ndim == 2:  # in models that flatten the input of their MLP
            mine = mine.expand(-1, len(x) // len(mine), -1).flatten(0, 1) if mine.shape[1] == 1 else mine[0]
        between = between * mine[..., None].to(between)
        return linear(between.flatten(-2), b.transpose(0, 1).flatten(1))


class Heads:
    """The heads of a regime at all sites of an injection, which holds what they merge."""

    def __init__(
        self, injection: Injection, config: Any, regime: Regime, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        """Begin the training of an injection.

        Args:
            injection: of `config.headed(...)`.
            config: of the heads.
            regime: how they are trained.
            seed: of LTE's factors.
            rank: of this process, which trains the heads rank, rank + world, ...
            world: number of processes; the number of heads must be a multiple of it.

        Raises:
            CannotInject: there cannot be heads at a site, or its weight cannot be read.
        """
        check_sites(config, regime, injection.sites.values())
        self.injection, self.config, self.regime, self.seed = injection, config, regime, seed
        self.own, self.world, self.scale = slice(rank, None, world), world, config.alpha / config.rank
        self.sites: dict[str, HeadsAt] = {}
        for number, (key, site) in enumerate(injection.sites.items()):
            host = injection.host(key)
            a, b = self._directions(host) if regime.name == "hd-pissa" else self._drawn(site, number, 0)
            device = weights.device(host)
            self.sites[key] = HeadsAt(a.to(device), b.to(device), self.scale, self.own)
        if not regime.dense:
            self._write()

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return what this process trains, A and B, by site."""
        return {key: list(heads.parameters()) for key, heads in self.sites.items()}

    def parameters(self) -> list[nn.Parameter]:
        """Return the same of all sites."""
        return [parameter for group in self.groups().values() for parameter in group]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Put the heads behind the injection, whose own tensors get no gradients meanwhile."""
        decoder, name = self.injection.model.get_submodule(self.injection.anatomy.decoder), self.injection.name
        names = [str(head) for head in range(self.regime.heads)]
        frozen = self.injection.parameters()
        context = attach_context(decoder, CONTEXT, groups=names)
        with ExitStack() as undo:
            undo.callback(detach_context, decoder, CONTEXT)
            for parameter in frozen:
                undo.callback(parameter.requires_grad_, True)
                parameter.requires_grad_(False)
            for key, heads in self.sites.items():
                chain, adapter = self.injection.chain(key), self.injection.adapters[key]
                heads.context, heads.numbers = context, context.numbers(names)[self.own].to(heads.A.device)
                undo.callback(chain.__setitem__, name, adapter)
                chain[name] = AdapterSequence([adapter, heads.train(adapter.training)])
            yield

    @torch.no_grad()
    def clip(self, accelerator: Accelerator, limit: float) -> float:
        """Scale the gradient of each head down to a norm of at most `limit` (0: no limit).

        Args:
            accelerator: of the training.
            limit: of the gradient of the head's own mean loss.

        Returns:
            The mean of the norms of all heads before that.
        """
        # Of the mean over all heads, the gradient of one is 1 / H of that of its own mean loss.
        found = [p.grad.mul_(self.regime.heads) for p in self.parameters() if p.grad is not None]
        squares = [grad.flatten(1).square().sum(1).to(found[0].device) for grad in found]
        norms = torch.stack(squares).sum(0).sqrt() if squares else torch.zeros(1)
        if limit:
            factors = (limit / (norms + 1e-6)).clamp(max=1)
            for grad in found:
                grad.mul_(factors.to(grad.device).view(-1, *[1] * (grad.ndim - 1)))
        total = accelerator.reduce(norms.sum(), "sum") if self.world > 1 else norms.sum()
        return float(total) / self.regime.heads

    @torch.no_grad()
    def after_step(self, accelerator: Accelerator, optimizer: Any, step: int, steps: int, shows: int) -> list[Merged]:
        """Merge if it is time to, which the last step always is.

        Args:
            accelerator: of the training.
            optimizer: of the heads.
            step: number of the step, from 1.
            steps: number of all steps.
            shows: how many times per training the rank of the merged update is reported.

        Returns:
            The event of the merge; an empty list if there was none, or it is not reported.
        """
        last = step == steps
        if step % self.regime.every and not last:
            return []
        factors = iter(self.whole(accelerator, self.parameters()))
        merges = -(-step // self.regime.every)
        for number, (key, heads) in enumerate(self.sites.items()):
            a, b = next(factors), next(factors)
            if self.regime.dense:
                share = 1.0 if self.regime.name == "hd-pissa" else self.scale / self.regime.heads
                change = _summed(a, b - heads.B0) + _summed(a - heads.A0, heads.B0)
                self.injection.adapters[key].get_parameter("D").add_(change, alpha=share)
            if self.regime.reset:
                a, b = (f.to(a.device) for f in self._drawn(self.injection.sites[key], number, merges))
            if self.regime.name == "lte":
                heads.A0.copy_(a)
                heads.B0.copy_(b)
            heads.A.copy_(heads.A0[self.own])
            heads.B.copy_(heads.B0[self.own])
        if self.regime.reset:
            for held in optimizer.state.values():
                for value in held.values():
                    value.zero_()
        if not self.regime.dense:
            self._write()
        reported = last or merges == 1 or step * shows // steps > (step - self.regime.every) * shows // steps
        return [Merged(step, merges, self.ranks())] if reported else []

    def ranks(self) -> dict[str, int]:
        """Return the rank of what has been merged at each site, with `TOLERANCE`; without sites that are too large."""
        found = {}
        for key, adapter in self.injection.adapters.items():
            tensors = {name: p.detach().float() for name, p in adapter.named_parameters(recurse=False)}
            if self.regime.dense and min(tensors["D"].shape) > LARGEST:
                continue
            if self.regime.dense:
                change = tensors["D"]
            else:  # B A has the same singular values as the product of the R factors of B and A'
                change = torch.linalg.qr(tensors["B"]).R @ torch.linalg.qr(tensors["A"].T).R.T
            values = torch.linalg.svdvals(change)
            found[key] = int((values > TOLERANCE * values[0]).sum())
        return found

    def whole(self, accelerator: Accelerator | None, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Gather tensors of the own heads from all processes, in one message, and return those of all, (H, ...)."""
        if self.world == 1 or accelerator is None:
            return [tensor.detach() for tensor in tensors]
        message = torch.cat([tensor.detach().flatten() for tensor in tensors])
        ranks = accelerator.gather(message).view(self.world, -1).split([t.numel() for t in tensors], 1)
        # Process p has the heads p, p + P, ...
        return [
            flat.view(self.world, *t.shape).transpose(0, 1).flatten(0, 1)
            for flat, t in zip(ranks, tensors, strict=True)
        ]

    def whole_moments(self, accelerator: Accelerator | None, held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return what the optimiser holds for a tensor, of all heads."""
        return {key: self.whole(accelerator, [value])[0] if value.ndim else value for key, value in held.items()}

    def state(self, accelerator: Accelerator | None) -> dict[str, torch.Tensor]:
        """Return the factors of all heads, now and at the last merge, by site."""
        factors = iter(self.whole(accelerator, self.parameters()))
        found: dict[str, torch.Tensor] = {}
        for key, heads in self.sites.items():
            tensors = {"A": next(factors), "B": next(factors), "A0": heads.A0, "B0": heads.B0}
            found |= {f"{key}/{name}": tensor.clone() for name, tensor in tensors.items()}
        return found

    @torch.no_grad()
    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Load what `state` returned, in this or any other number of processes."""
        for key, heads in self.sites.items():
            heads.A0.copy_(state[f"{key}/A0"])
            heads.B0.copy_(state[f"{key}/B0"])
            heads.A.copy_(state[f"{key}/A"][self.own])
            heads.B.copy_(state[f"{key}/B"][self.own])

    def _drawn(self, site: Site, number: int, merges: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the factors of all LTE heads at the `number`-th site, as drawn after `merges` merges."""
        rank, found = self.config.rank, []
        for head in range(self.regime.heads):
            drawn = torch.Generator().manual_seed(hash((self.seed, number, head, merges)))
            found.append(nn.init.orthogonal_(torch.empty(rank, site.d_in), 1 / math.sqrt(rank), generator=drawn))
        return torch.stack(found), torch.zeros(self.regime.heads, site.d_out, rank)

    def _directions(self, host: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Return factors of all heads of HD-PiSSA, from the weight of a host."""
        u, s, v = torch.linalg.svd(weights.read(host).detach().float().cpu(), full_matrices=False)
        count, rank = self.regime.heads, self.config.rank
        root = s[: count * rank].sqrt()
        a, b = root[:, None] * v[: count * rank], u[:, : count * rank] * root
        return a.view(count, rank, -1).contiguous(), b.view(-1, count, rank).transpose(0, 1).contiguous()

    @torch.no_grad()
    def _write(self) -> None:
        """Write the merged factors into the low-rank adapters of the injection, one head below the other."""
        for key, heads in self.sites.items():
            adapter = self.injection.adapters[key]
            adapter.get_parameter("A").copy_(heads.A0.flatten(0, 1))
            adapter.get_parameter("B").copy_(heads.B0.transpose(0, 1).flatten(1))


def _summed(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return Σ_h B_h A_h, (d_out, d_in), of factors (H, r, d_in) and (H, d_out, r)."""
    return b.transpose(0, 1).flatten(1) @ a.flatten(0, 1)


class HeadsObjective(Objective):
    """The negative log-likelihood of the labels, as the mean over heads of the mean over the labels of each."""

    def __init__(self, heads: int, *parts: Any) -> None:
        """Set the number of heads; `parts` are the arguments of `Objective`."""
        super().__init__(*parts)
        self.heads = heads
        self._labels: dict[str, int] = {}

    def draw(self, accelerator: Accelerator, seed: int, step: int, samples: list[Sample]) -> list[Sample]:
        """Return the rows with the head that each belongs to as its group."""
        return self.assigned(samples)

    def assigned(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return the rows of a step with the head that each belongs to as its group."""
        drawn = [replace(sample, group=str(i % self.heads)) for i, sample in enumerate(samples)]
        for head in range(self.heads):
            self._labels[str(head)] = max(1, sum(sample.counted for sample in drawn[head :: self.heads]))
        return drawn

    def units(self, samples: Sequence[Sample]) -> float:  # type: ignore[override]
        """Return the sum over the labels of their weights: 1 / labels of the head; held-out rows have no head, and 1.

        For the rows of a step that is the number of heads.
        """
        return sum(sample.counted * self._weight(sample) for sample in samples)

    def _weight(self, sample: Sample) -> float:
        return 1 / self._labels[sample.group] if sample.group else 1.0

    def _sum(self, passes: ExitStack, prepared: Any, samples: Sequence[Sample]) -> torch.Tensor:
        losses = passes.enter_context(self.losses(prepared, samples))
        each = [weight for sample in samples for weight in [self._weight(sample)] * sample.counted]
        return losses @ torch.tensor(each).to(losses)
