"""A site: one place in a model where an adapter can sit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["q", "k", "v", "qkv", "kv", "o", "gate", "up", "gate_up", "down", "attn", "mlp", "module"]
Side = Literal["out", "in", "parameters"]


@dataclass(frozen=True)
class Site:
    """One place where an adapter can sit.

    Attributes:
        path: path of the host, the module at which the adapter sits.
        role: function of the host; "attn" and "mlp" are whole sublayers, "module" is any module, the others are
            projections.
        layer: index of the decoder layer, from 0; -1 if irrelevant.
        d_in: width of the adapter's input x.
        d_out: width of what the adapter changes, y.
        side: what the adapter changes: the output of the host, its input, or its parameters.
        reader: path of the projection whose input is x; equals `path` unless the site is a sublayer.
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
        """Unique name of the site within a model, used in saved adapters and records."""
        suffix = (f":{self.role}" if self.role in ("attn", "mlp") else "") + (":in" if self.side == "in" else "")
        return self.path + suffix
