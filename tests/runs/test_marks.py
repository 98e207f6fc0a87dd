"""Star, tags and baseline of runs: kept beside the record, found by filters, and never a reason to lose a run."""

from pathlib import Path

import pytest
from records import HOSTILE, make_run

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.results.run_index import entries, entry, matching, words
from llm_adapters_lab.runs.marks import FILE, Marks, mark, marks
from llm_adapters_lab.runs.record import Run, note, write_note


def some(root: Path) -> list[Run]:
    return [make_run(root, {"type": "lora"}, {"mini-addsub": 3}, seed=seed) for seed in range(3)]


def test_marks_are_changed_one_by_one(tmp_path: Path) -> None:
    run = some(tmp_path)[0]
    assert marks(run) == Marks()
    assert mark(run, star=True) == Marks(star=True)
    assert mark(run, tags=[" good ", "good", "for the talk"]).tags == ("good", "for the talk")
    assert marks(run) == Marks(True, ("good", "for the talk"))
    mark(run, star=False, tags=[])
    assert not (run.folder / FILE).exists()


def test_at_most_one_run_of_a_root_is_the_baseline(tmp_path: Path) -> None:
    first, second, _ = some(tmp_path)
    mark(first, baseline=True, tags=["kept"])
    mark(second, baseline=True)
    assert [each.id for each in entries(tmp_path) if each.marks.baseline] == [second.id]
    assert marks(first) == Marks(tags=("kept",))
    mark(second, baseline=False)
    assert not any(each.marks.baseline for each in entries(tmp_path))


@pytest.mark.parametrize("tag", ["", "  ", "a,b", "x" * 41, "a\nb", "\x1b[2J", "a\tb"])
def test_a_tag_is_a_short_line_without_commas(tmp_path: Path, tag: str) -> None:
    run = some(tmp_path)[0]
    with pytest.raises(BadSpec, match="cannot be a tag"):
        mark(run, tags=[tag])
    assert marks(run) == Marks()


def test_what_else_is_refused(tmp_path: Path) -> None:
    run = some(tmp_path)[0]
    with pytest.raises(BadSpec, match="at most 20 tags; given were 21"):
        mark(run, tags=[f"t{i}" for i in range(21)])
    with pytest.raises(BadSpec, match="no folder"):
        mark(Run(tmp_path / "gone"), star=True)
    assert mark(run, tags=[HOSTILE[:40].replace(",", "")]).tags == (HOSTILE[:40],)


@pytest.mark.parametrize("text", ["", "[", "[]", "3", '{"tags": 3}', '{"star": 1, "tags": [[]]}', "[" * 9999, "\xff"])
def test_a_damaged_file_hides_no_run(tmp_path: Path, text: str) -> None:
    run = some(tmp_path)[0]
    (run.folder / FILE).write_text(text, encoding="latin-1")
    assert marks(run) == Marks()
    assert entry(run).fault == ""
    assert mark(run, star=True) == marks(run) == Marks(star=True)


def test_marks_are_found_by_filters(tmp_path: Path) -> None:
    first, second, third = some(tmp_path)
    mark(first, star=True, tags=["good", "talk"])
    mark(second, tags=["talk"], baseline=True)
    rows = entries(tmp_path)

    def found(text: str) -> set[str]:
        return {row.id for row in matching(rows, text)}

    assert found("star=true") == {first.id}
    assert found("tag=talk") == {first.id, second.id}
    assert found("tag!=talk") == found("tag=none") == {third.id}
    assert found("baseline=true") == {second.id}
    assert found("tag=talk,star=false") == {second.id}
    assert found("goo") == {first.id}
    assert words(entry(first).values["tag"]) == "good, talk"


def test_marks_and_note_survive_a_repeated_run(tmp_path: Path) -> None:
    run = some(tmp_path)[0]
    mark(run, star=True)
    write_note(run, "mine")
    run.clear()
    assert (marks(run), note(run)) == (Marks(star=True), "mine")
