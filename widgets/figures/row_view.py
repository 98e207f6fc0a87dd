"""Training rows as markup: turns as bubbles with their tokens, the mask, and warnings at the turn they belong to."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.formats import Format, LossOn, Written
from llm_adapters_lab.tasks.tokens import IGNORED, Sample, control_tokens
from widgets.kit.loaded_runs import token_texts

MAX_PIECES = 2000
"""Maximum number of tokens that are drawn of a turn."""
_LAST = 100
_LOOKS = dict.fromkeys(("user", "human", "prompt"), "lab-user") | {"tool": "lab-tool"}
_LOOKS |= dict.fromkeys(("assistant", "gpt", "model", "answer", "chosen", "rejected"), "lab-assistant")
_CHARACTER = 4
"""Maximum number of tokens of a character, which has at most as many bytes."""


@dataclass(frozen=True)
class Piece:
    """A token; or several, of which none is a character on its own.

    Attributes:
        text: as the tokenizer decodes it.
        ids: of the tokens.
        learnt: whether the loss counts them.
        control: whether it is a control token, or was added to the vocabulary.
    """

    text: str
    ids: tuple[int, ...]
    learnt: bool
    control: bool


@dataclass(frozen=True)
class Turn:
    """A part of a row: a turn of a chat, a prompt, an answer or a document.

    Attributes:
        role: its heading.
        start: its first token.
        end: the token after its last.
        said: what of it is from the data; None: everything but the first and the last token.
    """

    role: str
    start: int
    end: int
    said: Any = None


class RowView:
    """Draws rows as a format writes them."""

    def __init__(self, form: Format, loss_on: LossOn = "answer") -> None:
        """Take the format and the part of the rows that is learnt."""
        self.form, self.loss_on, named = form, loss_on, control_tokens(form.tokenizer)
        self._control = {*named.values(), *form.tokenizer.get_added_vocab().values()}
        self._names = re.compile("|".join(map(re.escape, sorted(named, key=len, reverse=True))) or r"(?!)")
        self._allow = form.control_tokens == "allow"

    def has_control(self, row: Example) -> bool:
        """Return whether a control token is written out in a row."""
        texts = _texts([row.instruction, row.input, row.output, row.rejected, row.messages, row.tools])
        return any(map(self._names.search, texts))

    def learnt(self, ids: Sequence[int], labels: Sequence[int], counted: int) -> str:
        """Return how many tokens of a row are learnt, and which end tokens are among them."""
        tokenizer, ends = self.form.tokenizer, {*self.form.ends, self.form.tokenizer.eos_token_id}
        found = Counter(token for token, label in zip(ids, labels, strict=True) if label != IGNORED and token in ends)
        names = zip(map(str, tokenizer.convert_ids_to_tokens([*found])), found.values(), strict=True)
        told = " and ".join(f"{name}{f' × {count}' if count > 1 else ''}" for name, count in names)
        end = f"end token learnt: {told}" if told else "no end token is learnt"
        return f"{counted:,} of {len(ids):,} tokens are learnt; {end}"

    def tokens(self, row: Example, written: Written, rejected: Sample | None = None) -> list[Html]:
        """Return the turns of a row as bubbles with tokens.

        Args:
            row: the row.
            written: what the format makes of it.
            rejected: the same with the rejected answer, which is drawn beside the chosen one.
        """
        *turns, last = self._turns(row, written)
        found = [self._bubble(turn, written) for turn in turns]
        if rejected is None:
            return [*found, self._bubble(last, written)]
        first = self._bubble(Turn("chosen", last.start, last.end, row.output), written)
        second = self._bubble(Turn("rejected", last.start, len(rejected.ids), row.rejected), rejected)
        return [*found, el("div", first, second, class_="lab-pair")]

    def documents(self, sample: Sample) -> list[Html]:
        """Return the documents of a packed sample as bubbles."""
        cuts = pairwise((0, *sample.starts, len(sample.ids)))
        return [self._bubble(Turn("document", start, end), sample) for start, end in cuts]

    def rendered(self, row: Example, written: Written) -> Html:
        """Return the text of a row before it is tokenised, with control tokens marked."""
        said = [self.form.system, row.tools, row.messages or (row.instruction, row.input, row.output)]
        places = {at for start, end in self._places(written.text, said) for at in range(start, end)}
        parts, done = list[Html | str](), 0
        for match in self._names.finditer(written.text):
            parts += [visible(written.text[done : match.start()]), self._named(match, match.start() in places)]
            done = match.end()
        return el("pre", *parts, visible(written.text[done:]), class_="lab-rendered", tabindex="0")

    def _named(self, match: re.Match[str], from_data: bool) -> Html:
        if not from_data:
            return el("span", match[0], class_="lab-control")
        return el("mark", match[0], title=self._read_as)

    @property
    def _read_as(self) -> str:
        return f"written in the data, read as {'a token' if self._allow else 'text'}"

    def _turns(self, row: Example, written: Written) -> list[Turn]:
        if not written.turns:
            head = len(self.form.prompts([row])[0][1])
            asked = Turn("prompt", 0, head, [row.instruction, row.input])
            return [asked, Turn("answer", head, len(written.ids), row.output)]
        said = [*(row.messages or ([row.instruction, row.input], row.output))]
        said = [self.form.system] * (len(written.turns) - len(said)) + said
        turns = [Turn(*turn, one) for turn, one in zip(written.turns, said, strict=True)]
        return [*self._split(turns[0], written), *turns[1:]]

    def _split(self, turn: Turn, written: Written) -> list[Turn]:
        """Return the first turn, and before it what the template adds: all up to an end token before its text."""
        pieces, text = [*self._pieces(turn, written)], next(iter(_texts(turn.said)), "").strip()
        start = "".join(piece.text for piece in pieces).find(text)
        offsets = accumulate(len(piece.text) for piece in pieces)
        head = [piece for piece, end in zip(pieces, offsets, strict=True) if end <= start]
        end_token = next((piece.ids for piece in reversed(pieces) if piece.control), ())
        added = max((i + 1 for i, piece in enumerate(head) if piece.ids == end_token), default=0)
        while 0 < added < len(head) and not head[added].text.strip():
            added += 1
        at = turn.start + sum(len(piece.ids) for piece in head[:added])
        front = [Turn("added by the template", turn.start, at, "")] if added else []
        return [*front, Turn(turn.role, at, turn.end, turn.said)]

    def _pieces(self, turn: Turn, written: Written | Sample) -> Iterator[Piece]:
        tokenizer, at = self.form.tokenizer, turn.start
        ids, learnt = written.ids, [label != IGNORED for label in written.labels]
        learnt[0] = False  # nothing predicts the first token
        texts = token_texts(tokenizer, ids[turn.start : turn.end])
        while at < turn.end:
            text, end = texts[at - turn.start], at + 1
            if "\ufffd" in text:  # some bytes of a character
                for more in range(at + 2, min(at + _CHARACTER, turn.end) + 1):
                    if "\ufffd" not in (whole := tokenizer.decode(ids[at:more])) and len({*learnt[at:more]}) == 1:
                        text, end = whole, more
                        break
            yield Piece(text, ids[at:end], learnt[at], ids[at] in self._control)
            at = end

    def _places(self, text: str, said: Any) -> list[tuple[int, int]]:
        """Return where control tokens from the data stand in a text."""
        found, after = list[tuple[int, int]](), 0
        for one in _texts(said):
            names = [*self._names.finditer(one := one.strip())]
            if one and (at := text.find(one, after)) >= 0:
                found += [(at + match.start(), at + match.end()) for match in names]
                after = at + len(one)
        return found

    def _from_data(self, pieces: Sequence[Piece], said: Any) -> set[int]:
        """Return the numbers of the pieces that are, or spell, a control token from the data."""
        if self._allow and said is None:
            return {i for i, piece in enumerate(pieces) if piece.control and 0 < i < len(pieces) - 1}
        if self._allow:
            spans = self._places("".join(piece.text for piece in pieces), said)
        else:
            spelled = "".join("\0" * len(piece.text) if piece.control else piece.text for piece in pieces)
            spans = [match.span() for match in self._names.finditer(spelled)]
        bounds = [*pairwise(accumulate((len(piece.text) for piece in pieces), initial=0))]
        return {i for i, (a, b) in enumerate(bounds) if any(start < b and a < end for start, end in spans)}

    def _bubble(self, turn: Turn, written: Written | Sample) -> Html:
        pieces = [*self._pieces(turn, written)]
        marked, learnt = self._from_data(pieces, turn.said), sum(len(piece.ids) for piece in pieces if piece.learnt)
        last = len(pieces) - 1
        chips = [_chip(piece, self._read_as if i in marked else "", i == last) for i, piece in enumerate(pieces)]
        if len(chips) > MAX_PIECES:
            left_out = el("span", f" … {len(chips) - MAX_PIECES:,} more tokens … ", class_="lab-note")
            chips[MAX_PIECES - _LAST : -_LAST] = [left_out]
        count = turn.end - turn.start
        told = f"{learnt:,} of {count:,} tokens learnt" if learnt else f"{count:,} tokens, masked"
        names = {match[0] for match in self._names.finditer("".join(pieces[i].text for i in sorted(marked)))}
        flag = f"{' and '.join(sorted(names))}: {self._read_as}." if marked else ""
        return bubble(turn.role, told, el("div", *chips, class_="lab-tokens"), flag, "lab-flag")


def unwritten(turns: Sequence[Mapping[str, Any]], fault: str) -> list[Html]:
    """Return the turns of a row that cannot be written, each {"role": ..., "content": ...}, with the reason.

    Args:
        turns: as in the file, of any kind.
        fault: the message, which stands beside the turn that it names.
    """
    named = re.search(r"\bturn (\d+)\b", fault)
    at = int(named[1]) - 1 if named and 0 < int(named[1]) <= len(turns) else None
    found = [warning(fault)] if at is None else []
    for number, turn in enumerate(turns):
        turn = turn if isinstance(turn, Mapping) else {"content": turn}
        role = str(turn.get("role") or turn.get("from") or "no role")
        said = turn.get("content") or turn.get("value") or ""
        rest = [(key, part) for key, part in turn.items() if key not in ("role", "from", "content", "value") and part]
        more = [f"{key}: {json.dumps(part, ensure_ascii=False, default=str)}" for key, part in rest]
        shown = [str(said)] * bool(said) + more
        body = el("div", visible("\n".join(shown)) or "(empty)", class_="lab-tokens lab-said")
        found.append(bubble(role, "", body, fault[named.start() :] if named and number == at else ""))
    return found


def bubble(role: str, told: str, body: Html, fault: str = "", look: str = "lab-fault") -> Html:
    """Return a turn as a bubble, with its role above and a warning below."""
    head = el("div", el("b", role), f" · {told}" if told else "", class_="lab-role")
    parts = [head, el("div", body, class_="lab-bubble"), *([warning(fault, look)] if fault else [])]
    faulty = " lab-faulty" if fault and look == "lab-fault" else ""
    return el("div", *parts, class_=f"lab-turn {_LOOKS.get(role, 'lab-system')}{faulty}")


def warning(text: str, look: str = "lab-fault") -> Html:
    """Return a warning about a row or a turn."""
    return el("div", f"⚠ {text}", class_=look, role="note")


def legend() -> Html:
    """Return what the looks of tokens mean."""
    looks = (("learnt", ""), ("masked", " lab-masked"), ("control token, learnt", " lab-control"))
    chips = [el("span", name, class_=f"lab-token{look}") for name, look in looks]
    chips += [el("span", "control token, masked", class_="lab-token lab-control lab-masked")]
    spaced = [part for chip in chips for part in (chip, " ")]
    return el("div", *spaced, el("mark", "control token from the data"), " ↵ line break", class_="lab-note lab-legend")


def visible(text: str) -> str:
    """Return text with characters that cannot be seen spelled out, except for white space and line breaks."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"⟨U+{ord(c):04X}⟩" for c in text)


def _chip(piece: Piece, flag: str, last: bool) -> Html:
    look = "lab-token" + " lab-control" * piece.control + " lab-masked" * (not piece.learnt)
    tip = f"{' '.join(map(str, piece.ids))}: {'learnt' if piece.learnt else 'masked'}"
    tip += ", control token" * piece.control + (f", {flag}" if flag else "")
    shown = visible(piece.text).replace("\n", "↵\n") or " "
    shown = shown.removesuffix("\n") if last else shown  # no empty line at the end of a bubble
    chip = el("span", shown, class_=look + " lab-line" * ("\n" in shown), title=tip)
    return el("mark", chip) if flag else chip


def _texts(value: Any) -> list[str]:
    """Return all texts in JSON."""
    if isinstance(value, Mapping):
        return [text for key, part in value.items() if key != "role" for text in _texts(part)]
    if isinstance(value, list | tuple):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) else []
