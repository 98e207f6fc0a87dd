"""Answer the questions of a task: prompt, generate, extract the answer, compare it with the gold one.

========  ==============================  ==============  ===========  ======================================
Protocol  Prompt                          Decoding        Extraction   Ends
========  ==============================  ==============  ===========  ======================================
lab       of the task or the spec         greedy          lab          end token, limit, or a repeated header
paper     original, with its white space  4 beams         original     end token or limit
options   as lab                          none            none         nothing is generated: likeliest label
========  ==============================  ==============  ===========  ======================================
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from itertools import chain
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from llm_adapters_lab.core.weights import device as device_of
from llm_adapters_lab.errors import NotFinite, listed
from llm_adapters_lab.evaluation.decoding import (
    StopRule,
    can_batch,
    context_length,
    greedy,
    inputs_of,
    require_finite,
    shared_prefix,
)
from llm_adapters_lab.evaluation.likelihood import Question, choice_scores, longest_options, parted_labels, read_labels
from llm_adapters_lab.evaluation.scoring import RULES, judge, likeliest
from llm_adapters_lab.tasks import prompts
from llm_adapters_lab.tasks.base import Example, Rule, Task
from llm_adapters_lab.tasks.formats import Format, get_format
from llm_adapters_lab.tasks.tokens import pad

BEAMS = 4
BLOCK = 4
"""Number of batches of rows that are answered as a whole: within them, new rows take the place of answered ones."""

Prediction = dict[str, Any]
Share = Callable[[Callable[[Any], Iterable[Prediction]], Sequence[Any]], Iterable[Prediction]]
"""Applies a function to every part, in several processes, and yields all results in order."""


class _StopRows(StoppingCriteria):
    """A `StopRule` for `generate` of transformers."""

    def __init__(self, rule: StopRule, start: int) -> None:
        self.rule, self.start = rule, start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.tensor([self.rule(row) for row in input_ids[:, self.start :].tolist()], device=input_ids.device)


class _CheckFinite(LogitsProcessor):
    """`require_finite` for `generate` of transformers."""

    def __init__(self, beams: int) -> None:
        self.beams = beams

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        require_finite(scores.amax(-1), [i // self.beams for i in range(len(scores))])
        return scores


def scoring_template(task: Task, protocol: str, template: str | None, rows: Sequence[Example] = ()) -> str:
    """Return the template of a task's prompts; `template` is the one a spec asks for, if any."""
    return prompts.ORIGINAL if protocol == "paper" else prompts.template_of(template, task, rows)


def decoding_method(model: Any, protocol: str) -> str:
    """Return how answers are decoded, as scores name it."""
    if protocol == "options":
        return "likelihood"
    by = "" if can_batch(model) and protocol == "lab" else " by transformers"
    return ("greedy" if protocol == "lab" else f"{BEAMS} beams") + by


@torch.no_grad()
def answer(
    model: Any, pad_id: int, rows: Sequence[list[int]], limit: int, rule: StopRule, beams: int = 1, **options: Any
) -> list[list[int]]:
    """Answer prompts, padded on the left and masked; see `decoding.greedy`, which takes the `options`.

    Beams, and models whose cache `greedy` does not support, use transformers, in one batch. With beams, only the end
    token and the limit end an answer, as in the original code.
    """
    if beams == 1 and can_batch(model):
        return greedy(model, rows, pad_id, limit, rule, **options)
    return _generate(model, pad_id, rows, limit, rule, beams)


def _generate(
    model: Any, pad_id: int, rows: Sequence[list[int]], limit: int, rule: StopRule, beams: int
) -> list[list[int]]:
    ids = pad(rows, pad_id, "left").to(device_of(model))
    mask = pad([[1] * len(row) for row in rows], 0, "left").to(device_of(model))
    config = GenerationConfig(
        do_sample=False,
        repetition_penalty=1.0,
        max_new_tokens=limit,
        num_beams=beams,
        eos_token_id=rule.tokens,
        pad_token_id=pad_id,
    )
    stop = StoppingCriteriaList([_StopRows(rule, ids.shape[1])] if beams == 1 else [])
    with inputs_of(model, [row for row in range(len(rows)) for _ in range(beams)]):
        checks: dict[str, Any] = {"stopping_criteria": stop}
        checks["logits_processor"] = LogitsProcessorList([_CheckFinite(beams)])
        if "output_router_logits" in inspect.signature(model.forward).parameters:
            checks["output_router_logits"] = False  # as in `decoding`
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **checks)
    new: list[list[int]] = out[:, ids.shape[1] :].tolist()
    # What follows the token that ended a row is padding.
    lengths = [next((i + 1 for i, token in enumerate(row) if token in rule.tokens), len(row)) for row in new]
    return [row[:length] for row, length in zip(new, lengths, strict=True)]


def evaluate(
    model: Any,
    tokenizer: Any,
    task: Task,
    examples: Sequence[Example],
    *,
    protocol: str = "lab",
    template: str | Format | None = None,
    system: str | None = None,
    batch: int = 32,
    max_new_tokens: int | None = None,
    rule: Rule | None = None,
    likelihood: bool = True,
    exemplars: Sequence[Example] = (),
    done: Mapping[str, Prediction] | None = None,
    share: Share | None = None,
) -> Iterator[Prediction]:
    """Yield one prediction per row; prompts of similar length are answered together, the shortest first.

    Rows are answered in blocks of `BLOCK` batches, except by transformers. What all prompts begin with is read once, as
    is the rest of each, for its answer and the likelihoods of its labels. What the answers with all labels begin with
    is read in one pass, where the model answers so.

    Args:
        model: base or adapted model, in evaluation mode. Inputs given to it by name have a row per example.
        tokenizer: of the model.
        task: has template, extraction and comparison.
        examples: rows of its test split.
        protocol: lab, paper or options; see the table above.
        template: a name, a chat template or a format; default: the task's. The protocol paper has its own.
        system: system prompt; needs a chat template.
        batch: number of prompts in memory at a time.
        max_new_tokens: default: that of the task.
        rule: extraction; default: that of the protocol.
        likelihood: on choice sets also score every option.
        exemplars: solved rows in front of every prompt.
        done: predictions of an interrupted evaluation by id; those for the same prompt are yielded unchanged.
        share: lets several processes work on the blocks and gives all of them every prediction; see
            `training.distributed.ProcessGroup.share_work`. Default: this process does all.

    Yields:
        task, id, prompt, prompt_hash (SHA-256), text and tokens (None where nothing is generated), extracted, gold,
        correct; cut, where something is generated: whether the limit ended the answer; options where they are scored:
        log-likelihoods by label, see `choice_scores`; too_long where the row with its answer does not fit the model's
        context: it is not asked and counts as wrong.

    Raises:
        NotFinite: the logits are nan or infinite; the message names the rows.
    """
    if not isinstance(template, Format):
        template = get_format(tokenizer, scoring_template(task, protocol, template, examples), system)
    form = template
    limit, rule = max_new_tokens or task.max_new_tokens, rule or RULES[protocol]
    choose = bool(task.labels) and (likelihood or protocol == "options")
    fits, stop = context_length(model), StopRule(model, tokenizer, form)
    pad_id, beams = tokenizer.pad_token_id, BEAMS if protocol == "paper" else 1

    def answer_batch(part: Sequence[Question]) -> list[Prediction]:
        made = [_unanswered(task, question) for question in part]
        kept = [_matching(prediction, done or {}) for prediction in made]
        if not all(kept):
            with _naming_rows(task, part), inputs_of(model, [question.number for question in part]):
                ids, known = [question.ids for question in part], dict[int, list[float]]()
                if protocol != "options":
                    labels = parted_labels(tokenizer, task, part, form) if task.labels else []
                    read = partial(read_labels, model, pad_id, labels, known) if choose else None
                    starts = [start for start, _ in labels]
                    said = answer(
                        model, pad_id, ids, limit, stop, beams, at_once=batch, prefix=prefix, starts=starts, read=read
                    )
                if choose:
                    found = choice_scores(model, tokenizer, task, part, form, at_once=batch, prefix=prefix, known=known)
                    made = [p | {"options": options} for p, options in zip(made, found, strict=True)]
                if protocol == "options":
                    for prediction in made:
                        prediction["extracted"] = likeliest(prediction["options"]["label"])
                        prediction["correct"] = task.same(prediction["extracted"], prediction["gold"])
                else:
                    for prediction, tokens in zip(made, said, strict=True):
                        ended = tokens[-1] in stop.tokens or (beams == 1 and stop(tokens))
                        prediction |= {"text": form.answer_text(tokens), "tokens": len(tokens)}
                        prediction["cut"] = not ended
                    made = [judge(task, prediction, rule) for prediction in made]
        # A block is answered as a whole, so that each row has the same company as without the interruption.
        return [old or new for old, new in zip(kept, made, strict=True)]

    room = 0 if protocol == "options" else limit
    needed = ask(tokenizer, task, examples, form, exemplars, room, choose and bool(fits))
    fitting = [question for question, need in needed if not fits or need <= fits]
    no_answer = {"too_long": True, "text": None if protocol == "options" else ""}
    yield from (_unanswered(task, question) | no_answer for question, need in needed if fits and need > fits)
    prefix, size = None, batch
    if can_batch(model) and beams == 1:
        size = BLOCK * batch
        with inputs_of(model, [question.number for question in fitting]):
            prefix = shared_prefix(model, [question.ids for question in fitting])
    parts = [fitting[start : start + size] for start in range(0, len(fitting), size)]
    yield from share(answer_batch, parts) if share else chain.from_iterable(map(answer_batch, parts))


def ask(
    tokenizer: Any,
    task: Task,
    rows: Sequence[Example],
    template: str | Format,
    shots: Sequence[Example],
    new: int,
    options: bool,
) -> list[tuple[Question, int]]:
    """Return the questions, the shortest first, each with the number of tokens that it needs.

    With `new` more tokens, or with its longest option, if `options` count and that is longer.
    """
    form = get_format(tokenizer, template)
    written = zip(rows, form.prompts(rows, shots), range(len(rows)), strict=True)
    questions = [Question(row, ids, text, number) for row, (text, ids), number in written]
    questions.sort(key=lambda question: (len(question.ids), question.example.id))
    needs = [len(question.ids) + new for question in questions]
    if options:
        needs = list(map(max, needs, longest_options(tokenizer, task, questions, form)))
    return list(zip(questions, needs, strict=True))


@contextmanager
def _naming_rows(task: Task, part: Sequence[Question]) -> Iterator[None]:
    try:
        yield
    except NotFinite as error:
        ids = [part[row].example.id for row in dict.fromkeys(error.rows)]
        raise NotFinite(f"{task.name} cannot be scored, rows {listed(ids, 5, ', ')}. {error}", error.rows) from None


def _unanswered(task: Task, question: Question) -> Prediction:
    return {
        "task": task.name,
        "id": question.example.id,
        "prompt": question.prompt,
        "prompt_hash": sha256(question.prompt.encode()).hexdigest(),
        "text": None,
        "tokens": 0,
        "extracted": None,
        "gold": question.example.answer,
        "correct": False,
    }


def _matching(prediction: Prediction, done: Mapping[str, Prediction]) -> Prediction | None:
    """Return an earlier prediction for the same prompt and gold answer."""
    old = done.get(prediction["id"])
    same = old and all(old.get(key) == prediction[key] for key in ("prompt_hash", "gold"))
    return old if same else None
