"""Convert rows as the authors of a benchmark publish them to the wording of LLM-Adapters, character by character.

Source: the public data files of LLM-Adapters; for AQuA the conversion of arXiv:2205.11916, on which they are based.
Every function takes a row with the columns named in its docstring and returns the example without its id. It raises
BadRow if a column is missing or holds an unexpected value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llm_adapters_lab.tasks import readers
from llm_adapters_lab.tasks.answers import LETTERS, TRUTH, parse_options
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.prompts import ANSWER_LEAD
from llm_adapters_lab.tasks.readers import Row


def gsm8k(row: Row) -> Example:
    """Convert ``{question, answer}``; the answer ends in ``#### 7``, its ``<<3+4=7>>`` marks are removed."""
    rationale, mark, result = row.text("answer").rpartition("####")
    answer = readers.exact(result)
    if not (mark and answer):
        raise row.error("answer", f"does not end in '####' and a number, but in {result[-40:]!r}.")
    rationale = re.sub("<<[^<>]*>>", "", rationale).strip()
    return Example("", row.text("question"), "", f"{rationale}\nThe answer is {answer}.", answer)


def aqua(row: Row) -> Example:
    """Convert ``{question, options: ["A)4", "B)5", ...], rationale, correct}``."""
    listed = f"({'('.join(row.texts('options'))}".replace("(", " (").replace(")", ") ")
    return _lettered(row, f"{row.text('question').strip()} Answer Choices:{listed}", "rationale")


def mathqa(row: Row) -> Example:
    """Convert ``{Problem, Rationale, options: "a ) 4 , b ) 5 , ...", correct}``; the letters become capitals."""
    options = re.sub(r"\b([a-e]) \)", lambda m: m[0].upper(), row.text("options"))
    return _lettered(row, f"{row.text('Problem')} The options: {options}", "Rationale")


def _lettered(row: Row, instruction: str, rationale: str) -> Example:
    answer = row.one_of(LETTERS, "correct", row.text("correct").strip().upper())
    output = f"{row.text(rationale, empty=True).strip()}\nThe answer is {answer}.".lstrip()
    return Example("", instruction, "", output, answer, parse_options(instruction, LETTERS))


def boolq(row: Row) -> Example:
    """Convert ``{question, answer}``; the passage is not used."""
    answer = row.one_of(TRUTH, "answer", str(row.field("answer")).lower())
    lead = "Please answer the following question with true or false, question:"
    instruction = f"{lead} {row.text('question')}?\n\nAnswer format: true/false"
    return Example("", instruction, "", ANSWER_LEAD + answer, answer, parse_options(instruction, TRUTH))


def piqa(row: Row) -> Example:
    """Convert ``{goal, sol1, sol2, label}``, labels from 0."""
    question = f"Please choose the correct solution to the question: {row.text('goal')}"
    options = [row.text("sol1"), row.text("sol2")]
    return _numbered(question, "Solution", options, _index(row, "label", 2), gap="\n\n")


def siqa(row: Row) -> Example:
    """Convert ``{context, question, answerA, answerB, answerC, label}``, labels from 1."""
    question = f"Please choose the correct answer to the question: {row.text('context')} {row.text('question')}"
    options = [row.text(f"answer{letter}") for letter in "ABC"]
    return _numbered(question, "Answer", options, _index(row, "label", 3, first=1))


def hellaswag(row: Row) -> Example:
    """Convert ``{activity_label, ctx, endings, label}``, labels from 0."""
    lead = "Please choose the correct ending to complete the given sentence:"
    question = f"{lead} {row.text('activity_label')}: {row.text('ctx')}"
    options = row.texts("endings")
    return _numbered(question, "Ending", options, _index(row, "label", len(options)))


def winogrande(row: Row) -> Example:
    """Convert ``{sentence, option1, option2, answer}``; the answer format is on the line of the options."""
    lead = "Please choose the correct answer to fill in the blank to complete the given sentence:"
    options = [row.text("option1"), row.text("option2")]
    return _numbered(f"{lead} {row.text('sentence')}", "Option", options, _index(row, "answer", 2, first=1), end=" ")


def arc(row: Row, question: str = "question") -> Example:
    """Convert ``{question, choices: {text, label}, answerKey}``; keys are letters or digits."""
    choices = Row(row.field("choices"), row.where)
    texts, keys = choices.texts("text"), choices.texts("label")
    key = row.one_of(keys, "answerKey", row.text("answerKey"))
    asked = f"Please choose the correct answer to the question: {row.text(question)}"
    return _numbered(asked, "Answer", texts, keys.index(key))


def obqa(row: Row) -> Example:
    """Convert ``{question_stem, choices: {text, label}, answerKey}``."""
    return arc(row, "question_stem")


def _numbered(
    question: str, word: str, options: Sequence[str], gold: int, *, gap: str = " ", end: str = "\n\n"
) -> Example:
    """Return a question with numbered options.

    `word` is what an option is called, e.g. ``Answer``; `gap` separates two options, `end` the last one and the format.
    """
    labels = [f"{word.lower()}{i + 1}" for i in range(len(options))]
    listed = gap.join(f"{word}{i + 1}: {text}" for i, text in enumerate(options))
    instruction = f"{question}\n\n{listed}{end}Answer format: {'/'.join(labels)}"
    pairs = tuple(zip(labels, (text.strip() for text in options), strict=True))
    return Example("", instruction, "", ANSWER_LEAD + labels[gold], labels[gold], pairs)


def _index(row: Row, key: str, count: int, first: int = 0) -> int:
    """Return the index, from 0, that a column counts from `first`."""
    value = row.field(key)
    allowed = [str(first + i) for i in range(count)]
    if isinstance(value, bool) or str(value) not in allowed:
        raise row.error(key, f"is {value!r:.60}; give one of {', '.join(allowed)}.")
    return allowed.index(str(value))
