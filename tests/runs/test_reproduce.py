"""The same spec gives the same record to the bit, and `rerun` says what differs where it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.events import Event, Noticed, Step
from llm_adapters_lab.runs import environment
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.reproduce import UNEXPLAINED, Difference, compare, rerun
from llm_adapters_lab.runs.rows import read_rows
from llm_adapters_lab.runs.spec import RunSpec

SMALL: dict[str, Any] = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 2, "dropout": 0.3},
    "data": {"task": "mini-math", "rows": 12, "validation": 4},
    "train": {"batch": 4, "max_steps": 3, "evaluate_every": 2, "probe_every": 1},
    "eval": {"tasks": ["mini-addsub"], "rows": 3, "max_new_tokens": 4, "shots": 1},
    "seed": 7,
}


def in_a_process_of_its_own(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llm_adapters_lab", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def rewrite(file: Path, **changes: Any) -> None:
    fields = json.loads(file.read_text())
    for dotted, value in changes.items():
        part, _, key = dotted.partition("__")
        fields[part][key] = value
    file.write_text(json.dumps(fields))


@pytest.fixture
def own(tmp_path: Path) -> RunSpec:
    """A small run on an own file."""
    rows = [{"instruction": f"{n} + 1 ?", "answer": str(n + 1)} for n in range(8)]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    name = f"own:{tmp_path}/mine.json?form=number"
    data, score = {"task": name, "rows": 6}, {"tasks": [name], "rows": 2, "max_new_tokens": 3}
    return RunSpec.parse({**SMALL, "data": data, "train": {"batch": 4, "max_steps": 2}, "eval": score})


@pytest.mark.slow
def test_two_processes_give_the_same_record_to_the_bit(tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(SMALL))
    for root in ("a", "b"):
        done = in_a_process_of_its_own("run", file, "--root", tmp_path / root)
        assert done.returncode == 0, done.stderr
    a, b = (next((tmp_path / root).glob("nano-*")) for root in ("a", "b"))
    assert compare(Run(a), Run(b)) == []
    same = [
        "adapter/adapter.safetensors",
        "adapter/base.json",
        "adapter/adapter.json",
        "predictions.jsonl",
        "spec.json",
    ]
    assert all((a / name).read_bytes() == (b / name).read_bytes() for name in same)
    done = in_a_process_of_its_own("rerun", a)
    assert done.returncode == 0, done.stderr
    assert "is reproduced exactly" in done.stdout
    rewrite(a / "summary.json", environment__torch="1.0", environment__threads=99)
    done = in_a_process_of_its_own("rerun", a.name, "--root", tmp_path / "a", "--json")
    assert done.returncode == 1, done.stderr
    found = {row["field"]: (row["before"], row["cause"]) for row in json.loads(done.stdout)}
    assert found["environment.torch"] == ("1.0", "version of torch")
    assert found["environment.threads"] == (99, "number of threads")


def test_the_seed_decides_start_order_dropout_and_examples(tmp_path: Path) -> None:
    def losses(**changes: Any) -> list[float]:
        heard: list[Event] = []
        torch.rand(5)  # what went before must not count
        run(RunSpec.parse({**SMALL, "eval": {}, **changes}), root=tmp_path, fresh=True, on_event=heard.append)
        return [event.loss for event in heard if isinstance(event, Step)]

    assert losses() == losses() != losses(seed=8)
    plain = {"adapter": {"type": "lora", "rank": 2}}
    assert losses() != losses(**plain)
    one, two = (read_rows(RunSpec.parse({**SMALL, "seed": seed})).digests() for seed in (7, 8))
    assert one["train"] != two["train"]
    assert one["shots/mini-addsub"] != two["shots/mini-addsub"]
    assert one["test/mini-addsub"] == two["test/mini-addsub"]


def test_the_record_holds_what_a_reader_needs(tmp_path: Path, own: RunSpec) -> None:
    record = run(own, root=tmp_path / "runs")
    summary = record.summary
    wanted = {"python", "llm_adapters_lab", *environment.PACKAGES, "platform", "device", "threads", "dtype", "commit"}
    assert set(summary["environment"]) == wanted
    assert summary["environment"]["dtype"] == "float32"
    assert set(summary["hashes"]["data"]) == {"train", f"test/{own.eval.tasks[0]}"}
    assert all(len(digest) == 64 for digest in (summary["hashes"]["base"], *summary["hashes"]["data"].values()))


def test_changed_data_are_noticed(tmp_path: Path, own: RunSpec) -> None:
    record = run(own, root=tmp_path / "runs")
    assert rerun(record) == []
    rows = json.loads((tmp_path / "mine.json").read_text())
    rows[0]["answer"] = "5"
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    heard: list[Event] = []
    assert run(own, root=tmp_path / "runs", on_event=heard.append) == record
    (told,) = heard
    assert isinstance(told, Noticed)
    assert "mine.json?form=number has changed" in told.text
    assert "--fresh" in told.text
    with pytest.warns(UserWarning, match=r"mine\.json\?form=number has changed"):
        run(own, root=tmp_path / "runs")
    found = rerun(record)
    assert found[0].field == "hashes.data.train"
    assert {difference.cause for difference in found} == {"other data"}
    assert {"Step 1.loss", "answer " + str(tmp_path / "mine.json") + "/test/0.gold"} <= {d.field for d in found}
    (tmp_path / "mine.json").unlink()
    assert run(own, root=tmp_path / "runs") == record  # the result is still there


def test_every_part_of_a_record_is_compared(tmp_path: Path) -> None:
    before = run(RunSpec.parse(SMALL), root=tmp_path / "a")
    now = run(RunSpec.parse(SMALL), root=tmp_path / "b")
    assert compare(before, now) == []
    state = load_file(now.folder / "adapter" / "adapter.safetensors")
    first = next(iter(state))
    state[first].view(-1)[0] += 2**-20
    save_file(state, now.folder / "adapter" / "adapter.safetensors")
    (found,) = compare(before, now)
    assert (found.field, found.cause) == (f"tensor {first}", UNEXPLAINED)
    save_file({first: state[first]}, now.folder / "adapter" / "adapter.safetensors")
    assert Difference(f"tensor {list(state)[1]}", found_norm(before, list(state)[1]), None, UNEXPLAINED) in compare(
        before, now
    )
    for name, old, new, field in (
        ("events.jsonl", '"gradient_norm": ', '"gradient_norm": 1', "Step 1.gradient_norm"),
        ("predictions.jsonl", '"prompt": "', '"prompt": "x', "answer mini-addsub/test/"),
        ("summary.json", '"chance": ', '"chance": 9, "was": ', "scores.mini-addsub.chance"),
    ):
        file = now.folder / name
        kept = file.read_text()
        file.write_text(kept.replace(old, new, 1))
        assert any(d.field.startswith(field) for d in compare(before, now)), name
        file.write_text(kept)


def found_norm(record: Run, name: str) -> str:
    tensor = load_file(record.folder / "adapter" / "adapter.safetensors")[name]
    return f"{tuple(tensor.shape)} float32, norm {tensor.double().norm():.9g}"


def test_a_run_without_a_result_is_not_repeated(tmp_path: Path) -> None:
    record = Run(tmp_path / "x")
    record.folder.mkdir()
    with pytest.raises(BadSpec, match="The run x is unfinished: there is nothing to compare with"):
        rerun(record)


def test_the_commit_is_that_of_the_lab_and_marked_when_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@x")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    file = tmp_path / "lab" / "runs" / "environment.py"
    file.parent.mkdir(parents=True)
    file.write_text("1")
    (tmp_path / "lab" / "_version.py").write_text("1")
    (tmp_path / "other").write_text("1")
    monkeypatch.setattr(environment, "__file__", str(file))
    assert environment.commit() is None
    git("init", "-q")
    git("add", "other")
    git("commit", "-qm", "of somebody else")
    assert environment.commit() is None  # the lab is installed below a checkout that is not its own
    git("add", "lab")
    git("commit", "-qm", "the lab")
    head = git("rev-parse", "HEAD").strip()
    assert environment.commit() == head
    (tmp_path / "other").write_text("2")
    assert environment.commit() == head
    (file.parent / "new_adapter.py").write_text("1")
    assert environment.commit() == head + "-dirty"


def test_a_damaged_adapter_is_said_to_be_so_and_trained_again(tmp_path: Path) -> None:
    record = run(RunSpec.parse(SMALL), root=tmp_path)
    before = record.summary["train"]["loss_last"]
    (record.folder / "summary.json").unlink()  # as if it had been interrupted while it was scored
    file = record.folder / "adapter" / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    heard: list[Event] = []
    assert run(RunSpec.parse(SMALL), root=tmp_path, on_event=heard.append).done
    (told,) = [event for event in heard if isinstance(event, Noticed)]
    assert "The trained adapter is damaged" in told.text
    assert record.summary["train"]["loss_last"] == before
