"""Read rows of chats and preferences: turns in the forms of OpenAI and ShareGPT, pairs of prompt and completion.

=================================  =====================================================================
Columns                            Row
=================================  =====================================================================
messages                           turns, {"role": ..., "content": ...}; also tool_calls, and `tools` beside
conversations                      turns, {"from": "human", "value": ...}
prompt, completion                 text, or turns
prompt, chosen, rejected           text, or turns; without a prompt, two chats that begin alike
instruction, chosen, rejected      text, also with `input`
text                               a document, for data.form: text
=================================  =====================================================================

A column `system` beside turns is their system prompt, unless they begin with one.
In a CSV file, turns are written as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, TypeVar

from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.prompts import CHAT, TEXT
from llm_adapters_lab.tasks.readers import Row

T = TypeVar("T")
Turn = dict[str, Any]
COLUMNS = ("messages", "conversations", "conversation")
SYSTEM = ("system", "developer")
ROLES = (*SYSTEM, "user", "assistant", "tool")
_OTHER_NAMES = {"human": "user", "gpt": "assistant", "model": "assistant", "observation": "tool", "function": "tool"}
_CALL = "function_call"


def chat_columns(row: Row, given: Mapping[str, str]) -> tuple[str, ...]:
    """Return the columns that make a row a chat, pair or document; none if it is a question with an answer."""
    if "messages" in given:
        return (given["messages"],)
    if "instruction" in given or row.has("instruction"):
        return ()
    pairs = (("prompt", "completion"), ("chosen", "rejected"))
    kinds = [*((name,) for name in COLUMNS), *pairs, ("text",)]
    there = row.content if isinstance(row.content, dict) else {}
    found = [names for has in (row.has, there.__contains__) for names in kinds if all(map(has, names))]
    return found[0] if found else ()


def read_chat(name: str, row: Row, columns: tuple[str, ...], answer: str) -> Example:
    """Return the example of a row that has `chat_columns`.

    Args:
        name: its id.
        row: the row.
        columns: as `chat_columns` returns them.
        answer: the answer of a chat that ends with a question; "" if the row has none.

    Raises:
        BadRow: a turn is empty or malformed, or its role unknown; the message names row and turn.
    """
    first, last = columns[0], columns[-1]
    if first == "text":
        return Example(name, "", "", row.as_text("text", empty=True), answer, template=TEXT)
    answers = columns if last == "rejected" else columns[1:]
    if any(_is_text(row.field(key)) for key in answers):
        rejected = row.as_text("rejected") if last == "rejected" else ""
        said = row.as_text("completion" if last == "completion" else "chosen")
        return Example(name, row.as_text("prompt"), "", said, answer, rejected=rejected, template="plain")
    asked = []
    if len(columns) == 2 and row.has("prompt"):
        asked = [_user(row.as_text("prompt"))] if _is_text(row.field("prompt")) else turns(row, "prompt")
    found, rejected = _after(asked, turns(row, "chosen" if last == "rejected" else last)), ""
    if last == "rejected":
        other = _after(asked, turns(row, "rejected"))
        if found[:-1] != other[:-1] or {found[-1]["role"], other[-1]["role"]} != {"assistant"}:
            raise row.error("rejected", "and 'chosen' must be the same turns up to the last, an answer in both.")
        rejected = other[-1]["content"]
    if answer and found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": answer})
    if row.has("system") and found[0]["role"] not in SYSTEM:
        found = [{"role": "system", "content": row.text("system")}, *found]
    return _example(name, row, found, answer, rejected)


def turns(row: Row, key: str) -> list[Turn]:
    """Return the turns in a column, in the form of OpenAI."""
    found = row.field(key)
    found = found if _is_text(found) else _parsed(found)
    if not isinstance(found, list) or not found:
        raise row.error(key, f"is {found!r:.60}; give a list of turns, with role and content each.")
    return [_turn(row, key, number, turn) for number, turn in enumerate(found, 1)]


def _turn(row: Row, key: str, number: int, given: Any) -> Turn:
    where = f"turn {number}"
    if not isinstance(given, dict):
        raise row.error(key, f"{where} is {given!r:.60}; give an object with role and content.")
    turn = {name: _plain(value) for name, value in given.items() if value is not None}
    role = str(turn.pop("from", "") or turn.pop("role", ""))
    said = turn.pop("value", turn.pop("content", ""))
    if isinstance(said, list):
        if not all(isinstance(part, dict) and part.get("type", "text") == "text" for part in said):
            raise row.error(key, f"{where} ({role}) has parts that are not text, which the base cannot read.")
        said = "".join(str(part.get("text", "")) for part in said)
    if not isinstance(said, str):
        raise row.error(key, f"{where} ({role}) holds {said!r:.60}, a {type(said).__name__}; give text.")
    if role == _CALL:
        role, turn[_CALL], said = "assistant", _parsed(said), ""
    if called := turn.pop(_CALL, None):
        called = called if isinstance(called, list) else [called]
        turn["tool_calls"] = [{"type": "function", "function": call} for call in called]
    role = _OTHER_NAMES.get(role, role)
    if role not in ROLES:
        raise row.error(key, f"{where} has the role {role!r}. Known: {', '.join((*ROLES, *_OTHER_NAMES, _CALL))}.")
    if not said.strip() and not turn.get("tool_calls"):
        raise row.error(key, f"{where} ({role}) is empty. Give it a text, or remove the row.")
    if "train" in turn:  # axolotl's name of the weight
        turn["weight"] = turn.pop("train")
    if turn.get("weight", 1) not in (0, 1):
        raise row.error(key, f"{where} has the weight {turn['weight']!r:.60}; give 1, or 0 for an answer not to learn.")
    for call in turn.get("tool_calls", ()):
        called = call.get("function", call) if isinstance(call, dict) else {}
        if not isinstance(called, dict) or not called.get("name"):
            raise row.error(key, f"{where} calls {call!r:.60}; give a function with name and arguments.")
        called["arguments"] = given = _parsed(called.get("arguments", {}))  # templates write it as JSON themselves
        if not isinstance(given, dict):
            raise row.error(key, f"{where} calls {called['name']} with {given!r:.60}; give an object with arguments.")
    return _written({"role": role, "content": said, **turn}, row, key, f"{where} ")


def _example(name: str, row: Row, found: list[Turn], answer: str, rejected: str) -> Example:
    at = max((i for i, turn in enumerate(found) if turn["role"] == "assistant"), default=len(found))
    asked = "\n".join(turn["content"] for turn in found[:at] if turn["role"] not in SYSTEM)
    last = found[at] if at < len(found) else {"content": ""}
    output = last["content"] or json.dumps(last.get("tool_calls", ""), ensure_ascii=False)
    tools = _plain(_parsed(row.field("tools"))) if row.has("tools") else []
    if not isinstance(tools, list):
        raise row.error("tools", f"is {tools!r:.60}; give a list of JSON schemas.")
    said = output if at < len(found) else ""
    tools = _written(tools, row, "tools")
    return Example(name, asked, "", said, answer, (), tuple(found), tuple(tools), rejected, CHAT)


def _written(value: T, row: Row, key: str, where: str = "") -> T:
    """Return a value as it is, if all of its text can be encoded."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise row.error(key, f"{where}holds an unpaired surrogate ({error.reason}); repair the file.") from None
    return value


def _after(asked: list[Turn], said: list[Turn]) -> list[Turn]:
    """Return a prompt and what was said, which may begin with the prompt itself."""
    return said if said[: len(asked)] == asked else [*asked, *said]


def _user(text: str) -> Turn:
    return {"role": "user", "content": text}


def _is_text(value: Any) -> bool:
    """Return whether a value is text, and not turns that a CSV file holds as JSON."""
    parsed = _parsed(value) if isinstance(value, str) else []
    turns = isinstance(parsed, list) and all(
        isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in parsed
    )
    return isinstance(value, str) and not (turns and parsed)


def _parsed(value: Any) -> Any:
    """Return the list or object that text holds as JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _plain(value: Any) -> Any:
    """Return JSON with numbers as Python has them, without the missing fields that parquet fills in."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value
