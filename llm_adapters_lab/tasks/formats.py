"""How rows are written for a model: what it reads, and which tokens it learns.

A plain format fills a template of `prompts` with a question. A chat format writes turns by a chat template: the base's
own, or one that a spec gives. Its token ids are those of `apply_chat_template` of transformers, except that control
tokens written in the data stay text.

Which tokens of a turn are the answer is what the template itself marks by ``{% generation %}``, else it is proven on
the row. The turn starts where the rendering of all earlier turns with the generation prompt ends, which must be a
prefix of the whole in characters and in tokens. It ends with the control token after the answer: writing another answer
in its place must leave all that follows unchanged. What cannot be proven is refused.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from llm_adapters_lab.errors import BadRow, BadSpec
from llm_adapters_lab.tasks import prompts
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.tokens import IGNORED, control_tokens, text_ids

LossOn = Literal["answer", "last", "all"]
Control = Literal["text", "allow"]
Message = Mapping[str, Any]
Span = tuple[int, int, int]
"""Number of a turn, counted from 0, and where its answer starts and ends, in characters."""
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SYSTEM = ("system", "developer")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_OTHER = "zqxlab"
"""The answer that takes the place of another one."""


@dataclass(frozen=True)
class Written:
    """A row as a model sees it.

    Attributes:
        text: all of it.
        ids: token ids.
        labels: one for each token; `IGNORED` where nothing is learnt.
        turns: role, first token and end of every turn; empty in plain formats.
    """

    text: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    turns: tuple[tuple[str, int, int], ...] = ()


class Format:
    """A plain format, and the base class of chat formats.

    Attributes:
        name: for records.
        stops: generation ends at any of these strings.
        ends: ids of tokens that end an answer, beside those that the base names.
        chat: the chat template as text, "" for a plain one.
        system: the system prompt of rows that have none.
    """

    ends: tuple[int, ...] = ()
    chat: str = ""
    system: str = ""

    def __init__(self, tokenizer: Any, template: str, control_tokens: Control = "text") -> None:
        """Look up a template of `prompts` by its name."""
        self.tokenizer, self.name, self.control_tokens = tokenizer, template, control_tokens
        self.stops, self._glue = prompts.get_template(template).stop, prompts.get_template(template).glue

    def prompts(self, rows: Sequence[Example], shots: Sequence[Example] = ()) -> list[tuple[str, list[int]]]:
        """Return what the model reads before it answers each row, as text and as token ids.

        Args:
            rows: the questions.
            shots: solved questions, in front of every one.
        """
        front = prompts.demonstrations([self._plain(row) for row in shots], self.name)
        texts = [front + prompts.prompt(self._plain(row), self.name) for row in rows]
        return list(zip(texts, self._encode(texts, begin=True), strict=True))

    def rows(self, rows: Sequence[Example], loss_on: LossOn = "answer", limit: int = sys.maxsize) -> list[Written]:
        """Return rows with their answers and end tokens.

        Args:
            rows: the rows.
            loss_on: learn the answers (in a chat, those of all turns of the assistant), the last answer, or everything.
            limit: chats of more tokens are not looked into, since the time for that grows with the square of their
                turns; nothing of them is learnt.

        Raises:
            BadRow: a row cannot be written; the message names row and turn.
        """
        heads, answers = self.prompts(rows), [self.target(row) for row in rows]
        found = []
        for (text, head), answer, tail in zip(heads, answers, self._encode(answers), strict=True):
            ids = (*head, *tail, self.tokenizer.eos_token_id)
            labels = ids if loss_on == "all" else (*[IGNORED] * len(head), *ids[len(head) :])
            found.append(Written(text + answer, ids, labels))
        return found

    def row(self, row: Example, loss_on: LossOn = "answer") -> Written:
        """Return one row as `rows` does, with its turns."""
        return self.rows([row], loss_on)[0]

    def target(self, row: Example) -> str:
        """Return the answer that a model is trained to give, without the end token."""
        return self._glue + row.output

    def label_target(self, label: str, row: Example) -> str:
        """Return the text that answers a row with `label`, in the wording of the gold answer."""
        return prompts.label_target(label, row, self._glue)

    def answer_text(self, answer: Sequence[int]) -> str:
        """Return the text of an answer as it is scored: up to its end token or a repeated header."""
        ids = list(answer)
        while ids and ids[-1] in self.ends:
            ids.pop()
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        return text[: min(found)].strip() if found else text.strip()

    def _encode(self, texts: Sequence[str], *, begin: bool = False) -> list[list[int]]:
        return text_ids(self.tokenizer, texts, begin=begin, control=self.control_tokens == "allow")

    def _plain(self, row: Example) -> Example:
        roles = [str(turn["role"]) for turn in row.messages]
        if roles not in ([], ["user", "assistant"]) or row.tools:
            turns = f"{len(roles)} turns ({', '.join(roles[:6])})"
            raise BadRow(
                f"{row.id} has {turns}{' and tools' * bool(row.tools)}, but {self.name!r} asks one question. Set the "
                "template to chat."
            )
        return row


class ChatFormat(Format):
    """Rows as the turns of a conversation."""

    stops = ()

    def __init__(self, tokenizer: Any, template: str, system: str = "", control_tokens: Control = "text") -> None:
        """Take the template of the tokenizer, or one that is given as text.

        Raises:
            BadSpec: the tokenizer has none.
        """
        self.tokenizer, self.system, self.control_tokens, self._glue = tokenizer, system, control_tokens, ""
        own = getattr(tokenizer, "chat_template", None)
        if template == "chat" and not own:
            raise BadSpec(
                "The base has no chat template. Give one as a .jinja file or as text, choose a base that is trained on "
                f"chats, or a plain template: {', '.join(prompts.TEMPLATES)}."
            )
        self._given = None if template == "chat" else template
        self._kept: set[tuple[Any, ...]] = set()  # orders of turns of which the template drops none
        self.chat = self._given or tokenizer.get_chat_template()
        self.name = prompts.CHAT if self._given in (None, own) else prompts.short_name(template)

    @cached_property
    def ends(self) -> tuple[int, ...]:  # type: ignore[override]
        """The control token that the template writes after an answer."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _OTHER}]
        try:
            rest = self._render(turns).partition(_OTHER)[2]
        except Exception:  # it needs other turns
            return ()
        found = self._control.match(rest.lstrip())
        return (self._id(found),) if found else ()

    def prompts(self, rows: Sequence[Example], shots: Sequence[Example] = ()) -> list[tuple[str, list[int]]]:
        """Return what the model reads before it answers each row; `shots` are earlier turns."""
        front = [turn for shot in shots for turn in self._turns(shot, with_system=False)]
        texts = []
        for row in rows:
            turns = self._turns(row)
            head = turns[: _last_answer(turns)]
            place = 1 if head and head[0]["role"] in _SYSTEM else 0
            texts.append(self._of_row(row, [*head[:place], *front, *head[place:]], generation=True))
        return list(zip(map(_unmarked, texts), self._encode(texts), strict=True))

    def rows(self, rows: Sequence[Example], loss_on: LossOn = "answer", limit: int = sys.maxsize) -> list[Written]:
        """Return rows with their answers and end tokens."""
        wholes = [self._of_row(row, self._turns(row)) for row in rows]
        texts = list(zip(rows, wholes, map(tuple, self._encode(wholes)), strict=True))
        found = [self._spans(row, whole, loss_on) if len(ids) <= limit else [] for row, whole, ids in texts]
        cuts = [whole[:at] for whole, spans in zip(wholes, found, strict=True) for _, *span in spans for at in span]
        encoded, written = iter(self._encode(cuts)), []
        for (row, whole, ids), spans in zip(texts, found, strict=True):
            labels = [IGNORED] * len(ids) if loss_on != "all" else [*ids]
            for turn, _, _ in spans:
                first, end = next(encoded), next(encoded)
                if tuple(first) != ids[: len(first)] or tuple(end) != ids[: len(end)]:
                    why = (
                        "the tokenizer joins characters of the answer with those before or after it, so that no token "
                        f"starts or ends where it does: {self.tokenizer.decode(first[-8:])!r}. Remove white space at "
                        "the start of the answer."
                    )
                    raise self._error(row, self._turns(row), turn, why)
                labels[len(first) : len(end)] = ids[len(first) : len(end)]
            written.append(Written(_unmarked(whole), ids, tuple(labels)))
        return written

    def row(self, row: Example, loss_on: LossOn = "answer") -> Written:
        """Return one row with its turns; a turn ends where the rendering of all turns up to it differs from the whole.

        An answer, which may be rendered otherwise while it is the last, ends with its end token and white space.
        """
        written, turns = super().row(row, loss_on), self._turns(row)
        whole, bounds = self._of_row(row, turns), [0]
        for count in range(1, len(turns)):
            head = self._of_row(row, turns[:count])
            if turns[count - 1]["role"] == "assistant":
                with suppress(BadRow):  # it cannot be masked
                    end = self._proven_span(row, turns, count - 1, whole)[2]
                    head = whole[: len(whole) - len(whole[end:].lstrip())]
            bounds.append(max(bounds[-1], _common(self._encode([head])[0], written.ids)))
        ends = [*bounds[1:], len(written.ids)]
        return replace(written, turns=tuple(zip((t["role"] for t in turns), bounds, ends, strict=True)))

    def _turns(self, row: Example, with_system: bool = True) -> list[Message]:
        """Return the turns of a row, its control tokens marked as text."""
        asked = "\n\n".join(filter(None, (row.instruction, row.input)))
        one = ({"role": "user", "content": asked}, {"role": "assistant", "content": row.output})
        turns: list[Message] = list(row.messages or one)
        if with_system and self.system and turns[0]["role"] not in _SYSTEM:
            turns = [{"role": "system", "content": self.system}, *turns]
        return self._marked(turns) if self._written_out(turns) else turns

    def _tools(self, row: Example) -> list[Any]:
        tools: list[Any] = list(row.tools)
        return self._marked(tools) if self._written_out(tools) else tools

    def _marked(self, value: Any) -> Any:
        from transformers.utils.chat_template_utils import mark_control_tokens

        return mark_control_tokens(value, self._special)

    def _written_out(self, value: Any) -> bool:
        text = self.control_tokens == "text"
        return text and bool(self._special.search(json.dumps(value, ensure_ascii=False, default=str)))

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return _any_of(control_tokens(self.tokenizer))

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """Every token that a tokenizer takes as a whole, for which a model can have learnt to stop."""
        return _any_of({*control_tokens(self.tokenizer), *self.tokenizer.get_added_vocab()})

    def _encode(self, texts: Sequence[str], *, begin: bool = False) -> list[list[int]]:
        from transformers.utils.chat_template_utils import encode_marked_chat

        plain = text_ids(self.tokenizer, [_unmarked(text) for text in texts], control=True)
        pairs = zip(plain, texts, strict=True)
        found = [encode_marked_chat(self.tokenizer, text) if _unmarked(text) != text else ids for ids, text in pairs]
        first = self.tokenizer.bos_token_id
        return [ids[1:] if first is not None and ids[:2] == [first, first] else ids for ids in found]

    def _render(self, turns: Sequence[Message], tools: Sequence[Any] = (), generation: bool = False) -> str:
        options: dict[str, Any] = {"tools": list(tools) or None, "chat_template": self._given}
        text: str = self.tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=generation, **options
        )
        return text

    def _of_row(self, row: Example, turns: Sequence[Message], generation: bool = False) -> str:
        tools = self._tools(row)
        try:
            return self._render(turns, tools, generation)
        except Exception as error:  # templates raise errors of any class
            if not turns:
                raise BadRow(
                    f"{row.id}, turn 1 (assistant): there is no turn before it. Begin with a question."
                ) from None
            at = next((n for n in range(1, len(turns) + 1) if self._refuses(turns[:n], tools)), len(turns))
            why = " ".join(str(error).split())
            raise self._error(row, turns, at - 1, f"the chat template refuses it: {why:.200}") from None

    def _refuses(self, turns: Sequence[Message], tools: Sequence[Any]) -> bool:
        try:
            self._render(turns, tools)
        except Exception:
            return True
        return False

    def _spans(self, row: Example, whole: str, loss_on: LossOn) -> list[Span]:
        """Return where in a row, whose text is `whole`, each learnt answer starts and ends."""
        turns = self._turns(row)
        self._require_all(row, turns, whole)
        if loss_on == "all":
            return []
        answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant" and turn.get("weight", 1)]
        if loss_on == "last":
            answers = answers[-1:]
        if _MARKS.search(self.tokenizer.get_chat_template(self._given, list(row.tools) or None)):
            return self._marked_spans(row, turns, answers, whole)
        return [self._proven_span(row, turns, i, whole) for i in answers]

    def _marked_spans(self, row: Example, turns: Sequence[Message], answers: Sequence[int], whole: str) -> list[Span]:
        """Return the spans that the template marks, each with the end token that follows it."""
        generated, spans = self._generated(row, turns)[1], list[Span]()
        for i in answers:
            following = next((j for j in range(i + 1, len(turns)) if turns[j]["role"] == "assistant"), None)
            before = _common(self._of_row(row, turns[:i]) if i else "", whole)
            after = _common(self._of_row(row, turns[:following]), whole) if following else len(whole)
            own = [(start, end) for start, end in generated if before <= start and end <= after]
            other, covered = self._generated(row, _other(turns, i, bool(turns[i].get("tool_calls"))))
            at, said = other.find(_OTHER), str(turns[i].get("content") or "")
            if not own or not any(start <= at < end for start, end in covered):
                raise self._unmaskable(row, turns, i, "the generation marks of the chat template leave it out")
            start, end = own[-1]
            answer, said = whole[start:end].rstrip(), said.rstrip()
            last = [found for found in self._control.finditer(answer) if found.end() == len(answer)]
            if last and not (said and answer.endswith(said)) and self._ends(last[0][0]):
                own[-1] = start, start + len(answer)
            elif token := self._end(whole[end:], False):
                own[-1] = start, end + token.end()
            else:
                raise self._unmaskable(row, turns, i, f"no end token follows it but {whole[end:][:20]!r}")
            spans += [(i, *span) for span in own]
        return spans

    def _generated(self, row: Example, turns: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """Return turns as text, and the parts of it between generation marks."""
        from transformers.utils.chat_template_utils import render_jinja_template

        tools = self._tools(row)
        options = {**self.tokenizer.special_tokens_map, "tools": tools or None}
        options["chat_template"] = self.tokenizer.get_chat_template(self._given, options["tools"])
        known = [[{k: v for k, v in turn.items() if v is not None} for turn in turns]]
        rendered: Any = render_jinja_template(known, return_assistant_tokens_mask=True, **options)
        return rendered[0][0], rendered[1][0]

    def _proven_span(self, row: Example, turns: Sequence[Message], i: int, whole: str) -> Span:
        head = self._of_row(row, turns[:i], generation=True)
        if not whole.startswith(head):
            end = head[_common(head, whole) :]
            why = f"before an answer the template writes {end!r:.60}, which is not in the row. Begin the answer with "
            raise self._error(row, turns, i, f"{why}it, or give a template that writes no such text.")
        calls = bool(turns[i].get("tool_calls"))
        _, found, rest = self._of_row(row, _other(turns, i, calls)).partition(_OTHER)
        rest = rest.lstrip("\"'") if calls else rest  # quotation marks of the argument
        stop = len(whole) - len(rest)
        if not found or _OTHER in rest or not whole.endswith(rest) or stop < len(head):
            raise self._unmaskable(row, turns, i, "what follows the answer depends on it")
        last = _other(turns[: i + 1], i, calls)  # without later turns, whose header is a control token too
        if not self._end(self._of_row(row, last).partition(_OTHER)[2], calls) or not (token := self._end(rest, calls)):
            why = f"no end token follows it but {rest[:20]!r}, so that the model would never learn to stop"
            raise self._unmaskable(row, turns, i, why)
        if calls and (more := self._control.match(rest, token.end())) and self._id(more) in self.ends:
            token = more  # the first one closes the call
        return i, len(head), stop + token.end()

    def _end(self, rest: str, calls: bool) -> re.Match[str] | None:
        """Return the control token that ends an answer, after white space or the end of a call."""
        return self._special.search(rest) if calls else self._control.match(rest, len(rest) - len(rest.lstrip()))

    def _id(self, token: re.Match[str]) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(token[0]))

    def _ends(self, token: str) -> bool:
        return self.tokenizer.convert_tokens_to_ids(token) in self.ends or bool(self._special.fullmatch(token))

    def _require_all(self, row: Example, turns: Sequence[Message], whole: str) -> None:
        """Check that no turn, tool call or tool is dropped."""
        shape = (*((t["role"], bool(t.get("content")), bool(t.get("tool_calls"))) for t in turns), bool(row.tools))
        for i, turn in enumerate(turns):
            said, calls, checked = turn.get("content"), turn.get("tool_calls"), shape in self._kept
            if said and not (checked and said.strip() in whole) and _OTHER not in self._of_row(row, _other(turns, i)):
                raise self._error(row, turns, i, "the chat template drops its text.")
            if calls and not (checked and len(calls) == 1) and _OTHER not in self._of_row(row, _other(turns, i, True)):
                but = ", but the first" * (len(calls) > 1)
                raise self._error(row, turns, i, f"the chat template ignores its tool calls{but}.")
        self._kept.add(shape)
        thought = str(next((turns[-1][key] for key in _REASONING if turns[-1].get(key)), "")).strip()
        if thought not in whole:  # that of earlier answers may be dropped, as when the model is asked
            raise self._error(row, turns, len(turns) - 1, "the chat template drops its reasoning.")
        if row.tools and self._render(turns) == whole:
            raise BadRow(f"{row.id}: the chat template ignores its tools. Remove them, or choose another template.")

    def _unmaskable(self, row: Example, turns: Sequence[Message], i: int, why: str) -> BadRow:
        advice = "Give data.template a chat template that marks answers by {% generation %} and writes end tokens."
        return self._error(row, turns, i, f"{why}. {advice}")

    def _error(self, row: Example, turns: Sequence[Message], i: int, why: str) -> BadRow:
        """Return an error about a turn, by its number in the row, from 1; one may have been put in front."""
        given = self.system and (not row.messages or row.messages[0]["role"] not in _SYSTEM)
        where = f"turn {i + 1 - bool(given)} ({turns[i]['role']})" if i or not given else "the system prompt"
        return BadRow(f"{row.id}, {where}: {why}")


def get_format(
    tokenizer: Any, template: str | Format, system: str | None = None, control_tokens: Control = "text"
) -> Format:
    """Return the format that a template stands for; a format stands for itself.

    Args:
        tokenizer: of the base.
        template: a name of `prompts.TEMPLATES`; "chat" for the chat template of the base; or a chat template as text.
        system: system prompt of chats that have none.
        control_tokens: what control tokens written in the data are, "text" or, by "allow", tokens.

    Raises:
        BadSpec: there is no such template.
    """
    if isinstance(template, Format):
        return template
    if prompts.is_chat(template):
        return ChatFormat(tokenizer, template, system or "", control_tokens)
    if system:
        raise BadSpec(f"The template {template!r} has no place for a system prompt. Use chat, or remove the prompt.")
    return Format(tokenizer, template, control_tokens)


def _last_answer(turns: Sequence[Message]) -> int:
    return max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=len(turns))


def _other(turns: Sequence[Message], i: int, calls: bool = False) -> list[Message]:
    """Return turns of which one has another text, or another argument of its last tool call."""
    turn = {**turns[i], "content": _OTHER}
    if calls:
        *calls_before, last = turns[i]["tool_calls"]
        asked = {**last.get("function", last), "arguments": {"x": _OTHER}}
        last = {**last, "function": asked} if "function" in last else asked
        turn = {**turns[i], "tool_calls": [*calls_before, last]}
    return [*turns[:i], turn, *turns[i + 1 :]]


def _common(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return the number of characters or tokens with which both begin."""
    return next(
        (i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]),
        min(map(len, (first, second))),
    )


def _unmarked(text: str) -> str:
    """Return a text without the characters by which transformers marks control tokens that are to stay text."""
    return text.replace("\U000f0000", "").replace("\U000f0001", "")


def _any_of(tokens: Any) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")
