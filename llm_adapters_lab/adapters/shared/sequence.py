"""Base class of adapters that mix information across tokens."""

from __future__ import annotations

import torch

from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.errors import CannotInject


class SequenceAdapter(Adapter):
    """An adapter whose outputs depend on earlier tokens of their row."""

    looks_back = True
    sliceable = False

    def with_past(self, x: torch.Tensor, k: int) -> torch.Tensor:
        """Return x with padding set to zero, preceded by the k previous columns, which are zeros at the beginning.

        Args:
            x: (rows, n, width), or (rows n, width) in models that flatten the input of their MLP.
            k: number of previous columns, at least 1.

        Returns:
            (rows, k + n, width).

        Raises:
            CannotInject: the rows cannot be separated, or the mask has fewer columns than x.
        """
        call = self.context
        if x.ndim == 2 and call.rows:
            x = x.view(call.rows, -1, x.shape[-1])
        if x.ndim != 3:
            raise CannotInject(
                f"Outside a call of the model, an adapter that looks at earlier tokens needs (rows, tokens, width), "
                f"not {tuple(x.shape)}."
            )
        if call.mask is not None:
            if call.mask.shape[1] < x.shape[1]:
                raise CannotInject(
                    f"The mask has {call.mask.shape[1]} columns, but the model runs {x.shape[1]} tokens: an adapter "
                    "injected later prepends tokens. Inject that one first."
                )
            x = x * call.mask[:, -x.shape[1] :, None].to(x.device, x.dtype)
        past = None if call.cache is None else call.cache.memory.get(id(self))
        wide = torch.cat([x.new_zeros(len(x), k, x.shape[2]) if past is None else past, x], dim=1)
        if call.cache is not None:
            call.cache.memory[id(self)] = wide[:, -k:].detach()
        return wide
