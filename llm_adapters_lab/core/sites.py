"""One place in a model where an adapter can sit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["q", "k", "v", "qkv", "kv", "o", "gate", "up", "gate_up", "down", "attn", "mlp", "module"]
Side = Literal["out", "in", "parameters"]


@dataclass(frozen=True)
class Site:
    """One place an adapter can sit.

    Attributes:
        path: the module whose output (or, with side "in", whose input) the adapter changes.
        role: what the place is for; "attn" and "mlp" are whole sublayers, "module" any module, the others projections.
        layer: index of the decoder layer, from 0; -1 where it does not matter.
        d_in: width of what the adapter reads.
        d_out: width of what the adapter changes.
        side: "out" changes the output of `path`, "in" its input, "parameters" what it computes with.
        reader: the first projection that reads the sublayer's input; equals `path` for a single projection.
    """

    path: str
    role: Role
    layer: int
    d_in: int
    d_out: int
    side: Side = "out"
    reader: str = ""

    @property
    def key(self) -> str:
        """A name that is unique within a model, used in saved adapters and records."""
        suffix = (f":{self.role}" if self.role in ("attn", "mlp") else "") + (":in" if self.side == "in" else "")
        return self.path + suffix
