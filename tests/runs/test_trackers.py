"""Trackers: the numbers of the record in the files of each of them too, and nothing where none is asked for."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from launches import until
from small_runs import small

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.events import Event, Step
from llm_adapters_lab.runs import trackers
from llm_adapters_lab.runs.event_log import last_event
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.tracker_process import metrics, parameters
from llm_adapters_lab.sweeps.studies import study

# Each prints {name: [[step, value], ...]} of every run that it finds in a folder.
READERS = {
    "tensorboard": """
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
read = EventAccumulator(str(folder))
read.Reload()
found = [{name: [[s.step, s.value] for s in read.Scalars(name)] for name in read.Tags()["scalars"]}]
""",
    # W&B has no reader for Python: the frames are those of LevelDB's log, the messages its own.
    "wandb": """
from wandb.proto.wandb_internal_pb2 import Record
found = []
for path in folder.rglob("*.wandb"):
    data, at, message, series = path.read_bytes(), 7, b"", {}
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        message, at = message + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record, message = Record.FromString(message), b""
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            for name, value in items.items():
                if not name.startswith("_"):
                    series.setdefault(name, []).append([items["_step"], value])
    found.append(series)
""",
    "trackio": """
import os
os.environ["TRACKIO_DIR"] = str(folder)
import trackio
from trackio.sqlite_storage import SQLiteStorage
found = []
for run in trackio.Api().runs("llm-adapters-lab"):
    found.append({})
    for row in SQLiteStorage.get_logs(run.project, run.name, run_id=run.id):
        for name in row.keys() - {"step", "timestamp"}:
            found[-1].setdefault(name, []).append([row["step"], row[name]])
""",
    "mlflow": """
import os
os.environ |= {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
from mlflow import MlflowClient
client = MlflowClient((folder / "mlruns").as_uri())
experiment = client.get_experiment_by_name("llm-adapters-lab")
runs = client.search_runs([experiment.experiment_id])
history = lambda run, name: [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, name)]
found = [{name: history(run, name) for name in run.data.metrics} for run in runs]
""",
}
EVERY = [pytest.param(name, id=name) for name in READERS]


def tracked(*names: str, **changes: Any) -> RunSpec:
    train = {"batch": 8, "max_steps": 3, "learning_rate": 0.01, "evaluate_every": 2, "trackers": names}
    fields = {"data": {"task": "mini-math", "rows": 16, "validation": 2}, "eval": {"tasks": []}}
    return small("lora", **{**fields, "train": train | changes.pop("train", {}), **changes})


def needs(name: str) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed; `make tracker-test` installs it")


def kept(name: str, folder: Path) -> list[dict[str, list[list[float]]]]:
    """Read what a tracker has kept in a folder, by its own means."""
    before = "import json, sys\nfrom pathlib import Path\nfolder = Path(sys.argv[1])\n"
    code = f"{before}{READERS[name]}\nprint(json.dumps(found))"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, list[list[float]]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def told(record: Run) -> dict[str, list[list[float]]]:
    """Return the series that a record holds."""
    series: dict[str, list[list[float]]] = {}
    step = 0
    for event in record.events():
        step = event["step"] if event["event"] == "Step" else step
        for name, value in metrics(event).items():
            series.setdefault(name, []).append([step, pytest.approx(value, rel=1e-6)])
    return series


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty home of somebody who has set up no tracker, as working folder; and no way out of the machine."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_")):
            monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def children() -> list[int]:
    """Return the ids of the trackers that this process has begun."""
    ids = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    return [int(i) for i in ids if b"llm_adapters_lab.runs.tracker_process" in Path(f"/proc/{i}/cmdline").read_bytes()]


def test_they_are_no_part_of_the_id() -> None:
    assert tracked("tensorboard").id == tracked().id
    assert tracked().train.trackers == ()


def test_an_unknown_one_is_refused_by_name() -> None:
    with pytest.raises(BadSpec, match="tensorbord"):
        tracked("tensorbord")


def test_one_that_is_not_installed_is_refused_before_any_work(tmp_path: Path) -> None:
    here = {str(name) for name in trackers.get_available_trackers()}
    missing = next((name for name in ("mlflow", "wandb", "trackio") if name not in here), None)
    if missing is None:
        pytest.skip("every tracker is installed here")
    with pytest.raises(BadSpec, match=f"`pip install {missing}`"):
        run(tracked(missing), root=tmp_path)
    assert not list(tmp_path.iterdir())
    trackers.require(())


@pytest.mark.parametrize("name", EVERY)
def test_a_tracker_has_the_numbers_of_the_record_in_the_folder_of_the_run(
    name: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(name)
    if name == "wandb":
        monkeypatch.setenv("WANDB_MODE", "offline")
    record = run(tracked(name, eval={"tasks": ["mini-bool", "mini-addsub"], "rows": 4}), root=tmp_path / "runs")
    assert kept(name, record.folder / "trackers" / name) == [told(record)]
    assert len(told(record)) == 8 and [step for step, _ in told(record)["train/loss"]] == [1, 2, 3]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [record.id] and not list(home.iterdir())
    assert [e["event"] for e in record.events("Noticed", "Failed")] == []
    assert last_event(record.log)["event"] == "Finished"  # type: ignore[index]


def test_all_that_are_here_at_once_in_a_study(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    here = [name for name in READERS if name in {str(known) for known in trackers.get_available_trackers()}]
    both = [tracked(*here), tracked(*here, adapter={"type": "lora", "rank": 2, "at": "q"})]
    for record in study(both, root=tmp_path / "runs"):
        assert [e["event"] for e in record.events("Noticed", "Failed")] == []
        for name in here:
            assert kept(name, record.folder / "trackers" / name) == [told(record)], name


@pytest.mark.parametrize("name", EVERY)
def test_a_run_that_goes_on_has_every_step_once(name: str, tmp_path: Path, home: Path) -> None:
    needs(name)
    stop = threading.Event()
    spec = tracked(name, train={"checkpoint_every": 2, "max_steps": 5})

    def after_three(event: Event) -> None:
        if isinstance(event, Step) and event.step == 3:
            stop.set()

    first = run(spec, root=tmp_path, stop=stop, on_event=after_three)
    assert first.summary["status"] == "stopped" and children() == []
    record = run(spec, root=tmp_path)
    assert record.done and [e["step"] for e in record.events("Step")] == [1, 2, 3, 4, 5]
    assert kept(name, record.folder / "trackers" / name) == [told(record)]


def test_wandb_without_a_login_stays_offline_and_says_so(tmp_path: Path, home: Path) -> None:
    needs("wandb")
    record = run(tracked("wandb"), root=tmp_path / "runs")
    (notice,) = record.events("Noticed")
    assert "wandb sync" in notice["text"] and "wandb login" in notice["text"]
    assert kept("wandb", record.folder / "trackers" / "wandb") == [told(record)]


def test_wandb_that_cannot_be_reached_stays_offline_and_says_so(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("wandb")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", 40 * "0")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    record = run(tracked("wandb"), root=tmp_path / "runs")
    (notice,) = record.events("Noticed")
    assert "It stays offline" in notice["text"] and "127.0.0.1:9" in notice["text"]
    found = [series for series in kept("wandb", record.folder / "trackers" / "wandb") if series]
    assert found == [told(record)]


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("wandb", "WANDB_DIR", "{}"),
        ("trackio", "TRACKIO_DIR", "{}"),
        ("mlflow", "MLFLOW_TRACKING_URI", "file://{}/mlruns"),
    ],
)
def test_where_they_keep_things_can_be_said_in_their_own_way(
    name: str, variable: str, value: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(name)
    (mine := tmp_path / "mine").mkdir()
    monkeypatch.setenv(variable, value.format(mine))
    records = [run(tracked(name, seed=seed), root=tmp_path / "runs") for seed in (0, 1)]
    found = kept(name, mine)
    assert len(found) == 2 and all(told(record) in found for record in records)


@pytest.mark.parametrize("signals", [(signal.SIGKILL,), (signal.SIGSTOP, signal.SIGCONT)], ids=["dies", "hangs"])
def test_a_tracker_that_dies_or_hangs_does_not_hold_up_the_run(
    signals: tuple[signal.Signals, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("tensorboard")
    monkeypatch.setattr(trackers, "PATIENCE", 0.5)
    ids: list[int] = []

    def at_two(event: Event) -> None:
        if isinstance(event, Step) and event.step == 2:
            ids.extend(children())
            os.kill(ids[0], signals[0])

    record = run(tracked("tensorboard"), root=tmp_path, on_event=at_two)
    (notice,) = record.events("Noticed")
    assert ("code -9" if len(signals) == 1 else f"process {ids[0]} continues") in notice["text"]
    assert record.done and last_event(record.log)["event"] == "Finished"  # type: ignore[index]
    assert len(list(record.events("Step"))) == 3
    for number in signals[1:]:
        os.kill(ids[0], number)
        assert trackers._late.pop().wait(60) == 0
        assert kept("tensorboard", record.folder / "trackers" / "tensorboard") == [told(record)]


def test_one_that_cannot_begin_is_told_and_the_run_goes_on(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://nowhere")
    record = run(tracked("mlflow"), root=tmp_path)
    (notice,) = record.events("Noticed")
    assert "mlflow: It failed" in notice["text"] and "gopher" in notice["text"]
    assert record.done


@pytest.mark.parametrize("fault", ["no folder", "no process"])
def test_one_whose_process_cannot_be_begun_is_told_too(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("tensorboard")
    spec = tracked("tensorboard")
    if fault == "no folder":
        (tmp_path / spec.id).mkdir()
        (tmp_path / spec.id / "trackers").write_text("a file")
    else:
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    record = run(spec, root=tmp_path)
    (notice,) = record.events("Noticed")
    assert "tensorboard could not start; the run continues without it" in notice["text"]
    assert record.done


def test_a_folder_of_an_earlier_attempt_that_cannot_be_taken_away_holds_up_nothing(tmp_path: Path) -> None:
    needs("tensorboard")
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / tracked().id
    folder.mkdir()
    (folder / "trackers").symlink_to(tmp_path / "elsewhere")
    record = run(tracked("tensorboard"), root=tmp_path, fresh=True)
    assert record.done and not list(record.events("Noticed"))
    assert kept("tensorboard", tmp_path / "elsewhere" / "tensorboard") == [told(record)]


def test_it_ends_with_a_run_that_is_killed(tmp_path: Path) -> None:
    needs("tensorboard")
    spec = tmp_path / "spec.json"
    spec.write_text(tracked("tensorboard", train={"max_steps": 2000}).model_dump_json(), encoding="utf-8")
    words = [sys.executable, "-m", "llm_adapters_lab", "run", str(spec), "--root", str(tmp_path / "runs")]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: list(tmp_path.glob("runs/*/trackers/tensorboard/events*")))
    (tracker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait(30)
    until(lambda: not Path(f"/proc/{tracker}/exe").exists())
    (record,) = (Run(folder) for folder in (tmp_path / "runs").iterdir())
    assert kept("tensorboard", record.folder / "trackers" / "tensorboard") == [told(record)]


def test_names_and_values_are_such_as_every_tracker_takes() -> None:
    event = {"event": "Scored", "task": "own:~/q & a.csv?answer=n", "score": {"accuracy": 0.5}}
    assert metrics(event) == {"accuracy/own_q_a.csv_answer_n": 0.5}
    spec = tracked("tensorboard", eval={"tasks": ["mini-bool", "mini-addsub"]}).model_dump(mode="json")
    found = parameters(spec)
    assert found["eval.tasks"] == "mini-bool, mini-addsub" and found["adapter.rank"] == 4
    assert all(isinstance(value, str | int | float | bool) for value in found.values())


def test_none_are_begun_unasked(tmp_path: Path) -> None:
    assert not (run(tracked(), root=tmp_path).folder / "trackers").exists()
