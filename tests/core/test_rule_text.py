"""Rules written as text: what they mean, and where a wrong one is refused."""

import pytest

from llm_adapters_lab.core.rule_text import parse_rule
from llm_adapters_lab.core.rules import Average, Mix, Route, Rule, Stack
from llm_adapters_lab.errors import BadSpec


def plain(rule: str | Rule) -> object:
    if isinstance(rule, str):
        return rule
    more = rule.weights if type(rule) is Mix else rule.groups if isinstance(rule, Route) else ()
    return (type(rule), *map(plain, rule.members), *more)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("a", (Stack, "a")),
        ("a > b>c", (Stack, "a", "b", "c")),
        ("a | b", (Average, "a", "b")),
        ("0.7 a + 0.3 b", (Mix, "a", "b", 0.7, 0.3)),
        ("-1 a + b", (Mix, "a", "b", -1.0, 1.0)),
        ("2 a", (Mix, "a", 2.0)),
        ("lang > a | b", (Stack, "lang", (Average, "a", "b"))),
        ("(lang > a) | b", (Average, (Stack, "lang", "a"), "b")),
        ("[german: a, french: b > c]", (Route, "a", (Stack, "b", "c"), "german", "french")),
        ("[a, b]", (Route, "a", "b", "a", "b")),
        ('["mini-tongue:1": "my run", x: ~/y.z]', (Route, "my run", "~/y.z", "mini-tongue:1", "x")),
    ],
)
def test_what_a_text_means(text: str, meaning: object) -> None:
    assert plain(parse_rule(text)) == meaning


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'nothing' where a name should be"),
        ("a |", "'nothing' where a name should be"),
        ("a b", "'b' where it should end"),
        ("(a", r"'nothing' where a \) should be"),
        ("[x: ]", "'\\]' where a name should be"),
        ("[x: a", r"where a comma or \] should be"),
        ("[a > b]", "routes to a rule without a group"),
        ("[a, a]", "names 'a' twice in one route"),
        ("a + a", "names 'a' twice in one sum"),
        ("0.5 a | b", "weights in an average"),
        ("a | 0.5 b", "weights in an average"),
        ("a + b | c", r"'\|' beside another sign"),
        ("1e999 a", "not finite"),
        ('"" > a', "where a name should be"),
        ("(" * 30 + "a", "nested more than 20 times"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadSpec, match=message):
        parse_rule(text)
