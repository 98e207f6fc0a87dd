r"""Extract a short answer from generated text.

Every function takes a rule. ``"original"`` is the rule of the LLM-Adapters evaluation scripts, faults included, for
comparison with published numbers. ``"lab"`` fixes those faults:

========  ================================================  =====================================================
Answer    original                                          lab
========  ================================================  =====================================================
number    commas removed, last match of ``-?\d+\.?\d*``     the number right after the last "the answer is",
                                                            "answer:", "####" or "\boxed{", else the last number;
                                                            understands 1,200, $1 200, 40%, 3/4, 2 1/2, 1½, 1e3,
                                                            10^4, 1'000, "is - 5", other digits, and that the
                                                            3 of 5-3 is not negative; "is 9 . 8" is 9.8, as
                                                            tokenizers of words write it
letter    first capital A to E, even inside a word          after "answer is" / "answer:" (b at the end of a line,
                                                            too), else in "B is right", else after "option",
                                                            else in parentheses, else alone at the end or start
label     first match of a label, case-sensitive            after "answer is", else the first whole label; lists
                                                            such as answer1/answer2 are ignored
========  ================================================  =====================================================

No function raises, whatever the text. The text is expected to be truncated at a repeated header
(`llm_adapters_lab.tasks.prompts.cut_at_stop`).
"""

from __future__ import annotations

import math
import re
import unicodedata
from decimal import Decimal
from functools import cache, partial

from llm_adapters_lab.tasks.base import Rule

DIGITS = 4000
"""Largest number of digits of a power that is evaluated; Python writes no integer of more than 4,300."""
TOLERANCE = 0.001
"""Largest difference between two numbers that count as the same answer."""

_ORIGINAL_NUMBER = re.compile(r"-?\d+\.?\d*")
_ORIGINAL_LETTER = re.compile(r"A|B|C|D|E")

_GAP = r"[\s:=*_$({\[\\\"'`]"
_SIGNS = str.maketrans("\u2212\u2013\u066b\u066c", "--.,")  # minus, en dash, Arabic decimal and thousands separator
_LATEX_FRACTION = re.compile(r"((?<=\d)[ ]?)?\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_VULGAR_FRACTION = re.compile("((?<=[0-9])[ ]?)?([\u00bc-\u00be\u2150-\u215e])")
_NUMBER = re.compile(
    r"""(?<![\d^])                                # not inside a number, not an exponent
        (?P<sign>(?<![\w)\]}%.])-)?[$\u20ac\u00a3]?
        (?:(?P<whole>\d{1,9})[ ](?=\d+/\d))?      # 2 1/2
        (?P<top>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?
            |\d{1,3}(?:[\u00a0\u2009\u202f'\u2019_]\d{3})+(?!\d)(?:\.\d+)?    # 1'000, or non-breaking spaces
            |(?<=[$\u20ac\u00a3])\d{1,3}(?:[ ]\d{3})+(?!\d)(?:\.\d+)?  # $118 000, but not "12 500 g bags"
            |\d+(?:\.\d+)?|(?<![\w.])\.\d+)
        (?:/(?P<bottom>0*[1-9]\d{0,8})(?!\.?\d|/)
            |(?:[eE]|[ ]?(?:[x*\u00d7]|\\times|\\cdot)[ ]?10\^\{?)(?P<exponent>[+-]?\d{1,4})(?!\w|\.\d|\^)
            |(?:\^\{?|\*\*|[ ](?:\^|\*\*)[ ])(?P<power>\d{1,3})(?!\w|\.\d|\^|\*\*\d))?""",
    re.VERBOSE | re.ASCII,
)
_NUMBER_MARK = re.compile(
    rf"(?:\banswer[*_]*(?:\s+is\b|\s*[:=])|\#\#\#\#|\\boxed){_GAP}*"
    r"(?:(?:about|approximately|roughly|only|equal to)\s+)?"
    r"(?:(?:[-+*/x\u00d7\u00f7().,\d $%^]*=)+\s*(?=[-$.\d]))?",  # "3 + 4 =" before its result
    re.IGNORECASE,
)
_UNCLEAR = re.compile(
    r"""(?<![\d,.])\d+(?:\.\d+)*,\d+(?!,?\d)      # 3,14 or 1.234,56: a decimal comma, or two numbers
        |(?<![\d,])\d\d?(?:,\d\d)+,\d{3}(?!,?\d)   # 12,34,567: Indian groups, or a list
        |(?<![\d.])\d+(?:\.\d+){2,}                # 1.000.000
        |(?<![\d.,/])(?<!\d[ ])\d{1,3}(?:[ ]\d{3})+(?:[.,]\d+)*(?![ ]?\d)   # 1 000: one number, or two
        |(?<![\d_'\u2019])\d+(?:[_'\u2019]\d+)+     # 1_0, 5'10""",
    re.VERBOSE | re.ASCII,
)
"""What may be one number or several; no part of it is read."""
# Tokenizers of words set spaces around signs: "- 5", "9 . 8". A dash in a new line starts an item of a list instead.
_SPACED_SIGN = re.compile(r"((?:\bis|[:=]|#{4})[ *_$({\[]*)-[ ](?=[$.\d])", re.ASCII)
_SPACED_POINT = re.compile(rf"({_NUMBER_MARK.pattern}-?\d+) \. (?=\d)", re.IGNORECASE | re.ASCII)
_SPACED_NUMBER = re.compile(r"\s*(?:- )?\d+(?: \. \d+)?(?: \.)?\s*", re.ASCII)

# "A" before a lower-case word is the article, unless the word shows otherwise ("A is right", "A because").
_CAPITAL = r"(?:[B-E]|A(?!\s+(?!(?:is|because|since)\b)[a-z]))(?![\w/-]|['\u2019]\w)"
_SMALL = r"(?<=\()[a-e](?=\))|[b-e](?=['\"`*)]*[ ]?[.,;!]?[ ]*$)|a(?=['\"`*)]*[ ]?\.[ ]*$)"
_LETTER_RULES = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        rf"(?i:\banswer(?:\s+(?:choice|option))?(?:\s+is\b)?|\\boxed)(?:{_GAP}|\\text|(?i:\boption\b|\bchoice\b))+"
        rf"({_CAPITAL}|{_SMALL})",
        r"\u7b54\u6848(?:\u662f|\u4e3a|\u70ba)?[\s:\uff1a(\uff08]*([A-E])(?![A-Za-z])",
        r"\b([A-E])['\u2019\"]?(?:\s+is|'s)\s+(?:the\s+)?(?:right|correct|true)\b",
        rf"(?i:\b(?:option|choice)\b(?:\s+is\b)?){_GAP}+({_CAPITAL})",
        r"\(([A-E])\)",
        r"(?:\A|(?<=[\s(*$:]))([A-E])(?=[\s.)*$]*\Z)",
        r"\A\W*([A-E])(?=[).])",
    )
)


def shortest(value: float | Decimal) -> str:
    """Return a finite number in its shortest form without an exponent: ``12`` for 12.0, ``0.00001`` for 1e-05."""
    text = format(Decimal(str(value)), "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def number(text: str, rule: Rule = "lab") -> str | None:
    """Return the number in `text` as a string that ``float`` accepts, fractions evaluated; None if there is none.

    Under the lab rule, ``3,14``, ``1 000`` and ``12,34,567`` are none either: they may be one number or several.
    """
    if rule == "original":
        matches = _ORIGINAL_NUMBER.findall(text.replace(",", ""))
        return matches[-1] if matches else None
    text = _plain(text)
    marked = (_NUMBER.match(text, mark.end()) for mark in _NUMBER_MARK.finditer(text))
    found = [m for m in marked if m] or list(_NUMBER.finditer(text))
    if not found or _unclear(text, found[-1]):
        return None
    return shortest(_value(found[-1]))


def _unclear(text: str, match: re.Match[str]) -> bool:
    """Return whether a number is only a part of what `_UNCLEAR` finds, such as one side of the comma in ``3,14``."""
    start, end = match.start("top"), match.end()
    spans = (found.span() for found in _UNCLEAR.finditer(text))
    return any(first <= start < end < last or first < start < end <= last for first, last in spans)


def _plain(text: str) -> str:
    """Return `text` with its numbers written in ASCII, without spaces inside."""
    text = text.translate(_SIGNS)
    text = _LATEX_FRACTION.sub(lambda m: " " * (m[1] is not None) + f"{m[2]}/{m[3]}", text)
    if not text.isascii():
        text = re.sub(r"[^\x00-\x7f]", lambda m: str(unicodedata.decimal(m[0], m[0])), text)
        fraction = partial(unicodedata.normalize, "NFKC")
        text = _VULGAR_FRACTION.sub(lambda m: " " * (m[1] is not None) + fraction(m[2]).replace("\u2044", "/"), text)
    if _SPACED_NUMBER.fullmatch(text):
        return text.replace(" ", "")
    return _SPACED_POINT.sub(r"\1.", _SPACED_SIGN.sub(r"\1-", text))


def _value(match: re.Match[str]) -> float | Decimal:
    top = re.sub(r"[,\s'\u2019_]", "", match["top"])
    value: float | Decimal = Decimal(top)
    if match["bottom"] and math.isfinite(float(top)):
        value = float(top) / float(match["bottom"]) + float(match["whole"] or 0)
    elif match["exponent"]:
        value = Decimal(f"{top}e{match['exponent']}")
    elif match["power"] and top.isdigit() and len(top) * int(match["power"]) <= DIGITS:
        value = Decimal(int(top) ** int(match["power"]))
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
    alike = [name for name in labels if found and name.lower() == found[1].lower()]
    exact = [name for name in alike if found and name == found[1]]  # capitals may tell labels apart
    return next(iter(exact or alike), None) if exact or len(alike) == 1 else None


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
    """Return whether two numbers, given as text, differ by at most `TOLERANCE`, and below 1 by at most 0.1 %."""
    largest = max(abs(float(a)), abs(float(b)))
    close = largest >= 1 or abs(float(a) - float(b)) <= TOLERANCE * largest
    return close and same_number_originally(a, b)


def same_number_originally(a: str, b: str) -> bool:
    """Return whether two numbers, given as text, differ by at most `TOLERANCE`, as the original scripts do.

    From 2**53 on, where floats leave out integers, they have to be equal.
    """
    large = max(abs(float(a)), abs(float(b))) >= 2**53
    return Decimal(a) == Decimal(b) if large else abs(float(a) - float(b)) <= TOLERANCE


def same_text(a: str, b: str) -> bool:
    """Return whether two answers are the same string."""
    return a == b
