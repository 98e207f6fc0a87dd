"""The output head and what a model does after it, on chunks of labels, so that the logits of all are never held.

The forward pass of the model ends with its head on a token or two and leaves the inputs of the others. Each chunk of
them goes through the forward pass again without the decoder, so that soft-capping, multipliers and adapters at the head
act as ever. Where nothing is trained there, the gradient of each label's loss with respect to its input is computed at
once and scaled in the backward pass, without more work; otherwise the backward pass recomputes the chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

SCALE = 1024.0
"""Of gradients that wait for the backward pass, which would vanish in fp16; a power of two does not round."""


@contextmanager
def head_input(model: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Change the input of the output head of a model."""
    head: nn.Module = model.get_output_embeddings()
    with head.register_forward_pre_hook(lambda head, args: (change(args[0]), *args[1:])):
        yield


class ChunkedHead:
    """What a forward pass leaves for the head of a model; the labels are slices, and each chunk has a part of all."""

    def __init__(self, model: Any, decoder: nn.Module, copies: int) -> None:
        """Store model, the part of it below the head, and number of slices."""
        self.model, self.decoder, self.copies = model, decoder, copies
        self._output: Any = None  # the class of what the decoder returns
        self._hidden = torch.empty(0)

    @contextmanager
    def left(self, reads: torch.Tensor) -> Iterator[None]:
        """Keep the inputs of the head at the tokens numbered `reads` over all rows; one for each slice goes on."""

        def keep(hidden: torch.Tensor) -> torch.Tensor:
            self._hidden = hidden.flatten(0, 1).index_select(0, reads)
            return self._hidden[None, : self.copies]

        look = self.decoder.register_forward_hook(lambda decoder, args, out: setattr(self, "_output", type(out)))
        with look, head_input(self.model, keep):
            yield

    def losses(self, labels: torch.Tensor, size: int, loss: Callable[..., torch.Tensor]) -> torch.Tensor:
        """Return the loss of every label, (labels,), by `loss(logits, labels)` of at most `size` at a time."""
        parts = self._hidden.view(self.copies, -1, self._hidden.shape[-1]), labels.view(self.copies, -1)
        chunks = list(zip(*(torch.split(t, max(1, size // self.copies), 1) for t in parts), strict=True))
        run: Callable[..., torch.Tensor] = lambda losses, hidden: losses(hidden)  # noqa: E731
        if torch.is_grad_enabled():  # what is trained in the chunks shows in their first labels
            first, wanted = (t[:, 0].detach() for t in chunks[0])
            if self._losses(first, wanted, loss).requires_grad:
                run = partial(checkpoint, use_reentrant=False)
            elif self._hidden.requires_grad:
                run = _GradientAhead.apply
        found = [run(partial(self._losses, labels=y.flatten(), loss=loss), x.flatten(0, 1)) for x, y in chunks]
        return torch.cat([each.view(self.copies, -1) for each in found], 1).flatten()

    def _losses(self, hidden: torch.Tensor, labels: torch.Tensor, loss: Callable[..., torch.Tensor]) -> torch.Tensor:
        output = self._output(last_hidden_state=hidden[None].detach())
        before = self.decoder._compiled_call_impl
        self.decoder._compiled_call_impl = lambda *args, **kwargs: output  # in place of the decoder and its hooks
        try:
            with head_input(self.model, lambda _: hidden[None]):
                logits = self.model.forward(input_ids=labels[None], use_cache=False).logits
        finally:
            self.decoder._compiled_call_impl = before
        return loss(logits.flatten(0, 1).float(), labels)


class _GradientAhead(torch.autograd.Function):
    """Losses of tokens, each of which depends on its token alone, computed together with their gradients."""

    @staticmethod
    def forward(ctx: Any, losses: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            own = hidden.detach().requires_grad_()
            each = losses(own)
            (slopes,) = torch.autograd.grad(SCALE * each.sum(), own)
        ctx.save_for_backward(slopes)
        return each.detach()

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[None, torch.Tensor]:
        (slopes,) = ctx.saved_tensors
        return None, (slopes * (slope / SCALE)[:, None]).to(slopes.dtype)
