"""The rail and the figures of Inspect as plain anywidgets in a real browser: keyboard, reasons, shared hover."""

from typing import Any

import pytest
import torch
from bare_page import saved, send, show

from llm_adapters_lab.results import plots
from widgets.figures.figure_card import drawing
from widgets.figures.figure_view import LiveFigure
from widgets.figures.view_rail import ViewRail

HOSTILE = '<img src=x onerror="window.hit = 1">'
ITEMS = [
    {"name": name, "label": label, "group": group, "icon": icon, "hint": "hint", "reason": reason}
    for name, label, group, icon, reason in (
        ("a", HOSTILE, "Weights", "norms", ""),
        ("b", "second", "Weights", "heads", HOSTILE),
        ("c", "third", HOSTILE, "unknown", ""),
    )
]


@pytest.fixture
def rail(page: Any) -> Any:
    (found,) = show(page, ViewRail(items=ITEMS, value="a"))
    return found


def test_views_are_chosen_by_mouse_and_keyboard(page: Any, rail: Any) -> None:
    options = rail.get_by_role("option")
    assert [option.get_attribute("aria-selected") for option in options.all()] == ["true", "false", "false"]
    options.nth(2).click()
    assert saved(page)["value"] == "c"
    for key in ("ArrowUp", "Enter"):  # the second does not apply
        page.keyboard.press(key)
    assert saved(page)["value"] == "c"
    for key in ("Home", " "):
        page.keyboard.press(key)
    assert saved(page)["value"] == "a"
    page.keyboard.press("End")
    assert saved(page)["value"] == "a"  # the arrows alone choose nothing
    assert rail.locator("[tabindex='0']").count() == 1
    assert page.evaluate("document.activeElement.dataset.name") == "c"


def test_what_does_not_apply_says_why_and_text_stays_text(page: Any, rail: Any) -> None:
    second = rail.get_by_role("option").nth(1)
    assert second.get_attribute("aria-disabled") == "true"
    assert second.get_attribute("title") == f"Not here: {HOSTILE}"
    second.click(force=True)
    assert saved(page) == {}
    assert rail.locator("img").count() == 0 and page.evaluate("window.hit") is None
    assert rail.locator("svg").count() == 3
    send(page, items=[{**item, "reason": ""} for item in ITEMS])
    rail.get_by_role("option").nth(1).click()
    assert saved(page)["value"] == "b"


def test_figures_show_the_same_token_together(page: Any) -> None:
    tokens = ["one", "two", "three", "four"]
    strip = drawing(plots.token_strip(tokens, torch.tensor([1.0, 2.0, 3.0, 4.0])), link="token")
    cells = drawing(plots.layer_tokens(tokens, torch.rand(3, 4), None, title="", unit="u"), link="token")
    other = drawing(plots.layer_tokens(tokens, torch.rand(3, 4), None, title="", unit="u"), link="site")
    show(page, *(LiveFigure(figure=each.figure) for each in (strip, cells, other)))
    page.evaluate("document.querySelector('.lab').classList.add('lab-linked')")
    page.wait_for_function("[...document.querySelectorAll('.js-plotly-plot')].filter(p => p.data).length === 3")
    labels = "n => document.querySelectorAll('.js-plotly-plot')[n].querySelectorAll('.hoverlayer .hovertext').length"
    box = page.locator(".js-plotly-plot").nth(0).locator(".bars path").nth(1).bounding_box()
    for step in (0, 3):
        page.mouse.move(box["x"] + box["width"] / 2 + step, box["y"] + box["height"] / 2)
    page.wait_for_function(f"({labels})(1) === 1")
    text = page.locator(".js-plotly-plot").nth(1).locator(".hoverlayer").text_content()
    assert "two" in text and page.evaluate(labels, 2) == 0
    page.mouse.move(1, 1)
    page.wait_for_function(f"({labels})(1) === 0")


def test_a_figure_of_another_kind_keeps_no_margins(page: Any) -> None:
    first = drawing(plots.layer_heads({0: torch.ones(4)}, None, title="", unit="u"))
    second = drawing(plots.token_strip(["a", "b"], torch.ones(2)))
    show(page, LiveFigure(figure=first.figure))
    page.wait_for_function("document.querySelector('.js-plotly-plot')?.data?.[0].type === 'heatmap'")
    send(page, figure=second.figure)
    page.wait_for_function("document.querySelector('.js-plotly-plot')?.data?.[0].type === 'bar'")
    assert page.evaluate("document.querySelector('.js-plotly-plot')._fullLayout._size.l") == 4
    send(page, figure={})
    page.wait_for_function("!document.querySelector('.lab svg')")
