"""What a person sees: tables that fit the terminal, names, completion, and errors of files that cannot be written."""

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import resource
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from records import make_run
from rich.console import Console
from typer.testing import CliRunner

from llm_adapters_lab.cli import arguments
from llm_adapters_lab.cli.app import app
from llm_adapters_lab.cli.console import as_table
from llm_adapters_lab.events import Failed
from llm_adapters_lab.results.appearance import short_names, spec_fields
from llm_adapters_lab.runs.spec import RunSpec

KINDS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"type": "lora", "rank": 4},
    {"type": "lora", "rank": 16, "at": "q,k,v,o@0-7"},
    {"type": "series"},
    {"type": "prefix"},
    {"type": "full-fine-tuning"},
)
SCORES = {"mini-addsub": 10, "mini-bool": 15, "mini-mult": 7}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for kind in KINDS:
        make_run(tmp_path / "runs", kind, SCORES)
    make_run(tmp_path / "runs", {"type": "lora", "rank": 4}, SCORES | {"mini-bool": 3}, seed=1)
    make_run(tmp_path / "runs", {"type": "lora", "rank": 4}, {}, seed=2, done=False)
    return tmp_path / "runs"


def lab(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def on_a_terminal(columns: int, *words: Any) -> list[str]:
    """Return the lines that a command prints on a terminal of that width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    known = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "FORCE_COLOR")}
    command = [sys.executable, "-m", "llm_adapters_lab", *map(str, words)]
    done = subprocess.Popen(command, stdin=theirs, stdout=theirs, env=known | {"TERM": "xterm", "NO_COLOR": "1"})
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # the terminal is closed
        while part := os.read(ours, 65536):
            said += part
    os.close(ours)
    assert done.wait(60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.decode())
    return [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]


@pytest.mark.parametrize("columns", [80, 120])
def test_a_list_has_one_line_a_run_and_whole_ids(root: Path, columns: int) -> None:
    lines = on_a_terminal(columns, "list", "--root", root)
    assert max(map(len, lines)) <= columns
    for folder in root.iterdir():
        (line,) = [line for line in lines if folder.name in line]
        assert line.split("  ")[0].split()[0] in folder.name
    names = [line.split("  ")[0] for line in lines[2:10]]
    assert sorted(names) == [
        "base",
        "full-fine-tuning s0",
        "lora r16 q,k,v,o@0-7 s0",
        "lora r4 q,v s0",
        "lora r4 q,v s1",
        "lora r4 q,v s2",
        "prefix v10 s0",
        "series b256 mlp s0",
    ]
    assert lines[10].startswith("Not shown: ") and "by task" in lines[10]


LONG = "a-folder-with-a-very-long-name-that-somebody-has-renamed-by-hand-and-then-damaged"


def test_a_list_of_hundreds_of_runs_some_of_which_cannot_be_read(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for seed in range(70):
        for kind in (
            {"type": "lora", "rank": 64, "at": "q,k,v,o,gate,up,down@0-5"},
            {"type": "series"},
            {"type": "dora"},
        ):
            make_run(root, kind, SCORES, seed=seed)
    failed = make_run(root, {"type": "lora"}, {}, done=False)
    failed.append(Failed(failed.id, "training", "OutOfMemoryError: no memory", advice="Lower train.batch."))
    torn = make_run(root, {"type": "lora", "rank": 2}, SCORES)
    (torn.folder / "summary.json").write_text("{")
    (root / LONG).mkdir()
    (root / LONG / "spec.json").write_text("{")
    lines = on_a_terminal(80, "list", "--root", root)
    assert max(map(len, lines)) <= 80
    rows = lines[2:214]
    ids = {path.name for path in root.iterdir() if path.name != LONG}
    assert {row.split("  nano")[1].split()[0] for row in rows} == {name.removeprefix("nano") for name in ids}
    assert all("%" in row or "–" in row for row in rows)  # state and accuracy are there, whatever the names
    assert any(re.match(r"lora r64 q,k,v\S*… s69  ", row) for row in rows)
    assert any(row.startswith("series b256 mlp s69 ") for row in rows)
    assert [row for row in rows if " failed " in row and failed.id in row]
    assert [row for row in rows if row.startswith("lora r2 q,v s0") and " unreadable " in row]
    assert lines[214].startswith("Not shown: ")
    assert LONG in "".join(lines[214:]) and "`show` gives the reason" in " ".join(lines[214:])


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_what_a_list_is_sorted_by_is_shown_and_ids_are_whole(root: Path, columns: int) -> None:
    for field, title in (("accuracy", "accuracy"), ("learning_rate", "learning rate"), ("begun", "begun")):
        lines = on_a_terminal(columns, "list", "--root", root, "--sort", field)
        assert max(map(len, lines)) <= columns
        assert all(any(folder.name in line for line in lines) for folder in root.iterdir())
        assert title in lines[0] or columns < 80


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_a_comparison_fits(root: Path, columns: int) -> None:
    ids = sorted(folder.name for folder in root.iterdir())
    text = "\n".join(lines := on_a_terminal(columns, "compare", *ids, "--root", root))
    assert max(map(len, lines)) <= columns
    assert all(name in text for name in ids)
    for words in ("53.1 to 88.8 %", "full-fine", *(("15 of 20", "distinguishable") if columns >= 80 else ())):
        assert words in text
    # One line for each run and task, in spite of a long placement.
    table = text[text.index("task ") :].partition("\n\n")[0].splitlines()
    assert sum(line.startswith("mini-") for line in table) == 21
    assert not [line for line in table if line.startswith("   ")]


def test_a_comparison_is_filtered_sorted_and_cut(root: Path) -> None:
    def compared(*words: Any) -> list[str]:
        done = lab("compare", "--root", root, "--json", *words)
        assert done.exit_code == 0, done.stderr
        return list(dict.fromkeys(row["run"] for row in json.loads(done.stdout)["rows"]))

    kinds = {folder.name: folder.name.split("-")[1] for folder in root.iterdir()}
    loras = [name for name in kinds if kinds[name] == "lora"]
    assert sorted(compared("--filter", "adapter=lora")) == sorted(loras)
    best, *others = compared("--filter", "adapter=lora", "--sort", "accuracy", "--limit", "2")
    assert {best, *others} < set(loras)
    assert len(compared("--limit", "3")) == 3
    # Of named runs too; the largest is the one that the others are compared with.
    assert compared(*loras, "--sort", "seed")[0] == next(
        name for name in loras if json.loads((root / name / "spec.json").read_text())["seed"] == 2
    )
    for words, message in (
        ((), "No run was named."),
        (("--filter", "rnak=8"), "No run has a field 'rnak'. Did you mean 'rank'"),
        (("--sort", "rnak"), "No run has a field 'rnak'. Did you mean 'rank'"),
        (("--filter", "rank>100"), "matches 'rank>100'"),
        (("--limit", "0"), "It must be a whole number of at least 1; given was 0."),
    ):
        refused = lab("compare", "--root", root, *words)
        assert refused.exit_code == 2 and message in refused.stderr


def test_a_pipe_keeps_everything(root: Path) -> None:
    text = lab("list", "--root", root).stdout
    assert "Not shown" not in text
    assert "mini-addsub 50.0 %, mini-bool 75.0 %, mini-mult 35.0 %" in text
    assert len(text.splitlines()) == 10


def test_columns_go_from_the_right_and_texts_wrap() -> None:
    rows = [{"name": "a" * 20, "idea": "many words " * 8, "n": 5, "why": "short"}]
    table, width, left_out = as_table(rows, 200)
    assert (left_out, len(table.columns)) == ([], 4)
    table, width, left_out = as_table(rows, 60)
    assert (left_out, width <= 62) == ([], True)
    table, width, left_out = as_table(rows, 50)
    assert left_out == ["why"]
    assert as_table(rows, 30)[2] == ["idea", "n", "why"]
    assert as_table(rows, 30, keep=3)[2] == ["why"]
    screen = Console(width=60, file=io.StringIO())
    screen.print(as_table(rows, 60)[0])
    assert "a" * 20 in screen.file.getvalue()  # type: ignore[attr-defined]


def test_names_show_what_differs() -> None:
    def named(*given: dict[str, Any]) -> list[str]:
        return list(
            short_names({str(i): spec_fields(RunSpec.parse(fields)) for i, fields in enumerate(given)}).values()
        )

    lora = {"adapter": {"type": "lora"}}
    assert named(lora) == ["lora r8 q,v s0"]
    assert named(lora, lora | {"base": "owner/opt"}) == ["nano lora r8 q,v s0", "opt lora r8 q,v s0"]
    assert named(lora, lora | {"train": {"learning_rate": 0.001}}, {}) == [
        "lora r8 q,v s0 lr=0.0003",
        "lora r8 q,v s0 lr=0.001",
        "base",
    ]
    assert named({}, {"eval": {"rows": 5}}) == ["base rows=None", "base rows=5"]
    assert list(short_names({"x": {}}).values()) == ["?"]


def test_a_list_is_sorted_filtered_and_cut(root: Path) -> None:
    def ids(*words: str) -> list[str]:
        return [
            line.split()[0] for line in lab("list", "--root", root, *words).stdout.splitlines()[2:] if line[:1] != " "
        ]

    assert ids("--filter", "adapter=lora,rank>=8") == ["lora", "1"]  # "1 of 8 runs."
    assert ids("--filter", "state=unfinished")[0] == "lora"
    text = lab("list", "--root", root, "--sort", "accuracy", "--limit", "2").stdout
    assert text.splitlines()[-1] == "2 of 8 runs."
    assert "unfinished" not in text
    shares = re.findall(r" ([\d.]+) % +finished ", lab("list", "--root", root, "--sort", "accuracy").stdout)
    assert len(shares) == 7 and shares == sorted(shares)
    assert "learning rate" in lab("list", "--root", root, "--sort", "learning_rate").stdout
    nothing = lab("list", "--root", root, "--filter", "rank>100")
    assert nothing.exit_code == 0 and "None of the 8 runs" in nothing.stdout
    for words, message in (
        (("--filter", "rnak=8"), "No run has a field 'rnak'. Did you mean 'rank'"),
        (("--filter", "rank>=x"), ">= needs a number; given was 'x'."),
        (("--sort", "batch"), "may be train.batch or eval.batch"),
    ):
        refused = lab("list", "--root", root, *words)
        assert refused.exit_code == 2 and message in refused.stderr


# Completion


def complete(folder: Path, line: str) -> list[str]:
    """Return what bash is offered for the last word of a line."""
    words = line.split(" ")
    given = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_LLM_ADAPTERS_LAB_COMPLETE": "complete_bash"}
    command = [sys.executable, "-m", "llm_adapters_lab"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | given, timeout=60)
    assert done.stderr == ""
    return done.stdout.split()


def test_a_shell_completes_names(root: Path) -> None:
    folder = root.parent
    (folder / "my.yaml").write_text("base: nano")
    (folder / "specs").mkdir()
    (folder / "specs" / "one.json").write_text("{}")
    assert "list" in complete(folder, "lab li")
    ids = complete(folder, "lab show nano-l")
    assert len(ids) == 4 and all(name.startswith("nano-lora-") for name in ids)
    assert complete(folder, f"lab compare --root {root} nano-b") == [next(root.glob("nano-base-*")).name]
    assert complete(folder, "lab run my") == ["my.yaml"]
    assert complete(folder, "lab run spe") == ["specs/one.json"]
    assert complete(folder, "lab sweep specs/") == ["specs/one.json"]
    assert complete(folder, "lab run paper/llama-7b-l") == ["paper/llama-7b-lora"]
    assert complete(folder, "lab adapters pre") == ["prefix"]
    assert "houlsby" in complete(folder, "lab adapters hou")
    assert complete(folder, "lab presets qui") == ["quickstart"]
    assert complete(folder, "lab compare --paper llama-7b-l") == ["llama-7b-lora"]


def test_fields_and_tasks_complete_after_set() -> None:
    assert arguments.complete_changes("train.learn") == ["train.learning_rate=", "train.learning_rate=0.0003"]
    assert arguments.complete_changes("train.sch")[0] == "train.schedule="
    assert arguments.complete_changes("train.schedule=co") == ["train.schedule=cosine", "train.schedule=constant"]
    assert arguments.complete_columns("acc") == ["accuracy"] and "rank" in arguments.complete_columns("ra")
    assert "adapter.rank=" in arguments.complete_changes("adapter.ra")
    assert arguments.complete_changes("data.task=mini-m") == ["data.task=mini-multi", "data.task=mini-math"]
    assert arguments.complete_changes("adapter=pfe") == ["adapter=pfeiffer"]


def test_options_complete() -> None:
    assert complete(Path(), "lab run --fr") == ["--fresh"]
    assert complete(Path(), "lab rescore --extraction o") == ["original"]
    assert complete(Path(), "lab list --sort learn") == ["learning_rate"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["--set", "adapter", "=", "pfe"], ["pfeiffer"]),
        (["--set", "data.task", "=", "mini-ma"], ["mini-math"]),
        (["--set", "seed", "=", "1", "--set", "train.sched"], ["train.schedule=", "train.schedule=linear"]),
        (["--root", "=", "x", "quick"], ["quickstart"]),
        (["--set", "adapter=pfe"], ["adapter=pfeiffer"]),
    ],
)
def test_bash_splits_words_at_the_equals_sign(words: list[str], offered: list[str]) -> None:
    """Bash replaces what is after "=" only; with another COMP_WORDBREAKS, it leaves the word whole."""
    typed = ["lab", "run", *words]
    given = {"COMP_WORDS": "\n".join(typed), "COMP_CWORD": str(len(typed) - 1)}
    known = os.environ | given | {"_LLM_ADAPTERS_LAB_COMPLETE": "complete_bash"}
    command = [sys.executable, "-m", "llm_adapters_lab"]
    done = subprocess.run(command, capture_output=True, text=True, env=known, timeout=60)
    assert (done.stdout.split(), done.stderr) == (offered, "")


@pytest.mark.parametrize("option", ["--show-completion"])
def test_the_shell_script_is_typers(option: str) -> None:
    named = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # there is none below a process manager
    command = [sys.executable, "-m", "llm_adapters_lab", option, "bash"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=named)
    assert "complete_bash" in done.stdout + done.stderr


# Files that cannot be written


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("not a folder")
    return tmp_path / "file"


def test_a_file_where_a_folder_is_needed_is_named_before_any_work(root: Path, blocked: Path, tmp_path: Path) -> None:
    run = next(root.glob("nano-series-*")).name
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("spec: {base: nano, eval: {tasks: [mini-bool], rows: 2}}\nseeds: [0]")
    before = sorted(root.iterdir())
    for words in (
        ("run", "quickstart", "--root", blocked),
        ("run", "quickstart", "--root", blocked / "runs"),
        ("sweep", sweep, "--root", blocked),
        ("sweep", sweep, "--root", root, "--report", blocked / "all.html"),
        ("report", run, "--root", root, "--out", blocked / "x" / "report.html"),
        ("compare", run, "--root", root, "--html", blocked / "report.html"),
        ("export", run, blocked / "out", "--root", root),
        ("merge", run, blocked / "out", "--root", root),
    ):
        done = lab(*words)
        assert done.exit_code == 2, (words, done.output)
        assert done.stderr.startswith("error: ") and str(blocked) in done.stderr, words
    assert blocked.read_text() == "not a folder" and sorted(root.iterdir()) == before


def test_a_folder_is_no_report(root: Path, tmp_path: Path) -> None:
    done = lab("report", "nano-series", "--root", root, "--out", tmp_path)
    assert done.exit_code == 2 and "is a folder. Name a file" in done.stderr


@pytest.mark.parametrize(("command", "limit"), [("report", 100_000), ("export", 1000), ("merge", 20_000)])
def test_a_full_disk_is_named(finished: tuple[Path, dict[str, str]], tmp_path: Path, command: str, limit: int) -> None:
    """The size of files is limited, which a program is told of as it is of a full disk."""
    root, ids = finished
    out = ["--out", tmp_path / "r.html"] if command == "report" else [tmp_path / "out"]
    words = [sys.executable, "-m", "llm_adapters_lab", command, ids["lora"], *out, "--root", root]

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, preexec_fn=small_files, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "cannot be written: " in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.html")) and not (tmp_path / "out" / "model.safetensors").exists()
