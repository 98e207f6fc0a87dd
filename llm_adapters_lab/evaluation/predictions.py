"""Score a model on a task: ask, answer, read the answer, judge.

========  ==============================  ==============  ===========  ======================================
Protocol  Prompt                          Decoding        Extraction   Ends
========  ==============================  ==============  ===========  ======================================
lab       that of the task or the spec    greedy          lab          end token, limit, or a repeated header
paper     original, of its white space    4 beams         original     end token or limit
options   as lab                          none            none         nothing is generated: likeliest label
========  ==============================  ==============  ===========  ======================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import chain
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from llm_adapters_lab.core.weights import device as device_of
from llm_adapters_lab.evaluation.decoding import Ended, can_batch, context, greedy
from llm_adapters_lab.evaluation.likelihood import Choice, choice_scores
from llm_adapters_lab.evaluation.scoring import RULES, judge, likeliest
from llm_adapters_lab.tasks import prompts
from llm_adapters_lab.tasks.base import Example, Rule, Task
from llm_adapters_lab.tasks.tokens import pad, prompt_ids

BEAMS = 4


Share = Callable[[Callable[[Any], Iterable[dict[str, Any]]], Sequence[Any]], Iterable[dict[str, Any]]]
"""Does a piece of work for every part, by several processes, and yields all results in order."""


class _EndedRows(StoppingCriteria):
    """The same for `generate` of transformers."""

    def __init__(self, ended: Ended, start: int) -> None:
        self.ended, self.start = ended, start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.tensor([self.ended(row) for row in input_ids[:, self.start :].tolist()], device=input_ids.device)


@dataclass(frozen=True)
class _Asked:
    """One row on its way: the text of its prompt and its tokens."""

    example: Example
    text: str
    ids: list[int]


def decoder(model: Any, protocol: str) -> str:
    """Return what answers are made with, as a score names it."""
    if protocol == "options":
        return "likelihood"
    by = "" if can_batch(model) and protocol == "lab" else " by transformers"
    return ("greedy" if protocol == "lab" else f"{BEAMS} beams") + by


@torch.no_grad()
def answer(
    model: Any, tokenizer: Any, rows: Sequence[list[int]], max_new_tokens: int, template: str, beams: int = 1
) -> tuple[list[str], list[int]]:
    """Answer prompts in one batch, padded on the left and masked.

    Greedy answers come from `generate.greedy`; beams, and models whose cache that does not know, from transformers.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: of that model.
        rows: token ids of the prompts.
        max_new_tokens: longest answer in tokens.
        template: prompt form, for its stop strings.
        beams: 1 is greedy; with more nothing but the end token and the limit ends an answer, as in the original.

    Returns:
        The text of each answer, up to a repeated header, and its length in tokens.
    """
    ended = Ended(model, tokenizer, template)
    if beams == 1 and can_batch(model):
        new = greedy(model, rows, tokenizer.pad_token_id, max_new_tokens, ended)
    else:
        new = _by_transformers(model, tokenizer.pad_token_id, rows, max_new_tokens, ended, beams)
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    return [prompts.cut_at_stop(text, template).strip() for text in texts], [len(tokens) for tokens in new]


def _by_transformers(
    model: Any, pad_id: int, rows: Sequence[list[int]], limit: int, ended: Ended, beams: int
) -> list[list[int]]:
    ids = pad(rows, pad_id, "left").to(device_of(model))
    mask = pad([[1] * len(row) for row in rows], 0, "left").to(device_of(model))
    options = {"max_new_tokens": limit, "num_beams": beams, "eos_token_id": ended.tokens, "pad_token_id": pad_id}
    config = GenerationConfig(do_sample=False, repetition_penalty=1.0, **options)
    stop = StoppingCriteriaList([_EndedRows(ended, ids.shape[1])] if beams == 1 else [])
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, stopping_criteria=stop)
    new: list[list[int]] = out[:, ids.shape[1] :].tolist()
    # What follows the token that ended a row is padding.
    lengths = [next((i + 1 for i, token in enumerate(row) if token in ended.tokens), len(row)) for row in new]
    return [row[:length] for row, length in zip(new, lengths, strict=True)]


def evaluate(
    model: Any,
    tokenizer: Any,
    task: Task,
    examples: Sequence[Example],
    *,
    protocol: str = "lab",
    template: str | None = None,
    batch: int = 32,
    max_new_tokens: int | None = None,
    rule: Rule | None = None,
    likelihood: bool = True,
    exemplars: Sequence[Example] = (),
    done: Mapping[str, dict[str, Any]] | None = None,
    share: Share | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield one prediction per row; prompts of like length are answered together, the shortest first.

    Args:
        model: base or adapted model, in evaluation mode.
        tokenizer: of the model.
        task: gives template, extraction and judgement.
        examples: rows of its test split.
        protocol: lab, paper or options; see the table above.
        template: default: that of the task; the protocol paper has its own.
        batch: prompts at a time.
        max_new_tokens: default: that of the task.
        rule: extraction; default: that of the protocol.
        likelihood: on choice sets also score every option.
        exemplars: solved rows in front of every prompt.
        done: predictions by id that an interrupted scoring has left; those to the same prompt are yielded as they are.
        share: lets several processes each do some of the batches and gives all of them every prediction; see
            `training.distributed.ProcessGroup.shared`. Default: this process does all.

    Yields:
        task, id, prompt, prompt_hash (SHA-256), text and tokens (None where nothing is generated), extracted, gold,
        correct; options where they are scored: log-likelihoods in nats by label, of "label" and "text"; too_long
        where the row with its answer does not fit the model's context: it is not asked, and wrong.
    """
    template = prompts.ORIGINAL if protocol == "paper" else template or task.template
    limit, rule = max_new_tokens or task.max_new_tokens, rule or RULES[protocol]
    choose = bool(task.labels) and (likelihood or protocol == "options")
    front = prompts.demonstrations(exemplars, template)
    asked = [_asked(tokenizer, front, example, template) for example in examples]
    asked.sort(key=lambda row: (len(row.ids), row.example.id))
    room = _room(model, tokenizer, limit, _targets(task, asked, template) if protocol == "options" else ())
    no_answer = {"too_long": True, "text": None if protocol == "options" else ""}
    yield from (_prediction(task, row) | no_answer for row in asked if len(row.ids) > room)
    parts = list(_parts([row for row in asked if len(row.ids) <= room], batch))
    work = partial(_answered, model, tokenizer, task, _How(protocol, template, limit, rule, choose), done or {})
    yield from share(work, parts) if share else chain.from_iterable(map(work, parts))


class _How(NamedTuple):
    """What a batch is answered by, see `evaluate`."""

    protocol: str
    template: str
    limit: int
    rule: Rule
    choose: bool


def _answered(
    model: Any, tokenizer: Any, task: Task, how: _How, done: Mapping[str, dict[str, Any]], part: Sequence[_Asked]
) -> list[dict[str, Any]]:
    made = [_prediction(task, row) for row in part]
    kept = [_kept(p, done) for p in made]
    if not all(kept):
        if how.choose:
            items = [Choice(row.example, row.ids) for row in part]
            scored = choice_scores(model, tokenizer, task, items, how.template)
            made = [{**p, "options": options} for p, options in zip(made, scored, strict=True)]
        if how.protocol == "options":
            made = [_chosen(task, p) for p in made]
        else:
            beams = BEAMS if how.protocol == "paper" else 1
            said = answer(model, tokenizer, [row.ids for row in part], how.limit, how.template, beams)
            made = [judge(task, {**p, "text": t, "tokens": n}, how.rule) for p, t, n in zip(made, *said, strict=True)]
    # A batch is answered whole, so that a row is in the same company as without an interruption.
    return [old or new for old, new in zip(kept, made, strict=True)]


def _targets(task: Task, asked: Sequence[_Asked], template: str) -> list[str]:
    return [prompts.label_target(label, row.example, template) for row in asked[:1] for label in task.labels]


def _room(model: Any, tokenizer: Any, limit: int, targets: Sequence[str]) -> float:
    """Return how many tokens a prompt may have: answers of `limit` tokens, or else the longest target, must fit too."""
    if (fits := context(model)) is None:
        return float("inf")
    longest = [len(tokenizer(target, add_special_tokens=False)["input_ids"]) for target in targets]
    return fits - (max(longest) if longest else limit)


def _parts(rows: list[_Asked], size: int) -> Iterator[list[_Asked]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _kept(prediction: dict[str, Any], done: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    old = done.get(prediction["id"])
    same = old and all(old.get(key) == prediction[key] for key in ("prompt_hash", "gold"))
    return old if same else None


def _asked(tokenizer: Any, front: str, example: Example, template: str) -> _Asked:
    text = front + prompts.prompt(example, template)
    return _Asked(example, text, prompt_ids(tokenizer, text))


def _prediction(task: Task, row: _Asked) -> dict[str, Any]:
    return {
        "task": task.name,
        "id": row.example.id,
        "prompt": row.text,
        "prompt_hash": sha256(row.text.encode()).hexdigest(),
        "text": None,
        "tokens": 0,
        "extracted": None,
        "gold": row.example.answer,
        "correct": False,
    }


def _chosen(task: Task, prediction: dict[str, Any]) -> dict[str, Any]:
    best = likeliest(prediction["options"]["label"])
    return {**prediction, "extracted": best, "correct": task.same(best, prediction["gold"])}
