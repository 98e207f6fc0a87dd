"""The controls of Setup as plain anywidgets in a real browser: mouse, keyboard, screen readers, hostile text."""

from pathlib import Path
from typing import Any

import pytest
from bare_page import answer, saved, send, sent, show

from llm_adapters_lab.core import placement
from llm_adapters_lab.models.blueprint import blueprint
from widgets.forms.picker import Option, Picker
from widgets.forms.placement_grid import PlacementGrid
from widgets.kit.upload import Upload

HOSTILE = '<img src=x onerror="window.hit = 1">'
NANO = blueprint("nano").anatomy


@pytest.fixture
def grid(page: Any) -> Any:
    made = PlacementGrid(lambda: None)
    made.show(NANO, "projection", placement.sites(NANO, "q,v"))
    (found,) = show(page, made.widget)
    return found


def cell(grid: Any, line: int, column: int) -> Any:
    """Lines: 0 the groups, 1 the heads of columns, from 2 on layers; columns: 0 the heads of rows."""
    return grid.locator("tr").nth(line).locator("th, td").nth(column)


def test_clicks_and_drags_select_cells(page: Any, grid: Any) -> None:
    cell(grid, 2, 1).click()
    assert saved(page)["selected"] == {"v": [*range(6)]}
    cell(grid, 1, 4).click()  # the column o
    cell(grid, 0, 1).click()  # all of attention
    assert {*saved(page)["selected"]} == {"q", "k", "v", "o"}
    cell(grid, 0, 1).click()
    assert saved(page)["selected"] == {}
    grid.get_by_role("button", name="per layer").click()
    cell(grid, 2, 1).click()
    cell(grid, 4, 3).click(modifiers=["Shift"])
    assert saved(page)["selected"] == {name: [0, 1, 2] for name in "qkv"}
    first, last = cell(grid, 3, 7).bounding_box(), cell(grid, 5, 7).bounding_box()
    page.mouse.move(first["x"] + 4, first["y"] + 4)
    page.mouse.down()
    page.mouse.move(last["x"] + 4, last["y"] + 4, steps=9)
    page.mouse.up()
    assert saved(page)["selected"]["down"] == [1, 2, 3]
    grid.get_by_role("button", name="fold layers").click()
    assert "3 of 6 selected" in cell(grid, 2, 7).get_attribute("aria-label")


def test_the_keyboard_reaches_every_cell(page: Any, grid: Any) -> None:
    cell(grid, 1, 1).focus()
    for key in ("ArrowDown", "ArrowRight", " ", "ArrowLeft", "ArrowLeft", "Enter", "ArrowDown", "End", "Space"):
        page.keyboard.press(key)
    assert saved(page)["selected"] == {"q": [*range(6)], "v": [*range(6)], "k": [*range(6)], "down": [0]}
    assert grid.locator("[tabindex='0']").count() == 1
    page.keyboard.press("Control+Home")
    for key in ("ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.textContent") == "mlp"


def test_the_kernel_changes_the_cells(page: Any, grid: Any) -> None:
    send(page, selected={"o": [0, 1]})
    assert cell(grid, 2, 4).get_attribute("aria-label") == "o, layers 0–5: 2 of 6 selected"
    send(page, rows=[[0, 1], [2, 3, 4, 5]])
    page.wait_for_function("document.querySelectorAll('tbody tr').length === 2")
    assert cell(grid, 2, 4).get_attribute("aria-selected") == "true"
    cell(grid, 3, 4).hover()
    assert "model.layers.{2–5}.self_attn.o_proj · 128 → 128" in grid.get_by_role("status").text_content()


def test_a_picker_is_searched_with_the_keyboard(page: Any) -> None:
    made = Picker(value="one", name="number", free="Use “{}”", folded=["rare"])
    made.offer([Option("one", hint="the first"), Option("two", HOSTILE, HOSTILE, (HOSTILE,), "more"), *rare()])
    (found,) = show(page, made)
    button = found.get_by_role("button")
    button.focus()
    page.keyboard.press("ArrowDown")
    assert found.get_by_role("option").count() == 3 and "5 more" in found.get_by_role("option").last.text_content()
    page.keyboard.type("img")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert saved(page)["value"] == "two" and button.text_content().count(HOSTILE) == 2
    button.press("r")
    page.keyboard.type("3")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert saved(page)["value"] == "r3" and button.get_attribute("aria-expanded") == "false"
    page.keyboard.type("anything else")
    page.keyboard.press("Enter")
    assert saved(page)["value"] == "anything else"
    assert page.evaluate("document.activeElement.className") == "lab-pick-button"
    send(page, error="There is none.", pending=True)
    assert found.get_by_role("status").text_content() == "There is none."
    assert page.evaluate("window.hit") is None


def test_a_file_is_sent_in_pieces(page: Any, tmp_path: Path) -> None:
    upload = Upload(tmp_path, ".csv", lambda path, told: None, lambda text: None)
    upload.limit = 1_000_000
    (found,) = show(page, upload)
    content = bytes(number % 251 for number in range(600_000))
    (tmp_path / "x.csv").write_bytes(content)
    found.locator("input").set_input_files(tmp_path / "x.csv")
    ((head, first),) = sent(page, 1)
    assert (
        head == {"name": "x.csv", "size": 600_000, "from": 0, "last": False} and found.locator("button").is_disabled()
    )
    answer(page, {"name": "x.csv", "done": False})
    (_, (head, rest)) = sent(page, 2)
    assert head["from"] == len(first) and head["last"] and bytes(first + rest) == content
    answer(page, {"name": "x.csv", "done": True})
    assert found.locator("button").is_enabled()
    (tmp_path / "y.csv").write_bytes(bytes(1_000_001))
    found.locator("input").set_input_files(tmp_path / "y.csv")
    assert "at most 1 MB can be uploaded" in found.get_by_role("status").text_content()
    assert len(sent(page, 2)) == 2


def rare() -> list[Option]:
    return [Option(f"r{number}", group="rare") for number in range(5)]
