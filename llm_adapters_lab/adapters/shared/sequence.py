"""Base class of adapters that mix tokens: each output may depend on earlier tokens of its row."""

from __future__ import annotations

import torch

from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.errors import CannotInject


class SequenceAdapter(Adapter):
    """An adapter that looks at earlier tokens."""

    looks_back = True
    sliceable = False

    def with_past(self, x: torch.Tensor, k: int) -> torch.Tensor:
        """Return x with zeros for padding, and in front of it the k columns that stood there before: zeros at first.

        Args:
            x: (rows, n, width), or (rows n, width) from a model that runs its MLP so.
            k: columns to look back, 1 or more.

        Returns:
            (rows, k + n, width).

        Raises:
            CannotInject: the order of the tokens cannot be told, or mask and tokens do not agree.
        """
        call = self.context
        if x.ndim == 2 and call.rows:
            x = x.view(call.rows, -1, x.shape[-1])
        if x.ndim != 3:
            raise CannotInject(
                f"Here the model lays all rows into one, {tuple(x.shape)}, and under gradient checkpointing an adapter "
                "that looks at earlier tokens cannot tell them apart. Turn train.gradient_checkpointing off."
            )
        if call.mask is not None:
            if call.mask.shape[1] < x.shape[1]:
                raise CannotInject(
                    f"The mask has {call.mask.shape[1]} columns where {x.shape[1]} tokens are run: an adapter that was "
                    "injected later puts tokens in front. Inject that one first."
                )
            x = x * call.mask[:, -x.shape[1] :, None].to(x.device, x.dtype)
        past = None if call.cache is None else call.cache.memory.get(id(self))
        wide = torch.cat([x.new_zeros(len(x), k, x.shape[2]) if past is None else past, x], dim=1)
        if call.cache is not None:
            call.cache.memory[id(self)] = wide[:, -k:].detach()
        return wide
