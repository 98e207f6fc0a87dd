"""The wording of LLM-Adapters' questions: published columns into instruction, output, answer and options.

Source: the public data files of LLM-Adapters, and for AQuA the conversion of arXiv:2205.11916 that they go back to.
Every function here takes a row with the columns of the table in `llm_adapters_lab.tasks.official` and the words that
name it in an error, and raises BadRow where a column is missing or holds what it may not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_adapters_lab.errors import BadRow
from llm_adapters_lab.tasks import readers
from llm_adapters_lab.tasks.answers import LETTERS, TRUTH
from llm_adapters_lab.tasks.extraction import shortest
from llm_adapters_lab.tasks.options import Options, offered


@dataclass(frozen=True)
class Parts:
    """One converted row.

    Attributes:
        instruction: the question with its options.
        output: what the model learns to answer.
        answer: the gold answer.
        short: the output without a rationale.
        options: (label, text) pairs.
    """

    instruction: str
    output: str
    answer: str
    short: str
    options: Options = ()


def chosen(question: str, word: str, options: Sequence[str], gold: int, *, gap: str = " ", end: str = "\n\n") -> Parts:
    """Return a question with numbered options.

    Args:
        question: with its lead-in.
        word: what an option is called, e.g. ``Answer``.
        options: their texts.
        gold: index of the right one, from 0.
        gap: between two options.
        end: between the last one and the answer format.
    """
    labels = [f"{word.lower()}{i + 1}" for i in range(len(options))]
    listed = gap.join(f"{word}{i + 1}: {text}" for i, text in enumerate(options))
    output = f"the correct answer is {labels[gold]}"
    return Parts(
        f"{question}\n\n{listed}{end}Answer format: {'/'.join(labels)}",
        output,
        labels[gold],
        output,
        tuple(zip(labels, (text.strip() for text in options), strict=True)),
    )


def _index(row: object, key: str, where: str, count: int, first: int = 0) -> int:
    """Return the index, from 0, that a column counts from `first`."""
    value = readers.field(row, key, where)
    allowed = [str(first + i) for i in range(count)]
    if isinstance(value, bool) or str(value) not in allowed:
        raise BadRow(f"{where}: field {key!r} is {value!r:.60}; give one of {', '.join(allowed)}.")
    return allowed.index(str(value))


def gsm8k(row: object, where: str) -> Parts:
    """Convert ``{question, answer}``; the answer ends in ``#### 7`` and holds ``<<3+4=7>>`` marks, which go."""
    rationale, mark, result = readers.text(row, "answer", where).rpartition("####")
    try:
        answer = shortest(float(result.replace(",", "")))
    except ValueError:
        answer = ""
    if not (mark and answer):
        raise BadRow(f"{where}: field 'answer' does not end in '####' and a number, but in {result[-40:]!r}.")
    said = f"The answer is {answer}."
    return Parts(
        readers.text(row, "question", where), f"{re.sub('<<[^<>]*>>', '', rationale).strip()}\n{said}", answer, said
    )


def aqua(row: object, where: str) -> Parts:
    """Convert ``{question, options: ["A)4", "B)5", ...], rationale, correct}``."""
    texts = readers.texts(row, "options", where)
    listed = f"({'('.join(texts)}".replace("(", " (").replace(")", ") ")
    instruction = f"{readers.text(row, 'question', where).strip()} Answer Choices:{listed}"
    return _lettered(row, instruction, "rationale", where)


def mathqa(row: object, where: str) -> Parts:
    """Convert ``{Problem, Rationale, options: "a ) 4 , b ) 5 , ...", correct}``; the letters become capitals."""
    options = re.sub(r"\b([a-e]) \)", lambda m: m[0].upper(), readers.text(row, "options", where))
    return _lettered(row, f"{readers.text(row, 'Problem', where)} The options: {options}", "Rationale", where)


def _lettered(row: object, instruction: str, rationale: str, where: str) -> Parts:
    answer = readers.one_of(LETTERS, readers.text(row, "correct", where).strip().upper(), "correct", where)
    said = f"The answer is {answer}."
    reasons = readers.text(row, rationale, where, empty=True).strip()
    return Parts(instruction, f"{reasons}\n{said}".lstrip(), answer, said, offered(instruction, LETTERS))


def boolq(row: object, where: str) -> Parts:
    """Convert ``{question, answer}``; the passage is not asked."""
    value = readers.field(row, "answer", where)
    answer = readers.one_of(TRUTH, str(value).lower(), "answer", where)
    lead = "Please answer the following question with true or false, question:"
    instruction = f"{lead} {readers.text(row, 'question', where)}?\n\nAnswer format: true/false"
    output = f"the correct answer is {answer}"
    return Parts(instruction, output, answer, output, offered(instruction, TRUTH))


def piqa(row: object, where: str) -> Parts:
    """Convert ``{goal, sol1, sol2, label}``."""
    question = f"Please choose the correct solution to the question: {readers.text(row, 'goal', where)}"
    options = [readers.text(row, key, where) for key in ("sol1", "sol2")]
    return chosen(question, "Solution", options, _index(row, "label", where, 2), gap="\n\n")


def siqa(row: object, where: str) -> Parts:
    """Convert ``{context, question, answerA, answerB, answerC, label}``."""
    asked = " ".join(readers.text(row, key, where) for key in ("context", "question"))
    options = [readers.text(row, f"answer{letter}", where) for letter in "ABC"]
    question = f"Please choose the correct answer to the question: {asked}"
    return chosen(question, "Answer", options, _index(row, "label", where, 3, first=1))


def hellaswag(row: object, where: str) -> Parts:
    """Convert ``{activity_label, ctx, endings, label}``."""
    scene = ": ".join(readers.text(row, key, where) for key in ("activity_label", "ctx"))
    options = readers.texts(row, "endings", where)
    question = f"Please choose the correct ending to complete the given sentence: {scene}"
    return chosen(question, "Ending", options, _index(row, "label", where, len(options)))


def winogrande(row: object, where: str) -> Parts:
    """Convert ``{sentence, option1, option2, answer}``; the answer format stands on the line of the options."""
    lead = "Please choose the correct answer to fill in the blank to complete the given sentence:"
    question = f"{lead} {readers.text(row, 'sentence', where)}"
    options = [readers.text(row, key, where) for key in ("option1", "option2")]
    return chosen(question, "Option", options, _index(row, "answer", where, 2, first=1), end=" ")


def arc(row: object, where: str, question: str = "question") -> Parts:
    """Convert ``{question, choices: {text, label}, answerKey}``; keys are letters or digits."""
    given = readers.field(row, "choices", where)
    texts, keys = readers.texts(given, "text", where), readers.texts(given, "label", where)
    key = readers.one_of(keys, readers.text(row, "answerKey", where), "answerKey", where)
    asked = f"Please choose the correct answer to the question: {readers.text(row, question, where)}"
    return chosen(asked, "Answer", texts, keys.index(key))


def obqa(row: object, where: str) -> Parts:
    """Convert ``{question_stem, choices: {text, label}, answerKey}``."""
    return arc(row, where, "question_stem")


CONVERTERS: dict[str, Callable[[object, str], Parts]] = {
    "gsm8k": gsm8k,
    "aqua": aqua,
    "mathqa": mathqa,
    "boolq": boolq,
    "piqa": piqa,
    "siqa": siqa,
    "hellaswag": hellaswag,
    "winogrande": winogrande,
    "arc-e": arc,
    "arc-c": arc,
    "obqa": obqa,
}
