"""The one place where a question becomes a prompt, for training and for scoring alike.

The original code builds the two prompts in two files that differ in white space; here both come from `prompt`.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_adapters_lab.errors import BadSpec, choices
from llm_adapters_lab.tasks import Example


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


def cut_at_stop(text: str, template: str) -> str:
    """Return `text` up to the first repeated header."""
    ends = [at for stop in get_template(template).stop if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
