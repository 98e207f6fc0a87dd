"""Rules for how adapters act together, written as text.

lang > task                     Stack: one after the other
a | b                           Average of what they change
0.7 a + 0.3 b                   Mix: weighted sum of what they change
[german: a, french: b]          Route: by the group of each row; [a, b] is short for [a: a, b: b]
lang > (a | b)                  parentheses nest; > binds less tightly than | and +
["mini-tongue:1": a, ...]       quotes around names with signs or spaces
"""

from __future__ import annotations

import re

from llm_adapters_lab.config import finite
from llm_adapters_lab.core.rules import Average, Mix, Route, Rule, Stack
from llm_adapters_lab.errors import BadSpec

SIGNS = "()[],:>|+"
DEEPEST = 20


def parse_rule(text: str) -> Rule:
    """Return the rule that a text describes; a single name is a stack of one.

    Raises:
        BadSpec: the text is of another form; the message says where.
    """
    parser = _Parser(text)
    rule = parser.stack(0)
    if parser.next:
        parser.refuse("where it should end, or continue with >, | or +")
    return rule if isinstance(rule, Rule) else Stack(rule)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.words = re.findall(rf'"[^"]*"|[{re.escape(SIGNS)}]|[^\s{re.escape(SIGNS)}]+', text)

    @property
    def next(self) -> str:
        return self.words[0] if self.words else ""

    def refuse(self, why: str) -> None:
        raise BadSpec(f"The rule {self.text!r:.200} has {self.next or 'nothing'!r} {why}.")

    def took(self, sign: str) -> bool:
        """Take the next word if it is this sign."""
        if found := self.next == sign:
            del self.words[0]
        return found

    def stack(self, depth: int) -> str | Rule:
        if depth > DEEPEST:
            raise BadSpec(f"The rule {self.text!r:.200} is nested more than {DEEPEST} times.")
        members = [self.sum(depth)]
        while self.took(">"):
            members.append(self.sum(depth))
        return members[0] if len(members) == 1 else Stack(*members)

    def sum(self, depth: int) -> str | Rule:
        weight, member = self.term(depth)
        found, sign = {member: weight}, self.next if self.next in ("|", "+") else ""
        if not sign and weight is None:
            return member
        while sign and self.took(sign):
            weight, member = self.term(depth)
            if member in found:
                raise BadSpec(f"The rule {self.text!r:.200} names {member!r} twice in one sum. Give it one weight.")
            found[member] = weight
        if self.next in ("|", "+"):
            self.refuse("beside another sign; use parentheses")
        if sign != "|":
            return Mix({member: 1.0 if weight is None else weight for member, weight in found.items()})
        if any(weight is not None for weight in found.values()):
            raise BadSpec(f"The rule {self.text!r:.200} has weights in an average. Write 0.7 a + 0.3 b instead.")
        return Average(*found)

    def term(self, depth: int) -> tuple[float | None, str | Rule]:
        weight = None
        if re.fullmatch(r"-?(\d+\.?\d*|\.\d+)(e-?\d+)?", self.next):
            weight = float(self.words.pop(0))
            if not finite(weight):
                raise BadSpec(f"The rule {self.text!r:.200} has a weight that is not finite.")
        if self.took("("):
            member = self.stack(depth + 1)
            if not self.took(")"):
                self.refuse("where a ) should be")
            return weight, member
        if self.took("["):
            return weight, self.route(depth + 1)
        return weight, self.name()

    def name(self) -> str:
        if not self.next or self.next in SIGNS:
            self.refuse("where a name should be")
        if self.next == '""':
            self.refuse("where a name should be")
        return str(self.words.pop(0)).strip('"')

    def route(self, depth: int) -> Rule:
        groups: dict[str | Rule, str] = {}
        while True:
            group = self.name() if self.words[1:2] == [":"] else ""
            member = self.stack(depth) if not group or self.took(":") else ""
            if isinstance(member, Rule) and not group:
                raise BadSpec(f"The rule {self.text!r:.200} routes to a rule without a group: write [group: rule].")
            group = group or str(member)
            if member in groups or group in groups.values():
                raise BadSpec(f"The rule {self.text!r:.200} names {group!r} twice in one route.")
            groups[member] = group
            if not self.took(","):
                break
        if not self.took("]"):
            self.refuse("where a comma or ] should be")
        return Route(groups)
