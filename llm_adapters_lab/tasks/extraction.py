r"""Extract a short answer from generated text.

Every function takes a rule. ``"original"`` is the rule of the LLM-Adapters evaluation scripts, faults included, for
comparison with published numbers. ``"lab"`` fixes those faults:

========  ================================================  =====================================================
Answer    original                                          lab
========  ================================================  =====================================================
number    commas removed, last match of ``-?\d+\.?\d*``     the number right after the last "the answer is",
                                                            "answer:", "####" or "\boxed{", else the last number;
                                                            understands 1,200, $1 200, 40%, 3/4, 2 1/2, and that
                                                            the 3 of 5-3 is not negative
letter    first capital A to E, even inside a word          after "answer is" / "answer:", else after "option",
                                                            else in parentheses, else alone at the end or start
label     first match of a label, case-sensitive            after "answer is", else the first whole label; lists
                                                            such as answer1/answer2 are ignored
========  ================================================  =====================================================

No function raises, whatever the text. The text is expected to be truncated at a repeated header
(`llm_adapters_lab.tasks.prompts.cut_at_stop`).
"""

from __future__ import annotations

import re
from functools import cache

from llm_adapters_lab.tasks.base import Rule

TOLERANCE = 0.001
"""Largest difference between two numbers that count as the same answer."""

_ORIGINAL_NUMBER = re.compile(r"-?\d+\.?\d*")
_ORIGINAL_LETTER = re.compile(r"A|B|C|D|E")

_GAP = r"[\s:=*_$({\[\\\"'`]"
_DASHES = str.maketrans("\N{MINUS SIGN}\N{EN DASH}", "--")
_LATEX_FRACTION = re.compile(r"(?<!\d)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_NUMBER = re.compile(
    r"""(?<![\d^])                                # not inside a number, not an exponent
        (?P<sign>(?<![\w)\]}%.])-)?[$\u20ac\u00a3]?
        (?:(?P<whole>\d{1,9})[ ](?=\d+/\d))?      # 2 1/2
        (?P<top>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?
            |\d{1,3}(?:[\u00a0\u2009\u202f]\d{3})+(?!\d)(?:\.\d+)?    # grouped by non-breaking spaces
            |(?<=[$\u20ac\u00a3])\d{1,3}(?:[ ]\d{3})+(?!\d)(?:\.\d+)?  # $118 000, but not "12 500 g bags"
            |\d+(?:\.\d+)?|(?<![\w.])\.\d+)
        (?:/(?P<bottom>0*[1-9]\d{0,8})(?!\.?\d|/))?""",
    re.VERBOSE | re.ASCII,
)
_NUMBER_MARK = re.compile(
    rf"(?:\banswer[*_]*(?:\s+is\b|\s*[:=])|\#\#\#\#|\\boxed){_GAP}*"
    r"(?:(?:about|approximately|roughly|only|equal to)\s+)?",
    re.IGNORECASE,
)
_SUM = re.compile(r"(?:[-+*/x\u00d7\u00f7().,\d $%^]*=)+\s*(?=[-$.\d])")

# "A" before a lower-case word is the article, unless the word shows otherwise ("A is right", "A because").
_CAPITAL = r"(?:[B-E]|A(?!\s+(?!(?:is|because|since)\b)[a-z]))(?![\w'\u2019/-])"
_LETTER_RULES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?i:\banswer(?:\s+(?:choice|option))?(?:\s+is\b)?|\\boxed)(?:{_GAP}|\\text|(?i:\boption\b|\bchoice\b))+"
        rf"({_CAPITAL}|(?<=\()[a-e](?=\)))",
        rf"(?i:\b(?:option|choice)\b(?:\s+is\b)?){_GAP}+({_CAPITAL})",
        r"\(([A-E])\)",
        r"(?:\A|(?<=[\s(*$:]))([A-E])(?=[\s.)*$]*\Z)",
        r"\A\W*([A-E])(?=[).])",
    )
)


def shortest(value: float) -> str:
    """Return `value` in its shortest form: ``12`` for 12.0, ``0.5`` for 0.5."""
    return str(int(value)) if value.is_integer() else repr(value)


def number(text: str, rule: Rule = "lab") -> str | None:
    """Return the number in `text` as a string that ``float`` accepts, fractions evaluated; None if there is none."""
    if rule == "original":
        matches = _ORIGINAL_NUMBER.findall(text.replace(",", ""))
        return matches[-1] if matches else None
    text = _LATEX_FRACTION.sub(r"\1/\2", text.translate(_DASHES))
    marked = (_NUMBER.match(text, _after_sum(text, mark.end())) for mark in _NUMBER_MARK.finditer(text))
    found = [m for m in marked if m] or list(_NUMBER.finditer(text))
    return shortest(_value(found[-1])) if found else None


def _after_sum(text: str, start: int) -> int:
    """Return where the result of a calculation such as ``3 + 4 = 7`` starts, or `start` if there is no calculation."""
    total = _SUM.match(text, start)
    return total.end() if total else start


def _value(match: re.Match[str]) -> float:
    value = float(re.sub(r"[,\s]", "", match["top"]))
    if match["bottom"]:
        value = value / float(match["bottom"]) + float(match["whole"] or 0)
    return -value if match["sign"] else value


def letter(text: str, rule: Rule = "lab") -> str | None:
    """Return the choice letter in `text`, one capital A to E, or None if there is none."""
    if rule == "original":
        first = _ORIGINAL_LETTER.search(text)
        return first[0] if first else None
    for pattern in _LETTER_RULES:
        matches: list[str] = pattern.findall(text)
        if matches:
            return matches[-1].upper()
    return None


def label(text: str, rule: Rule = "lab", *, labels: tuple[str, ...]) -> str | None:
    """Return the label in `text`, spelt as in `labels` (at least one), or None if there is none.

    The lab rule prefers the first label stated as the answer, not the last: the model is trained to start with the
    answer, and what follows is run-on text.
    """
    if rule == "original":
        first = re.search("|".join(map(re.escape, labels)), text)
        return first[0] if first else None
    listed, marked, alone = _label_patterns(labels)
    text = listed.sub(" ", text)
    found = marked.search(text) or alone.search(text)
    return next((name for name in labels if name.lower() == found[1].lower()), None) if found else None


@cache
def _label_patterns(labels: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Return the patterns of a list of labels, of a label stated as the answer, and of any label."""
    # A word may directly follow a digit ("answer1the") where a model missed its end token.
    # Longest first, so that "yes and no" is not read as "yes"; text in other scripts may have no spaces.
    longest = sorted(labels, key=len, reverse=True)
    ends = (re.escape(n) + (r"(?!\d)" if n[-1].isdigit() else r"(?!\w)" if n[-1].isascii() else "") for n in longest)
    starts = r"(?<!\w)" if all(name[0].isascii() for name in labels) else ""
    one = rf"{starts}(?<!not )(?:{'|'.join(ends)})"
    return (
        re.compile(rf"{one}(?:\s*,\s*{one}){{0,9}}(?:(?:\s*/\s*|,?\s+or\s+){one})+", re.IGNORECASE),
        re.compile(rf"\b(?:answer|option|solution|ending)\s*(?:is|:)\W*({one})", re.IGNORECASE),
        re.compile(rf"({one})", re.IGNORECASE),
    )


def same_number(a: str, b: str) -> bool:
    """Return whether two numbers, given as text, differ by at most `TOLERANCE`, as the original scripts do."""
    return abs(float(a) - float(b)) <= TOLERANCE


def same_text(a: str, b: str) -> bool:
    """Return whether two answers are the same string."""
    return a == b
