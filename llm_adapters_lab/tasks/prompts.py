"""Turn questions into prompts: `prompt` makes those for training and those for scoring.

The original code builds them in two files that differ in white space. The templates `original-training` and `original`
are those of its training and of its scoring scripts, indentation included, to reproduce published numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from textwrap import shorten

from llm_adapters_lab.errors import BadSpec, choices
from llm_adapters_lab.tasks.base import Example, Task


@dataclass(frozen=True)
class Template:
    """A prompt template.

    Attributes:
        plain: text for a row without input; contains ``{instruction}``.
        with_input: text for a row with input; contains ``{instruction}`` and ``{input}``.
        stop: generation ends at any of these strings, a header that the model repeats.
        glue: separator of prompt and answer, part of the answer's first token.
    """

    plain: str
    with_input: str
    stop: tuple[str, ...]
    glue: str = ""


ORIGINAL, ORIGINAL_TRAINING = "original", "original-training"
ANSWER_LEAD = "the correct answer is "
"""What precedes the label in every answer of the choice sets of LLM-Adapters."""

_LEAD_IN = re.compile(r"\APlease [^:]*:\s*")


def _alpaca(stop: tuple[str, ...], ends: Sequence[str] = ("", ""), newline: str = "\n", blank: str = "\n") -> Template:
    """Return the Alpaca template; the original indents it, and has spaces after its first line and on blank lines."""
    task = "Below is an instruction that describes a task"
    request = "Write a response that appropriately completes the request."
    asked, given, reply = (
        f"{empty}{newline}### {head}:{newline}{text}"
        for empty, head, text in (
            ("\n", "Instruction", "{instruction}"),
            (blank, "Input", "{input}"),
            (blank, "Response", ""),
        )
    )
    context = ", paired with an input that provides further context"
    return Template(
        plain=f"{task}. {request}{ends[0]}{asked}{reply}",
        with_input=f"{task}{context}. {request}{ends[1]}{asked}{given}{reply}",
        stop=stop,
    )


_INDENTED = "\n" + 16 * " "


TEMPLATES = {
    "alpaca": _alpaca(stop=("### Instruction", "### Response", "### Input", "Below is an instruction")),
    "plain": Template(plain="{instruction}", with_input="{instruction}\n\n{input}", stop=()),
    "qa": Template(
        plain="question : {instruction} answer :",
        with_input="{input} question : {instruction} answer :",
        stop=("question :", "answer :"),
        glue=" ",
    ),
    ORIGINAL: _alpaca(("### Response:",), (" ", ""), _INDENTED),
    ORIGINAL_TRAINING: _alpaca(("### Response:",), ("  ", " "), _INDENTED, _INDENTED),
}


CHAT = "chat"
"""The name of a base's own chat template."""
TEXT = "text"
"""The template of documents, which have no question."""


def is_chat(template: str) -> bool:
    """Return whether a template is a chat template: the base's own, or one given as text."""
    return template == CHAT or "{{" in template or "{%" in template


def short_name(given: str) -> str:
    """Return the name of a template, for one given as text "chat:" and the first digits of its SHA-256.

    That of a long system prompt are its first words and such digits.
    """
    text, digits = is_chat(given) and given != CHAT, sha256(given.encode()).hexdigest()[:8]
    short = shorten(given, 40, placeholder="…")
    return f"{CHAT}:{digits}" if text else given if given == short else f"{short} {digits}"


def template_of(given: str | None, task: Task, rows: Sequence[Example]) -> str:
    """Return the template of rows: the one that is given, else that of their task, else their own, else alpaca."""
    return given or task.template or (rows[0].template if rows else "") or "alpaca"


def read_template(given: str) -> str:
    """Return a template as a spec keeps it: the name of one, or the text of a chat template, also from a .jinja file.

    Raises:
        BadSpec: there is no such template or file.
    """
    if given.endswith((".jinja", ".jinja2")):
        try:
            given = Path(given).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError, RuntimeError) as error:
            raise BadSpec(f"The chat template {given} cannot be read: {error}.") from None
        if not is_chat(given):
            raise BadSpec("The .jinja file holds no chat template: it has neither {{ nor {%.")
    if not is_chat(given):
        get_template(given)
    return given


def get_template(name: str) -> Template:
    """Return the plain template called `name`.

    Raises:
        BadSpec: there is no such template.
    """
    if name not in TEMPLATES:
        known = choices(name, [CHAT, *TEMPLATES])
        raise BadSpec(f"There is no prompt template {name!r}. {known} A chat template is given as a .jinja file.")
    return TEMPLATES[name]


def prompt(example: Example, template: str) -> str:
    """Return the text after which a model answers `example`."""
    form = get_template(template)
    # Not str.format, so that braces in a question have no effect.
    head, _, tail = (form.with_input if example.input else form.plain).partition("{instruction}")
    return head.replace("{input}", example.input) + example.instruction + tail.replace("{input}", example.input)


def target(example: Example, template: str) -> str:
    """Return the answer that a model is trained to give, without the end token."""
    return get_template(template).glue + example.output


def demonstrations(examples: Sequence[Example], template: str) -> str:
    """Return solved questions, to precede a prompt of the same template; "" for none."""
    return "".join(f"{prompt(example, template)}{target(example, template)}\n\n" for example in examples)


def label_target(label: str, example: Example, glue: str) -> str:
    """Return the text that answers `example` with `label`: in the wording of the gold answer, else the bare label."""
    lead = ANSWER_LEAD if example.output == ANSWER_LEAD + example.answer else ""
    return glue + lead + label


def cloze(example: Example) -> str:
    """Return the question without its options, to be followed by " " and the text of one of them.

    Source: the prompt of ARC in EleutherAI's lm-eval, ``Question: ...`` and ``Answer:``.
    """
    labels = [re.escape(label) for label, _ in example.options]
    # "Answer1:" or "(A)" introduces the first option.
    first = re.search(rf"(?i)\(?\b({'|'.join(labels)})[:)]", example.instruction) if labels else None
    question = example.instruction[: first.start() if first else None].strip()
    question = question.removesuffix("Answer Choices:").rstrip()
    passage = f"{example.input}\n" if example.input else ""
    return f"{passage}Question: {_LEAD_IN.sub('', question)}\nAnswer:"
