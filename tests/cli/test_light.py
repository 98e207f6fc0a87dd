"""Commands that need no model answer at once: they import neither torch nor anything else that is heavy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from records import make_run

from llm_adapters_lab.cli.app import COMMANDS
from llm_adapters_lab.files import append_line
from llm_adapters_lab.runs.record import Run

HEAVY = ("torch", "transformers", "accelerate", "datasets", "scipy", "pandas", "plotly", "jinja2", "huggingface_hub")
# What it has loaded is printed last, whatever the command does.
PROGRAM = f"""
import sys
from llm_adapters_lab.cli.app import app
try:
    app(sys.argv[1:], prog_name="llm_adapters_lab")
except SystemExit as end:
    code = end.code
print()
print(code, [name for name in {HEAVY} if name in sys.modules])
"""


def answers(folder: Path) -> Run:
    """Write a run all of whose answers are stored, as `rescore` needs them."""
    run = make_run(folder, {"type": "lora"}, {"mini-addsub": 20})
    path = run.folder / "predictions.jsonl"
    path.unlink()
    for i in range(20):
        row = {"task": "mini-addsub", "id": f"mini-addsub/test/{i}", "gold": "7", "extracted": "7", "correct": True}
        append_line(path, row | {"prompt": "3 + 4", "text": "The answer is 7."})
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs, and spec and sweep files that are wrong in some way."""
    made = tmp_path_factory.mktemp("light")
    answers(made / "runs")
    make_run(made / "runs", None, {"mini-addsub": 3, "mini-bool": 12})
    make_run(made / "runs", {"type": "series"}, {}, done=False)
    for name, text in {
        "torn.yaml": "base: [",
        "key.yaml": "adaptr: lora",
        "value.yaml": "adapter: {type: lora, rank: x}\ndata: {task: mini-math}\neval: {tasks: [mini-bool]}",
        "task.yaml": "eval: {tasks: [mini-bol]}",
        "no-sweep.yaml": "base: nano",
        "grid.yaml": "spec: {adapter: {type: lora}}\ngrid: {adapter.rank: [1, x]}",
        "adapter.yaml": "adapter: {type: lorra}",
        "placement.yaml": "adapter: {type: lora, at: 'q@@'}",
        "layers.yaml": "adapter: {type: lora, at: 'q@7-2'}",
        "template.yaml": "data: {template: x}",
        "micro.yaml": "adapter: lora\ntrain: {batch: 4, micro_batch: 3}",
        "base.yaml": "base: nanno",
        "folder.yaml": "base: ./nowhere",
        "tiny.yaml": "base: tiny:lama",
        "good.yaml": "base: nano\neval: {tasks: [mini-bool], rows: 2}",
        "bases.yaml": "spec: {}\ngrid: {base: [nano, nanno]}",
        "seeds.yaml": "spec: good.yaml\nseeds: [0]",
        "trained.yaml": "adapter: lora\neval: {tasks: [mini-addsub]}",
        "twice.yaml": "spec: {adapter: {type: lora}}\ngrid: {seed: [1]}\nseeds: [2]",
    }.items():
        (made / name).write_text(text)
    return made


RIGHT = [
    "--help",
    "run --help",
    "list",
    "list --json",
    "run trained.yaml",
    "run trained.yaml --json",
    "list --sort accuracy --filter adapter=lora,rank>=8 --limit 3",
    "show nano-lora",
    "show nano-series",
    "show nano-lora --json",
    "compare nano-base nano-lora nano-series",
    "compare --filter adapter=lora --sort accuracy --limit 1",
    "compare nano-base nano-lora --paper llama-7b-lora --items --json",
    "mark nano-lora --star --tag good",
    "rescore nano-lora",
    "queue",
    "queue --json",
    "tasks",
    "adapters",
    "adapters lora",
    "adapters houlsby --json",
    "presets",
    "presets quickstart",
    "models",
    *(f"{command} --help" for command in COMMANDS),
]
WRONG = [
    *(f"run {name}.yaml" for name in ("nowhere", "torn", "key", "value", "task", "adapter", "placement", "layers")),
    *(f"run {name}.yaml" for name in ("template", "micro", "base", "folder", "tiny")),
    "run good.yaml --root good.yaml",
    "run paper/llama",
    "run quickstart --set rank",
    "run quickstart --set adapter.rank=[1",
    "run base.yaml --dry-run",
    "queue base.yaml",
    "queue good.yaml --root good.yaml",
    "queue --remove nano",
    "queue --set seed=1",
    "doctor base.yaml",
    "sweep bases.yaml",
    "sweep bases.yaml --dry-run",
    "sweep seeds.yaml --root good.yaml",
    "sweep seeds.yaml --report .",
    "sweep seeds.yaml --executor x",
    "anatomy nanno",
    "anatomy nano --at q@@",
    "compare nano-lora --html .",
    "compare --filter rnak=8",
    "report nano-lora --out good.yaml/x",
    "merge nano-lora out --max-shard-size x",
    "export nano-lora out --base x",
    "run value.yaml --dry-run",
    "run quickstart --set adapter.rank=0",
    "doctor value.yaml",
    *(f"sweep {name}.yaml" for name in ("nowhere", "torn", "no-sweep", "grid", "twice")),
    "sweep grid.yaml --dry-run",
    "show nothing",
    "list --filter rnak=8",
    "list --sort rnak",
    "list --limit x",
    "compare nano-lora nothing",
    "compare nano-lora --paper llama-7b-lorra",
    "report nothing",
    "mark nothing",
    "mark nano-lora --tag a,b",
    "rescore nano-series",
    "rerun nothing",
    "export nothing out",
    "export nano-base out",
    "merge nothing out",
    "adapters lorra",
    "presets nothing",
    "nothing",
]


@pytest.mark.parametrize(("words", "expected"), [*((w, 0) for w in RIGHT), *((w, 2) for w in WRONG)])
def test_a_command_loads_nothing_heavy(folder: Path, words: str, expected: int) -> None:
    command = [sys.executable, "-c", PROGRAM, *words.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == f"{expected} []", done.stderr
    assert (done.stderr == "") == (expected == 0)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_loads_nothing_heavy(folder: Path, shell: str) -> None:
    words = {
        "bash": {"COMP_WORDS": "lab show nano-l", "COMP_CWORD": "2"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "lab show nano-l"},
    }
    fish = {"_TYPER_COMPLETE_ARGS": "lab show nano-l", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    given = words.get(shell, fish) | {"_LLM_ADAPTERS_LAB_COMPLETE": f"complete_{shell}"}
    program = PROGRAM.replace("sys.argv[1:]", "[]")
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, env=given | {"PYTHONPATH": sys.path[0]}
    )
    assert "nano-lora-" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1].endswith("[]")


def test_json_of_a_light_command_is_plain_data(folder: Path) -> None:
    command = [sys.executable, "-m", "llm_adapters_lab", "list", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    assert {row["adapter"] for row in json.loads(done.stdout)} == {"lora", None, "series"}
