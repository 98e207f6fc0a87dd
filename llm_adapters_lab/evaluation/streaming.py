"""One answer, token by token, as it comes: by the prompts, decoding and stop rules of scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from llm_adapters_lab.core.weights import device as device_of
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluation.decoding import Ended, advance, can_batch, context, read
from llm_adapters_lab.tasks import prompts

Pick = Callable[[torch.Tensor], int]


def picker(temperature: float = 0.0, seed: int = 0) -> Pick:
    """Return what chooses a token from logits (vocabulary,).

    Args:
        temperature: T of softmax(logits / T), from which a token is drawn; 0: the likeliest one.
        seed: of the draws.
    """
    if temperature <= 0:
        return lambda logits: int(logits.argmax())
    generator = torch.Generator().manual_seed(seed)

    def draw(logits: torch.Tensor) -> int:
        chances = (logits.float().cpu() / temperature).softmax(-1)
        return int(torch.multinomial(chances, 1, generator=generator))

    return draw


def check_room(model: Any, ids: list[int], limit: int) -> None:
    """Refuse a prompt that is empty, or that does not fit the model together with its answer.

    Raises:
        BadSpec: it is.
    """
    if not ids:
        raise BadSpec("The prompt is empty. Write something, or take an example.")
    if (fits := context(model)) is not None and len(ids) + limit > fits:
        raise BadSpec(
            f"The prompt has {len(ids)} tokens; with up to {limit} for the answer that is more than the {fits} that "
            "fit the model. Shorten it, or ask for fewer new tokens."
        )


def stream(model: Any, ids: list[int], limit: int, ended: Ended, pick: Pick) -> Iterator[int]:
    """Yield the tokens of the answer to one prompt, the one it ends with included.

    With `picker()` they are those of `generate.greedy`. The model runs inside `next` alone, so that answers with and
    without an adapter can be made by turns on one model, each `next` of the latter inside `injection.disabled()`.

    Args:
        model: in evaluation mode, with the adapters that are on at each step.
        ids: of the prompt.
        limit: most tokens of the answer, 1 or more.
        ended: says of the answer so far whether it is complete.
        pick: chooses each token.
    """
    answer: list[int] = []
    state = read(model, [ids], 0) if can_batch(model) else None
    while True:
        answer.append(pick(_anew(model, ids + answer) if state is None else state.logits[0]))
        yield answer[-1]
        if len(answer) >= limit or ended(answer):
            return
        if state is not None:
            advance(model, state, torch.tensor(answer[-1:], device=device_of(model)))


def said(tokenizer: Any, answer: list[int], template: str | None) -> str:
    """Return the text of an answer as scoring reads it, up to a repeated header; without a template all of it."""
    text: str = tokenizer.decode(answer, skip_special_tokens=True)
    return prompts.cut_at_stop(text, template).strip() if template else text


@torch.no_grad()
def _anew(model: Any, ids: list[int]) -> torch.Tensor:
    """Return the logits after a text, for models whose cache `generate` does not know: all of it, every time."""
    logits: torch.Tensor = model(input_ids=torch.tensor([ids], device=device_of(model)), use_cache=False).logits
    return logits[0, -1]
