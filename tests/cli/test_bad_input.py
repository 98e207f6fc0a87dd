"""Bad input is refused by name, in plain words, with exit code 2 and without a traceback, whatever the command."""

import contextlib
import json
import math
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract import required
from pydantic import BaseModel
from records import make_run
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.core.registry import all_adapters
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.sweeps.spec import Sweep

FOREIGN = re.compile(
    r"input should|validation error|extra inputs|pydantic|field required|input_value|input_type|\[type=|errors\.|"
    r"value error|Traceback|\[Errno|codec can't",
    re.IGNORECASE,
)
"""What the libraries say, which must not reach a person."""
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1.5, 2**63, 10**400, 1e-320, -0.0, math.nan, math.inf, -math.inf),
    *("", "x", "1", "1.0", "true", "null", "\x00", "\ud800", "\x1b[31m", "a" * 5000, "../../etc", "lora,series"),
    *([], [1], ["x", "x"], [None], [[[[]]]], {}, {"a": 1}, {1: 2}, {"type": "x"}, {"type": 5}, b"x", (1,)),
)


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield all fields below a model by dotted key, those of groups too."""
    for name, field in model.model_fields.items():
        yield (dotted := prefix + (field.alias or name))
        for kind in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from fields(kind, f"{dotted}.")


SPEC = [name for name in fields(RunSpec) if not name.startswith("adapter.")]
CASES = [("lora", name) for name in SPEC] + [
    (kind, name) for kind, entry in all_adapters().items() for name in fields(entry.config, "adapter.")
]


def assert_in_words(message: str, name: str) -> None:
    assert not FOREIGN.search(message), message
    assert len(message) < 3000
    # Some words about the adapter as a whole need no more than its name.
    assert name in message or (name == "adapter.type" and "adapter" in message) or last_of(name, message), message


def last_of(name: str, message: str) -> bool:
    """Return whether a message that holds for several fields together names this one, after its group."""
    group, _, last = name.rpartition(".")
    refused = re.match(r"(adapter\.\w+)(: it changes| is for the) matrices", message)  # the group as a whole
    return (message.startswith(group) and last in message) or bool(refused and name.startswith(refused[1]))


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind}-{name}" for kind, name in CASES])
def test_every_field_of_a_spec_is_refused_by_name(kind: str, name: str) -> None:
    refused = 0
    for value in VALUES:
        spec: dict[str, Any] = {"adapter": {"type": kind, **required(kind)}}
        place, (*groups, last) = spec, name.split(".")
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
        try:
            spec_id = RunSpec.parse(spec).id
        except BadSpec as error:
            assert_in_words(str(error), name)
            refused += 1
        else:
            assert re.fullmatch(r"[\w-]+", spec_id)
    assert refused >= 8


SWEEP = ("name", "spec", "grid", "list", "random", "seeds", "grid.seed", "random.count", "random.seed", "random.fields")
DRAWN = [f"random.fields.seed{rest}" for rest in ("", ".choice", ".uniform", ".log-uniform", ".integer")]


@pytest.mark.parametrize("name", [*SWEEP, *DRAWN])
def test_every_field_of_a_sweep_is_refused_by_name(name: str) -> None:
    refused = 0
    for value in VALUES:
        sweep: dict[str, Any] = {"spec": {}, "random": {"count": 1, "seed": 0, "fields": {"seed": {}}}}
        if not name.startswith("random.fields"):
            sweep["random"]["fields"]["seed"]["choice"] = [1]
        place, (*groups, last) = sweep, name.split(".")
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
        if name.startswith("grid") or "random" not in name:
            del sweep["random"]
        try:
            Sweep.parse(sweep).points()
        except BadSpec as error:
            # "There is no spec file x." names the field too.
            own = "combinations" if "combinations" in str(error) else name
            assert_in_words(str(error), own)
            refused += 1
    assert refused >= 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"adapter": {"type": "lora", "rank": "x"}},
            "adapter.rank must be a whole number from 1 to 4096; given was 'x'.",
        ),
        ({"adapter": {"type": 5}}, "adapter.type must be the name of an adapter or preset; given was 5."),
        ({"adapter": {"type": "lora", "at": "zz"}}, "adapter.at: The placement 'zz' names 'zz', which is not a role."),
        ({"adapter": {"type": "lora", "at": "q@7-2"}}, "adapter.at: The placement 'q@7-2' has layers '7-2'; write"),
        ({"data": {"task": "mini-mth"}}, "data.task: There is no task 'mini-mth'. Did you mean 'mini-math'"),
        ({"eval": {"tasks": ["boolk"]}}, "eval.tasks: There is no task 'boolk'. Did you mean 'boolq'"),
        ({"train": {"batch": 4, "micro_batch": 3}}, "train: batch 4 is not a multiple of micro_batch 3."),
        ({"seed": math.nan}, "seed must be a whole number from 0 to 2147483647; given was nan."),
        ({"train": None}, "train must be a group of keys (learning_rate, objective,"),
        ({"dtype": "fp8"}, "dtype must be one of auto, fp32, bf16, fp16; given was 'fp8'."),
        ({"base": ""}, "base must be text that is not empty; given was ''."),
        ({"trian": {}}, "'trian' is not a known key. Did you mean 'train'?"),
        ({1: 2}, "'1' is not a known key."),
    ],
)
def test_the_words(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSpec) as caught:
        RunSpec.parse(fields)
    assert str(caught.value).startswith(message)


# Command lines

FILES: dict[str, str | bytes] = {
    "good.yaml": "base: nano\neval: {tasks: [mini-bool], rows: 2}",
    "binary.yaml": b"\xff\xfe\x00\x01",
    "utf16.yaml": "base: nano".encode("utf-16"),
    "empty.yaml": "",
    "null.yaml": "null",
    "list.yaml": "- a",
    "scalar.yaml": "nano",
    "twice.yaml": "base: nano\nbase: nano",
    "alias.yaml": "a: &a [1]\nb: *a",
    "tag.yaml": "base: !!python/object/apply:os.system [id]",
    "deep.yaml": "base: " + "[" * 5000,
    "long.yaml": "base: " + "a" * 60_000,
    "two.yaml": "base: nano\n---\nbase: nano",
    "tab.yaml": "base:\tnano\n\tx: 1",
    "keys.yaml": "? [1]\n: 2",
    "torn.json": '{"base": ',
    "escape.yaml": 'base: "\\e[31mred"',
    "right-to-left.yaml": "base: \u202egnp",
    "own.yaml": "data: {task: 'own:x.exe'}",
    "trackers.yaml": "train: {trackers: [tb]}",
    "layers.yaml": "adapter: {type: lora, at: q@7-2}",
    "sweep-spec.yaml": "spec: 5",
    "sweep-grid.yaml": "spec: {}\ngrid: {1: [1]}",
    "sweep-range.yaml": "spec: {}\nrandom: {count: 1, seed: 0, fields: {seed: {integer: [5, 1]}}}",
    "sweep-many.yaml": f"spec: {{}}\ngrid: {{seed: [1, 2, 3], data.rows: {list(range(1, 5000))}}}",
    "sweep-seeds.yaml": "spec: {base: nano}\nseeds: [0, 1]",
    "sweep-base.yaml": "spec: {}\ngrid: {base: [nano, nanno]}",
}
NAME = "a" * 300
LINES: tuple[tuple[str, ...], ...] = (
    *(
        ("run", name)
        for name in (*FILES, "nowhere.yaml", "folder.yaml", "loop.yaml")
        if "sweep" not in name and name != "good.yaml"
    ),
    *(("sweep", name) for name in FILES if "sweep" in name or name == "good.yaml" if name != "sweep-seeds.yaml"),
    *(("run", name) for name in ("\x00", NAME, "", ".", "/", "/dev/null", "paper/llama", "nano-lora")),
    *(("doctor", name) for name in ("list.yaml", "layers.yaml", "nowhere")),
    *(
        ("run", "good.yaml", "--set", text)
        for text in ("", "=", "=1", "a.b.c=1", "base.x=1", "base=[1", "base=", "base=x", "base=./x", "base=tiny:x")
    ),
    *(
        ("run", "good.yaml", "--set", text)
        for text in ("..=1", "seed=1e400", "train=5", "eval.tasks=[[a]]", "eval.shots=65", "adapter=x", "dtype=.nan")
    ),
    *(("run", "good.yaml", "--root", root) for root in ("\x00", NAME, "x\ny", "good.yaml", "/dev/full", "loop.yaml/x")),
    *(("run", "good.yaml", "--root", root) for root in ("/proc/x", "/proc/1/fd/x")),
    ("sweep", "sweep-seeds.yaml", "--root", "/proc/x"),
    ("report", "nano-lora", "--out", "/proc/x/report.html"),
    ("doctor", "--set", "seed=1"),
    ("sweep", "sweep-base.yaml", "--executor", "x"),
    ("sweep", "sweep-base.yaml", "--jobs", "0"),
    ("sweep", "sweep-base.yaml", "--gpus", "nan"),
    ("sweep", "sweep-base.yaml", "--hours", "-1"),
    ("list", "--sort", "rnak"),
    ("list", "--sort", "batch"),
    ("list", "--sort", "\x1b[31m"),
    ("list", "--filter", "rank>=x"),
    ("list", "--filter", "a.b.c=1"),
    ("list", "--limit", "0"),
    ("list", "--limit", "1.5"),
    ("list", "--root", "\x00"),
    *(("show", name) for name in ("", "\x00", ".", "..", "*", "/etc", NAME * 20, "nano", "nano-lora/../..")),
    ("compare",),
    ("compare", "x"),
    ("compare", "--limit", "1", "--root", "nowhere"),
    ("compare", "nano-lora", "--paper", "x"),
    *(("compare", "nano-lora", "--html", path) for path in ("", ".", "\x00", NAME, "good.yaml/x")),
    *(("report", "nano-lora", "--out", path) for path in ("", ".", "\x00", NAME, "good.yaml/x/y")),
    ("rescore", "nano-lora", "--extraction", "x"),
    ("rescore", "nano-lora"),
    ("rerun", "/"),
    *(("export", "nano-lora", path) for path in ("", "\x00", NAME, "good.yaml", "good.yaml/x", "runs")),
    *(("export", "nano-lora", "out", "--push", name) for name in ("x", "a/b/c", "../x/y", "a/b\n", "-/-")),
    ("export", "nano-lora", "out", "--private"),
    ("export", "nano-lora", "out", "--base", "opt"),
    ("export", "nano-lora", "out", "--format", "x"),
    ("export", "nano-base", "out"),
    ("export", "broken", "out"),
    ("merge", "nano-lora", "out", "--max-shard-size", "x"),
    ("merge", "nano-lora", "good.yaml"),
    ("adapters", "x"),
    ("adapters", "\x00"),
    ("presets", "../x"),
    *(("anatomy", name) for name in ("", "x", "tiny:", "x.gguf", "./x", "a\x00b", "~nobody/x")),
    ("anatomy", "nano", "--at", "@@"),
    ("anatomy", "nano", "--at", "q@7-2"),
    ("anatomy", "nano", "--adapter", "x"),
    ("tasks", "x"),
    ("bogus",),
    ("--bogus",),
    ("run",),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs and with files that cannot be read."""
    place = tmp_path_factory.mktemp("bad")
    torn = make_run(place / "runs", {"type": "lora"}, {"mini-addsub": 10})
    (torn.folder / "predictions.jsonl").write_text("")
    make_run(place / "runs", None, {"mini-addsub": 3})
    for name, content in FILES.items():
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (place / "folder.yaml").mkdir()
    (place / "loop.yaml").symlink_to("loop.yaml")
    (place / "broken").mkdir()
    (place / "broken" / "adapter.json").write_text("{")
    return place


@pytest.mark.parametrize("words", LINES, ids=lambda words: ascii(" ".join(words))[1:60])
def test_a_bad_command_line_is_refused(place: Path, words: tuple[str, ...]) -> None:
    assert len(LINES) > 100
    before = sorted(place.rglob("*"))
    with contextlib.chdir(place):
        done = CliRunner().invoke(app, words)
    assert done.exit_code == 2, (done.output, done.exception)
    assert isinstance(done.exception, SystemExit)
    assert re.match(r"error: |Usage: ", done.stderr) and done.stdout == ""
    assert not FOREIGN.search(done.stderr), done.stderr
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", done.stderr), ascii(done.stderr)
    assert len(done.stderr) < 2000
    assert sorted(place.rglob("*")) == before


# Output that cannot be written


@pytest.mark.parametrize("words", [["--help"], ["list", "--help"], ["list"], ["list", "--json"], ["tasks"]])
def test_full_output_is_named(place: Path, words: list[str]) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "llm_adapters_lab", *words]
        done = subprocess.run(command, cwd=place, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "error: The output cannot be written: No space left on device.\n")


def test_closed_output_is_no_error(place: Path) -> None:
    command = f"{sys.executable} -m llm_adapters_lab list >&-"
    done = subprocess.run(["bash", "-c", command], cwd=place, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_is_no_json(place: Path) -> None:
    with contextlib.chdir(place):
        done = CliRunner().invoke(app, ["show", "nothing", "--json"])
    assert (done.exit_code, done.stdout) == (2, "")
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(done.stderr)
