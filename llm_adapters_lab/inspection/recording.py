"""What a `Recorder` keeps of one site: tensors call by call, or running moments in constant memory."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.nn.functional import pad

from llm_adapters_lab.errors import CannotRecord

What = Literal["x", "y", "base", "grad", "pattern", "contributions"]
Reduce = Literal["mean", "norm", "covariance"]


class Moments:
    """Mean and covariance of vectors that arrive in blocks; memory does not grow with their number.

        δ = m_B - m_A,   m = m_A + δ n_B / n,   S = S_A + S_B + δ δᵀ n_A n_B / n,   n = n_A + n_B

    with S the sum of (z - m)(z - m)ᵀ; the covariance is S / (n - 1). In fp64, or fp32 where a device has no fp64.

    Source: Chan, Golub and LeVeque 1979, Stanford STAN-CS-79-773, equation 2.1 (their T, S of scalars / our n m, S of
    vectors); with n_B = 1 it is Welford 1962.
    """

    def __init__(self, kind: Reduce) -> None:
        """Start with no vector."""
        self.kind, self.count = kind, 0
        self.mean = self.scatter = torch.zeros(())

    @torch.no_grad()
    def add(self, z: torch.Tensor) -> None:
        """Take in the rows of z (n, d)."""
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


class Recording:
    """What was recorded at one site.

    A second call of the model is taken to continue the first, as in `generate`: tensors are joined along the tokens.
    `calls` gives them one by one. With a reduction each attribute is that of all tokens of all calls.

    Attributes:
        key: of the site.
    """

    def __init__(self, key: str, what: frozenset[str], reduce: Reduce | None, device: Any, masked: bool) -> None:
        """Start empty."""
        self.key, self._what, self._reduce, self._device, self._masked = key, what, reduce, device, masked
        self._moments: dict[str, Moments] = {}
        self._calls: dict[str, dict[int, torch.Tensor]] = {}

    @property
    def x(self) -> torch.Tensor:
        """Input of the site, (rows, tokens, d_in); for a sublayer, what its first projection reads."""
        return self._read("x")

    @property
    def y(self) -> torch.Tensor:
        """Output of the site after adapters and edits, (rows, tokens, d_out)."""
        return self._read("y")

    @property
    def base(self) -> torch.Tensor:
        """Output of the site before the adapters that sit there, (rows, tokens, d_out)."""
        return self._read("base")

    @property
    def grad(self) -> torch.Tensor:
        """Gradient with respect to y, (rows, tokens, d_out)."""
        return self._read("grad")

    @property
    def pattern(self) -> torch.Tensor:
        """Attention weights, (rows, heads, queries, keys); keys that an earlier call could not see have 0."""
        return self._read("pattern")

    @property
    def contributions(self) -> dict[str, torch.Tensor]:
        """What each adapter added at the site, by name, each (rows, tokens, d_out); they sum to y - base."""
        self._check("contributions")
        names = [kind.partition("/")[2] for kind in (*self._calls, *self._moments) if kind.startswith("contributions/")]
        return {name: self._read(f"contributions/{name}") for name in names}

    @property
    def count(self) -> int:
        """Number of tokens in the reduction."""
        return max((moments.count for moments in self._moments.values()), default=0)

    def calls(self, kind: str) -> list[torch.Tensor]:
        """Return what each call recorded, in order.

        Args:
            kind: "x", "y", "base", "grad", "pattern" or "contributions/<adapter>".

        Raises:
            CannotRecord: it was not asked for, or nothing of it arrived.
        """
        self._check(kind)
        if kind in self._moments:
            raise CannotRecord(f"{kind} of {self.key} was reduced as it came; its calls were not kept.")
        if not (found := self._calls.get(kind)):
            reason = "call the model inside the block"
            if kind == "grad":
                reason = "call `backward` inside the block, and use no reentrant checkpointing, which cuts the graph"
            raise CannotRecord(f"No {kind} of {self.key} has arrived; {reason}.")
        return [found[number] for number in sorted(found)]

    def keep(self, kind: str, number: int, z: torch.Tensor) -> None:
        """Take in the selected tokens z of the firing with this number."""
        if self._reduce:
            self._moments.setdefault(kind, Moments(self._reduce)).add(z.flatten(0, -2))
        else:
            # A copy: models change streams in place, and a part should not keep the whole alive.
            kept = z.detach().to(self._device or z.device, copy=True)
            self._calls.setdefault(kind, {})[number] = kept

    def _check(self, kind: str) -> None:
        if kind.partition("/")[0] not in self._what:
            raise CannotRecord(
                f"{kind} was not asked for at {self.key}; recorded are: {', '.join(sorted(self._what))}."
            )

    def _read(self, kind: str) -> torch.Tensor:
        self._check(kind)
        if kind in self._moments:
            return self._moments[kind].value()
        calls = self.calls(kind)
        if kind == "pattern":
            keys = max(z.shape[-1] for z in calls)
            calls = [pad(z, (0, keys - z.shape[-1])) for z in calls]
        if len({(z.ndim, *(() if self._masked else z.shape[:1])) for z in calls}) > 1:
            raise CannotRecord(f"The calls recorded at {self.key} differ in rows; read them with `calls({kind!r})`.")
        return calls[0] if len(calls) == 1 else torch.cat(calls, 0 if self._masked else -2)
