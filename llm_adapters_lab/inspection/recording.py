"""What a `Recorder` keeps of one site: tensors call by call, or running moments in constant memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.nn.functional import pad

from llm_adapters_lab.errors import NoView

What = Literal["x", "y", "base", "grad", "pattern", "contributions"]
Moment = Literal["mean", "norm", "covariance"]
Reduce = Moment | Callable[[torch.Tensor], torch.Tensor] | None


class Moments:
    """Running mean, mean norm or covariance of vectors that arrive in blocks.

        δ = m_B - m_A,   m = m_A + δ n_B / n,   S = S_A + S_B + δ δᵀ n_A n_B / n,   n = n_A + n_B

    with S the sum of (z - m)(z - m)ᵀ; the covariance is S / (n - 1). In fp64, or fp32 where a device has no fp64.

    Source: Chan, Golub and LeVeque 1979, Stanford STAN-CS-79-773, equation 2.1 (their T, S of scalars / our n m, S of
    vectors); with n_B = 1 it is Welford 1962.
    """

    def __init__(self, kind: Moment) -> None:
        """Start with no vectors."""
        self.kind, self.count = kind, 0
        self.mean = self.scatter = torch.zeros(())

    @torch.no_grad()
    def add(self, z: torch.Tensor) -> None:
        """Add the rows of z (n, d)."""
        z = z.detach().to(torch.float32 if z.device.type == "mps" else torch.float64)
        if self.kind == "norm":
            z = z.norm(dim=-1, keepdim=True)
        if (new := len(z)) == 0:
            return
        mean, total = z.mean(0), self.count + new
        delta = mean - self.mean.to(mean)
        if self.kind == "covariance":
            spread = (z - mean).T @ (z - mean)
            self.scatter = self.scatter.to(mean) + spread + torch.outer(delta, delta) * (self.count * new / total)
        self.mean, self.count = self.mean.to(mean) + delta * (new / total), total

    def value(self) -> torch.Tensor:
        """Return the mean (d,), the mean norm (a scalar) or the covariance (d, d)."""
        if self.kind == "covariance":
            return self.scatter / (self.count - 1)
        return self.mean[0] if self.kind == "norm" else self.mean


def _recorded(kind: str) -> Any:
    return property(lambda recording: recording._read(kind))


class Recording:
    """What was recorded at one site.

    Calls of the model are taken to continue one another, as in `generate`: their tensors are concatenated along the
    tokens, and `calls` returns them one by one. Running moments cover all calls; the results of a function as reduction
    are stacked, (calls, ...).

    Attributes:
        key: of the site.
        x: input of the site, (rows, tokens, d_in); for a sublayer, what its first projection reads.
        y: output of the site after adapters and edits, (rows, tokens, d_out).
        base: output of the site before the adapters that sit there, (rows, tokens, d_out).
        grad: gradient with respect to y, (rows, tokens, d_out).
        pattern: attention weights, (rows, heads, queries, keys); 0 for keys that an earlier call could not see.
    """

    x: torch.Tensor = _recorded("x")
    y: torch.Tensor = _recorded("y")
    base: torch.Tensor = _recorded("base")
    grad: torch.Tensor = _recorded("grad")
    pattern: torch.Tensor = _recorded("pattern")

    def __init__(self, key: str, what: frozenset[str], reduce: Reduce, device: Any, masked: bool) -> None:
        """Start empty."""
        self.key, self._what, self._reduce, self._device, self._masked = key, what, reduce, device, masked
        self._moments: dict[str, Moments] = {}
        self._calls: dict[str, dict[int, torch.Tensor]] = {}

    @property
    def contributions(self) -> dict[str, torch.Tensor]:
        """What each adapter added at the site, by name, each (rows, tokens, d_out); they sum to y - base."""
        self._check("contributions")
        kinds = [kind for kind in (*self._calls, *self._moments) if kind.startswith("contributions/")]
        return {kind.partition("/")[2]: self._read(kind) for kind in kinds}

    @property
    def count(self) -> int:
        """Number of tokens in a running moment."""
        return max((moments.count for moments in self._moments.values()), default=0)

    def calls(self, kind: str) -> list[torch.Tensor]:
        """Return what each call recorded, in order.

        Args:
            kind: "x", "y", "base", "grad", "pattern" or "contributions/<adapter>".

        Raises:
            NoView: it was not asked for, or nothing has arrived.
        """
        self._check(kind)
        if kind in self._moments:
            raise NoView(f"{kind} of {self.key} was reduced to a running moment; single calls were not kept.")
        if not (found := self._calls.get(kind)):
            reason = "call the model inside the block"
            if kind == "grad":
                reason = "call `backward` inside the block, without reentrant checkpointing, which cuts the graph"
            raise NoView(f"No {kind} of {self.key} has arrived; {reason}.")
        return [found[number] for number in sorted(found)]

    def add(self, kind: str, number: int, z: torch.Tensor) -> None:
        """Add the selected tokens z of a call; numbers increase in order of execution."""
        if isinstance(self._reduce, str):
            self._moments.setdefault(kind, Moments(self._reduce)).add(z.flatten(0, -2))
        else:
            z = self._reduce(z.detach().flatten(0, -2)) if self._reduce else z.detach()
            # A copy: models change streams in place, and a part should not keep the whole alive.
            self._calls.setdefault(kind, {})[number] = z.to(self._device or z.device, copy=True)

    def _check(self, kind: str) -> None:
        if kind.partition("/")[0] not in self._what:
            recorded = ", ".join(sorted(self._what))
            raise NoView(f"{kind} was not asked for at {self.key}; recorded are: {recorded}.")

    def _read(self, kind: str) -> torch.Tensor:
        if kind in self._moments:
            return self._moments[kind].value()
        calls = self.calls(kind)
        if kind == "pattern":
            keys = max(z.shape[-1] for z in calls)
            calls = [pad(z, (0, keys - z.shape[-1])) for z in calls]
        fixed = slice(None) if self._reduce else slice(0 if self._masked else 1)
        if len({z.shape[fixed] for z in calls}) > 1:
            differ = "shape" if self._reduce else "rows"
            raise NoView(f"The calls at {self.key} differ in {differ}; read them with `calls({kind!r})`.")
        if self._reduce:
            return torch.stack(calls)
        return calls[0] if len(calls) == 1 else torch.cat(calls, 0 if self._masked else -2)
