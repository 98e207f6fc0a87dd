"""The one place where a question becomes a prompt, for training and for scoring alike.

The original code builds the two prompts in two files that differ in white space; here both come from `prompt`. The
template `original` is that of its scoring scripts, indented as they have it: with it published numbers are repeated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llm_adapters_lab.errors import BadSpec, choices
from llm_adapters_lab.tasks.base import Example


@dataclass(frozen=True)
class Template:
    """A prompt form.

    Attributes:
        plain: frame for a row without input; holds ``{instruction}``.
        with_input: frame for a row with input; holds ``{instruction}`` and ``{input}``.
        stop: generation ends where one of these strings appears: a header that the model repeats.
        glue: what stands between prompt and answer, as part of the answer's first token.
    """

    plain: str
    with_input: str
    stop: tuple[str, ...]
    glue: str = ""


ORIGINAL = "original"
ANSWER_LEAD = "the correct answer is "
"""What stands before the label in every answer of the choice sets of LLM-Adapters."""

_INDENT = "\n" + 16 * " "
_LEAD_IN = re.compile(r"\APlease [^:]*:\s*")

TEMPLATES = {
    "alpaca": Template(
        plain=(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            "\n\n### Instruction:\n{instruction}\n\n### Response:\n"
        ),
        with_input=(
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request."
            "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        ),
        stop=("### Instruction", "### Response", "### Input", "Below is an instruction"),
    ),
    "qa": Template(
        plain="question : {instruction} answer :",
        with_input="{input} question : {instruction} answer :",
        stop=("question :", "answer :"),
        glue=" ",
    ),
    ORIGINAL: Template(
        plain=(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request. "
            f"\n{_INDENT}### Instruction:{_INDENT}{{instruction}}\n{_INDENT}### Response:{_INDENT}"
        ),
        with_input=(
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request."
            f"\n{_INDENT}### Instruction:{_INDENT}{{instruction}}\n{_INDENT}### Input:{_INDENT}{{input}}"
            f"\n{_INDENT}### Response:{_INDENT}"
        ),
        stop=("### Response:",),
    ),
}


def get_template(name: str) -> Template:
    """Return the template of that name.

    Raises:
        BadSpec: there is none.
    """
    if name not in TEMPLATES:
        raise BadSpec(f"There is no prompt template {name!r}. {choices(name, TEMPLATES)}")
    return TEMPLATES[name]


def prompt(example: Example, template: str) -> str:
    """Return the text a model sees before it answers `example`."""
    form = get_template(template)
    frame = form.with_input if example.input else form.plain
    # One replacement at a time, so that braces inside a question are left as they are.
    head, _, tail = frame.partition("{instruction}")
    return head.replace("{input}", example.input) + example.instruction + tail.replace("{input}", example.input)


def target(example: Example, template: str) -> str:
    """Return the text a model learns to answer with, without the end token."""
    return get_template(template).glue + example.output


def demonstrations(examples: Sequence[Example], template: str) -> str:
    """Return solved questions, as they stand in front of a prompt of the same template; "" for none."""
    return "".join(f"{prompt(example, template)}{target(example, template)}\n\n" for example in examples)


def label_target(label: str, example: Example, template: str) -> str:
    """Return the text that answers `example` with `label`.

    Where the row is answered with "the correct answer is" and its label, so is every other label; else by the bare one.
    """
    lead = ANSWER_LEAD if example.output == ANSWER_LEAD + example.answer else ""
    return get_template(template).glue + lead + label


def cloze(example: Example) -> str:
    """Return the question without its options, to be continued by " " and the text of one of them.

    Source: the form in which ARC is scored by EleutherAI's lm-eval: ``Question: ...`` and ``Answer:``.
    """
    labels = [re.escape(label) for label, _ in example.options]
    # "Answer1:" or "(A)" introduces the first option.
    first = re.search(rf"(?i)\(?\b({'|'.join(labels)})[:)]", example.instruction) if labels else None
    question = example.instruction[: first.start() if first else None].strip()
    question = question.removesuffix("Answer Choices:").rstrip()
    passage = f"{example.input}\n" if example.input else ""
    return f"{passage}Question: {_LEAD_IN.sub('', question)}\nAnswer:"


def cut_at_stop(text: str, template: str) -> str:
    """Return `text` up to the first repeated header."""
    ends = [at for stop in get_template(template).stop if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
