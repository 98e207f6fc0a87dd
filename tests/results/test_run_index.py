"""All runs under a root as rows: read, filtered, sorted, grouped, annotated and deleted."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from records import HOSTILE, make_run

from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.events import Failed, Started, Stopped
from llm_adapters_lab.results.run_index import Entry, delete, entries, grouped, matching, ordered, words
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.processes import who
from llm_adapters_lab.runs.record import Run, list_runs, note, write_note
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import SILENT, beside

LORA, SERIES = {"type": "lora", "rank": 4}, {"type": "series"}


def launched(root: Path, fields: dict[str, Any], process: dict[str, Any]) -> Run:
    """Write what `launch` leaves before the run has a folder."""
    spec = RunSpec.parse(fields)
    record = Run(root / spec.id)
    beside(record, "json").parent.mkdir(exist_ok=True)
    beside(record, "spec.json").write_text(json.dumps(spec.model_dump(mode="json")), encoding="utf-8")
    known = {"stop": False, "log": None, "time": time.time()}
    beside(record, "json").write_text(json.dumps(process | known), encoding="utf-8")
    return record


def by_id(root: Path) -> dict[str, Entry]:
    return {entry.id: entry for entry in entries(root)}


def test_every_run_is_a_row_whatever_became_of_it(tmp_path: Path) -> None:
    done = make_run(tmp_path, LORA, {"a": 10, "b": 15})
    half = make_run(tmp_path, SERIES, {}, done=False)
    failed = make_run(tmp_path, LORA, {}, seed=1, done=False)
    failed.append(Failed(failed.id, "training", "ValueError: no"))
    at_work = launched(tmp_path, {"adapter": LORA, "seed": 7}, who())
    gone = launched(tmp_path, {"adapter": LORA, "seed": 8}, who() | {"pid": 2**22 + 1, "begun": 1})
    found = by_id(tmp_path)
    states = {run: found[run.id].state.name for run in (done, half, failed, at_work, gone)}
    assert list(states.values()) == ["finished", "unfinished", "failed", "running", "dead"]
    assert not any(entry.fault for entry in found.values())
    assert found[done.id].accuracy == pytest.approx(25 / 40)
    assert found[done.id].tasks == ("a", "b")
    assert found[done.id].trainable == done.summary["trainable_parameters"]
    assert (found[half.id].accuracy, found[half.id].trainable) == (None, None)
    assert found[at_work.id].fields["seed"] == 7


def test_what_cannot_be_read_hides_nothing(tmp_path: Path) -> None:
    good = make_run(tmp_path, LORA, {"a": 10})
    for name, content in (("no-json", "{"), ("unknown", '{"adapter": {"type": "nope"}}'), ("list", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "spec.json").write_text(content, encoding="utf-8")
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "events.jsonl").write_text("no json\n", encoding="utf-8")
    broken = make_run(tmp_path, SERIES, {"a": 3})
    (broken.folder / "summary.json").write_text("{", encoding="utf-8")
    (tmp_path / "something else").mkdir()
    found = by_id(tmp_path)
    assert set(found) == {good.id, broken.id, "no-json", "unknown", "list", "lost"}
    assert {name for name, entry in found.items() if entry.fault} == set(found) - {good.id}
    assert "'nope'" in found["unknown"].fault
    assert [entry.id for entry in matching(entries(tmp_path), "unreadable nope")] == ["unknown"]
    assert entries(tmp_path / "nowhere") == []


def test_a_filter_takes_words_and_fields(tmp_path: Path) -> None:
    small = make_run(tmp_path, LORA, {})
    large = make_run(tmp_path, LORA | {"rank": 16, "at": "q,v"}, {})
    other = make_run(tmp_path, SERIES, {})
    base = make_run(tmp_path, None, {})
    write_note(base, "the one to BEAT")
    rows = entries(tmp_path)

    def found(text: str) -> set[Run]:
        return {row.run for row in matching(rows, text)}

    assert found("") == {small, large, other, base}
    assert found("adapter.rank=4") == found("rank=4.0") == {small}
    assert found("adapter=LoRA state=finished") == {small, large}
    assert found("adapter=none") == found("beat") == found("one THE") == {base}
    assert found('"to beat"') == {base}
    assert found('"to beat') == set()  # a quote still open is a letter like others
    assert found("eval.tasks=mini-addsub") == found("base=nano") == {small, large, other, base}
    assert found("at=q,v rank=16 lora") == {large}
    assert found("train.learning_rate=3e-4") == {small, large, other, base}
    assert found("lr=3e-4") == {small, large, other, base}
    assert found("placement=q,v,k") == found("adapter.at=q,v,k")
    assert found("rank=five") == set()
    assert found("rank>=16") == found("rank>4") == found("adapter=lora,rank>=8") == {large}
    assert found("rank<=4") == found("rank<16,state=finished") == {small}
    assert found("adapter!=lora") == {other, base}
    assert found("seed>=0") == found("tasks=mini-addsub, seed=0") == {small, large, other, base}
    assert found("at=q,v,rank=16") == {large}  # a comma before a field parts terms, others belong to the value
    with pytest.raises(BadSpec, match="> needs a number; given was 'five'"):
        found("rank>five")
    with pytest.raises(BadSpec, match="Did you mean 'rank'"):
        found("ramk=4")
    with pytest.raises(BadSpec, match=r"train\.batch or eval\.batch"):
        found("batch=4")
    assert matching([], "ramk=4") == []


def test_unknown_values_come_last_either_way(tmp_path: Path) -> None:
    a, b = make_run(tmp_path, LORA, {"a": 3}), make_run(tmp_path, LORA, {"a": 9}, seed=1)
    c = make_run(tmp_path, SERIES, {}, done=False)
    rows = entries(tmp_path)
    for down, order in ((False, [a, b, c]), (True, [b, a, c])):
        assert [row.run for row in ordered(rows, lambda row: row.accuracy, down)] == order


def test_groups_are_those_of_a_field(tmp_path: Path) -> None:
    ranks = [make_run(tmp_path, LORA | {"rank": rank}, {"a": right}) for rank, right in ((16, 8), (2, 4))]
    twin = make_run(tmp_path, LORA | {"rank": 2}, {"a": 6}, seed=1)
    other = make_run(tmp_path, SERIES, {"a": 2, "b": 4})
    make_run(tmp_path, SERIES, {"a": 2}, seed=1)
    groups = {group.value: group for group in grouped(entries(tmp_path), "adapter.rank")}
    assert list(groups) == ["2", "16", ""]
    assert {entry.run for entry in groups["2"].entries} == {ranks[1], twin}
    assert groups["2"].accuracy == pytest.approx((4 + 6) / 40)
    assert groups["2"].alike
    assert other in [entry.run for entry in groups[""].entries]
    assert not groups[""].alike  # one of them was scored on more tasks
    assert [words(v) for v in (None, True, 0.5, ("a", "b"), (), "")] == [
        "none",
        "true",
        "0.5",
        "a, b",
        "none",
        "(empty)",
    ]


def test_a_note_is_no_part_of_the_run(tmp_path: Path) -> None:
    spec = RunSpec.parse({"base": "nano", "eval": {"tasks": ["mini-bool"], "rows": 2}})
    record = run(spec, root=tmp_path)
    before = record.spec, record.summary
    assert note(record) == ""
    write_note(record, f"  {HOSTILE} äöü\n")
    assert note(record) == f"{HOSTILE} äöü"
    assert (record.spec, record.summary, record.spec.id) == (*before, record.id)
    run(spec, root=tmp_path, fresh=True)
    assert note(record) == f"{HOSTILE} äöü"
    write_note(record, "")
    assert note(record) == ""
    with pytest.raises(BadSpec, match="no folder"):
        write_note(Run(tmp_path / "nowhere"), "x")
    assert not (tmp_path / "nowhere").exists()


def test_delete_leaves_nothing_of_it_and_everything_else(tmp_path: Path) -> None:
    one, other = make_run(tmp_path, LORA, {"a": 3}), make_run(tmp_path, SERIES, {"a": 3})
    write_note(one, "x")
    dead = launched(tmp_path, {"adapter": LORA, "seed": 8}, who() | {"pid": 2**22 + 1, "begun": 1})
    beside(dead, "log").write_text("…", encoding="utf-8")
    delete(one)
    delete(dead)
    assert [entry.run for entry in entries(tmp_path)] == [other]
    assert {path.name for path in tmp_path.iterdir()} == {other.id, ".processes"}
    assert list((tmp_path / ".processes").iterdir()) == []
    for gone in (one, Run(tmp_path), Run(tmp_path / ".processes")):
        with pytest.raises(BadSpec, match="no run"):
            delete(gone)
    assert other.done


def test_a_run_that_works_or_may_work_is_not_deleted(tmp_path: Path) -> None:
    at_work = launched(tmp_path, {"adapter": LORA, "seed": 7}, who())
    with pytest.raises(LabError, match=r"is running\. Stop it"):
        delete(at_work)
    elsewhere = make_run(tmp_path, LORA, {}, done=False)  # no process of it is known, as with run() in a notebook
    with pytest.raises(LabError, match="wait until nothing has changed for 10 minutes"):
        delete(elsewhere)
    assert {entry.run for entry in entries(tmp_path)} == {at_work, elsewhere}
    for path in elsewhere.folder.iterdir():
        os.utime(path, (time.time() - SILENT - 1,) * 2)
    delete(elsewhere)
    stopped = make_run(tmp_path, SERIES, {}, done=False)
    stopped.append(Started(stopped.id, 1, 1, 1, "cpu"))
    stopped.append(Stopped(stopped.id, "training"))
    delete(stopped)
    assert [entry.run for entry in entries(tmp_path)] == [at_work]


def test_a_broken_record_can_be_deleted_and_a_link_only_unlinked(tmp_path: Path) -> None:
    root, place = tmp_path / "runs", tmp_path / "elsewhere"
    linked = make_run(place, LORA, {"a": 3})
    root.mkdir()
    (root / linked.id).symlink_to(linked.folder, target_is_directory=True)
    delete(Run(root / linked.id))
    assert list_runs(root) == []
    assert linked.done
    (root / "broken").mkdir()
    log = root / "broken" / "events.jsonl"
    log.write_text("no json\n", encoding="utf-8")
    with pytest.raises(LabError, match="may be running"):
        delete(Run(root / "broken"))
    os.utime(log, (1, 1))
    delete(Run(root / "broken"))
    assert entries(root) == []
