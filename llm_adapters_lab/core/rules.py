"""Rules for how named adapters act together at one place; they nest. See `composition.compose`.

As text, see `rule_text`: a > b is a stack, a | b the average, 0.7 a + 0.3 b a mix, [german: a, french: b] a route.

With z_a(x, y) = a(x, y) - y and members m_i, each a name or a rule:

    Stack      y' = m_n(x, … m_1(x, y))
    Mix        y' = y + Σ w_i z_i(x, y)           Average: w_i = 1 / n
    Route      y' = m_i(x, y) for the rows of group i
    Parallel   y' = m_i(x, y) for the i-th of n equal blocks of rows, which the caller has repeated
    Split      y' = m_i(x, y) for the tokens at positions s_i to e_i

Source: Pfeiffer et al. 2020, arXiv:2007.07779, and the library `adapters`, whose BatchSplit is Route.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch

from llm_adapters_lab.config import finite
from llm_adapters_lab.core.call_context import CallContext
from llm_adapters_lab.errors import BadSpec, CannotInject

Apply = Callable[[str, torch.Tensor], torch.Tensor]
"""Applies the adapter of a name to y; y comes back unchanged where there is none."""


class Rule:
    """How some members act together.

    Attributes:
        members: names of adapters, or rules.
        by_row: whether rows or tokens are treated differently, which takes the context of the call.
    """

    members: tuple[str | Rule, ...]
    by_row: ClassVar[bool] = False

    def names(self) -> list[str]:
        """Return the names of all adapters below, in order."""
        return [name for m in self.members for name in (m.names() if isinstance(m, Rule) else [m])]

    def rules(self) -> list[Rule]:
        """Return this rule and all below."""
        return [self, *(rule for m in self.members if isinstance(m, Rule) for rule in m.rules())]

    def fold(self, apply: Apply, y: torch.Tensor, call: CallContext | None) -> torch.Tensor:
        """Return the new output (..., d) of a site.

        Args:
            apply: applies a single adapter.
            y: output of the site so far, (..., d).
            call: the running call; None if no rule needs it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no fold")

    @staticmethod
    def _of(member: str | Rule, apply: Apply, y: torch.Tensor, call: CallContext | None) -> torch.Tensor:
        return member.fold(apply, y, call) if isinstance(member, Rule) else apply(member, y)


class Stack(Rule):
    """One after the other."""

    def __init__(self, *members: str | Rule) -> None:
        """Store the members, in order."""
        self.members = members

    def fold(self, apply: Apply, y: torch.Tensor, call: CallContext | None) -> torch.Tensor:
        """Return y after all members."""
        for member in self.members:
            y = self._of(member, apply, y, call)
        return y


class Mix(Rule):
    """The weighted sum of what the members change, each of the same y."""

    def __init__(self, shares: Mapping[str | Rule, float]) -> None:
        """Store the members and their weights, of any sign and sum."""
        self.members, self.weights = tuple(shares), tuple(shares.values())
        if bad := [str(weight) for weight in self.weights if not finite(weight)]:
            raise BadSpec(f"The shares of a mix are finite numbers; {', '.join(bad)} is not.")

    def fold(self, apply: Apply, y: torch.Tensor, call: CallContext | None) -> torch.Tensor:
        """Return y plus the weighted changes."""
        out = y
        for member, weight in zip(self.members, self.weights, strict=True):
            out = out + weight * (self._of(member, apply, y, call) - y)
        return out


class Average(Mix):
    """The mean of what the members change."""

    def __init__(self, *members: str | Rule) -> None:
        """Store the members."""
        super().__init__({member: 1 / len(members) for member in members})


class _Masked(Rule):
    """A rule that gives each token to one member."""

    by_row = True

    def masks(self, call: CallContext, y: torch.Tensor) -> list[torch.Tensor]:
        """Return which tokens each member gets, True or False in a shape that broadcasts to (B, T)."""
        raise NotImplementedError(f"{type(self).__name__} has no masks")

    def fold(self, apply: Apply, y: torch.Tensor, call: CallContext | None) -> torch.Tensor:
        """Return y with each token as its member leaves it."""
        assert call is not None
        out = y
        for member, mask in zip(self.members, self.masks(call, y), strict=True):
            if bool(mask.any()):
                if y.ndim == 2 and call.positions is not None:  # some models run all tokens in one row
                    rows = 1 if call.token_rows is not None else call.rows or 1
                    mask = mask.expand(rows, call.positions.shape[-1]).flatten()
                out = torch.where(mask[..., None].to(y.device), self._of(member, apply, y, call), out)
        return out


class Route(_Masked):
    """Each row goes through the member of its group; rows of other groups stay as they are."""

    def __init__(self, groups: Mapping[str | Rule, str]) -> None:
        """Store the group of each member: `Route({"a": "german", "b": "french"})`."""
        self.members, self.groups = tuple(groups), tuple(groups.values())

    def masks(self, call: CallContext, y: torch.Tensor) -> list[torch.Tensor]:
        """Return the rows of each member's group."""
        if (number := call.group) is None:
            raise CannotInject(
                f"The adapters are routed by the groups {', '.join(self.groups)}, and this call names none. Run it "
                "within `grouped(model, [a group for each row])`."
            )
        return [number == call.groups.index(group) for group in self.groups]


class Parallel(_Masked):
    """The rows of a batch in n equal blocks, the i-th through the i-th member."""

    def __init__(self, *members: str | Rule) -> None:
        """Store the members."""
        self.members = members

    def masks(self, call: CallContext, y: torch.Tensor) -> list[torch.Tensor]:
        """Return the rows of each block."""
        rows, count = call.rows or len(y), len(self.members)
        if rows % count:
            raise CannotInject(f"{count} adapters run in parallel, and {rows} rows are no multiple: repeat all rows.")
        row = torch.arange(rows)[:, None] if call.token_rows is None else call.token_rows[None].cpu()
        return [row // (rows // count) == number for number in range(count)]


class Split(_Masked):
    """The tokens of each row by position, counted from the first token of the row and across the cache."""

    def __init__(self, positions: Mapping[str | Rule, slice]) -> None:
        """Store the positions of each member: `Split({"a": slice(0, 64), "b": slice(64, None)})`."""
        self.members, self.slices = tuple(positions), tuple(positions.values())
        if any(s.step not in (None, 1) or (s.start or 0) < 0 or (s.stop or 0) < 0 for s in self.slices):
            raise BadSpec("The positions of a split are slices of step 1 from 0 on, such as slice(64, None).")

    def masks(self, call: CallContext, y: torch.Tensor) -> list[torch.Tensor]:
        """Return the tokens at each member's positions."""
        if (at := call.positions) is None:
            raise CannotInject("Tokens cannot be split by position here: the cache of this model does not count them.")
        if y.shape[-2] % at.shape[-1]:
            raise CannotInject("Tokens cannot be split by position here: another adapter changes their number.")
        return [(at >= (s.start or 0)) & ((at < s.stop) if s.stop is not None else (at >= 0)) for s in self.slices]
