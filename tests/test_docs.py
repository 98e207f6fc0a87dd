"""The documentation: Python blocks run, commands run or parse, links, paths and names exist, tables are up to date."""

import ast
import importlib.util
import re
import shlex
import shutil
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml
from accelerate.commands.launch import launch_command_parser
from papermill import inspect_notebook
from transformers import AutoTokenizer
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.models.loading import tiny
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.notebook_parameters import FAST
from llm_adapters_lab.runs.presets import is_spec
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.sweeps.benchmarks import Benchmark
from llm_adapters_lab.sweeps.spec import Sweep

ROOT = Path(__file__).parents[1]
LAB = ROOT / "llm_adapters_lab"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for pattern in (
        "README.md",
        "CONTRIBUTING.md",
        "docs/*.md",
        "docs/published/*.md",
        "notebooks/README.md",
        "benchmarks/*.md",
    )
    for path in sorted(ROOT.glob(pattern))
}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
OTHERS = {
    *("accelerate", "conda", "export", "git", "hf", "jupyter", "make", "mkdir", "papermill", "pip", "pipx", "podman"),
    *("python", "ray", "torchrun", "voila"),
}
"""Programs that pages call."""
ONLY_PARSED = re.compile(
    r"paper/|llama-13b|llama-7b-lora --|smollm2|gemma3-270m|--executor|--push|\bFILE\b|accelerate|torchrun"
    r"|queue papermill"
)
"""Commands that need weights, a network, a cluster or a launcher, stand for many, or leave a process behind."""
GENERATED = re.compile(r"<!-- begin .*?<!-- end", re.S)


class Block(NamedTuple):
    page: str
    language: str
    code: str


BLOCKS = [Block(page, *found) for page, text in PAGES.items() for found in BLOCK.findall(text)]
LINES = [
    (block.page, line)
    for block in BLOCKS
    if block.language == "bash"
    for line in block.code.replace("\\\n", " ").splitlines()
    if line.strip()
]
each_page = pytest.mark.parametrize("page", PAGES)


def words(line: str) -> list[str]:
    """Return the words of a command, without its comment and environment."""
    found = shlex.split(line, comments=True)
    while re.match(r"[A-Z_]+=", found[0]):
        found.pop(0)
    return found


def of_the_lab(line: str) -> list[str] | None:
    """Return the words after the name of the lab, if the command calls it."""
    found = words(line)
    return found[found.index("llm_adapters_lab") + 1 :] if "llm_adapters_lab" in found else None


# What stands there


def test_every_block_names_its_language() -> None:
    assert not [block for block in BLOCKS if block.language not in ("bash", "python", "yaml", "toml", "text")]
    assert len(BLOCKS) > 40


def slug(heading: str) -> str:
    """Return the anchor that a heading has on GitHub."""
    text = re.sub(r"[`*]|\]\(.*?\)|\[", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@each_page
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in {slug(h) for h in re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.M)}, link


@cache
def defined(path: Path) -> set[str]:
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@each_page
def test_files_and_names_in_the_text_exist(page: str) -> None:
    """A path counts from the top folder, the library or the page; a bare file name may lie anywhere."""
    text = GENERATED.sub("", BLOCK.sub("", PAGES[page]))
    for name, symbol in re.findall(r"`([\w./-]+\.(?:py|ipynb|md))(?::(\w+))?`", text):
        places = [folder / name for folder in (ROOT, LAB, (ROOT / page).parent)]
        if "/" not in name:
            places += [
                found for top in ("tests", "papermill_runs", LAB.name) for found in ROOT.glob(f"{top}/**/{name}")
            ]
        found = [place for place in places if place.is_file()]
        assert found, name
        assert not symbol or symbol in defined(found[0]), f"{name}:{symbol}"
    for folder in re.findall(r"`((?:\w+/)+)`", text):
        assert any((top / folder).is_dir() for top in (ROOT, LAB)) or folder in RUN_FOLDERS, folder


RUN_FOLDERS = {"adapter/", "checkpoints/", "trackers/", "runs/"}


def test_tables_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for (page, name), make in module.TABLES.items():
        assert module.updated(PAGES[page], name, make()) == PAGES[page], "run: python docs/make_tables.py"


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 170


# Commands


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_command_parses_and_its_files_exist(page: str, line: str) -> None:
    program, *rest = words(line)
    program = program.removeprefix(".venv/bin/")
    assert program in OTHERS
    if (ours := of_the_lab(line)) is not None:
        name, *given = ours
        command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
        parsed = command.make_context(name, given, resilient_parsing=False).params
        if name in ("run", "doctor") and (spec := parsed.get("spec")) and str(spec) != "spec.yaml":
            assert is_spec(str(spec)) and (str(spec).startswith("paper/") or (ROOT / spec).is_file())
        if name == "sweep" and "/" in str(parsed["file"]):
            assert (ROOT / parsed["file"]).is_file()
    if program == "accelerate":
        launch = launch_command_parser().parse_args(rest[1:])
        assert launch.training_script == "llm_adapters_lab" and launch.module
        assert launch.config_file is None or (ROOT / launch.config_file).is_file()
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    elif program == "papermill":
        notebook = next(word for word in rest if word.endswith(".ipynb"))
        known = inspect_notebook(str(ROOT / notebook))
        assert {rest[i + 1] for i, word in enumerate(rest) if word in ("-p", "-r")} <= set(known)
        assert all((ROOT / rest[i + 1]).is_file() for i, word in enumerate(rest) if word == "-f")
    elif program == "python" and rest[0] != "-m":
        assert (ROOT / rest[0]).is_file()
    elif rest[:2] == ["-m", "pytest"]:
        assert all((ROOT / word).exists() for word in rest[2:] if word.startswith("tests"))


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=lambda block: block.page)
def test_a_spec_or_sweep_is_valid(block: Block, tmp_path: Path) -> None:
    fields = yaml.safe_load(block.code)
    if "spec" not in fields:
        assert RunSpec.parse(fields if "base" in fields else {"adapter": fields["adapter"]}).id
        return
    shutil.copytree(ROOT / "papermill_runs" / "specs", tmp_path / "specs")
    (tmp_path / "sweeps").mkdir()
    file = tmp_path / "sweeps" / "page.yaml"
    file.write_text(block.code, encoding="utf-8")
    assert Benchmark.load(file).contests() if "methods" in fields else Sweep.load(file).specs()


# Pages, from top to bottom


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository, with specs that take a second, after its first two runs."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in (ROOT / "papermill_runs").glob("s*/nano-*.yaml"):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        spec = fields.get("spec", fields)
        for key, value in FAST.items():
            part, _, name = key.partition(".")
            if part != "train" or spec.get("adapter", fields.get("list")):
                spec.setdefault(part, {})[name] = value
        spec["eval"]["tasks"] = ["mini-addsub", "mini-bool"]
        spec.get("train", {}).pop("evaluate_every", None)
        copy.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
    shutil.copytree(ROOT / "papermill_runs" / "benchmarks", folder / "papermill_runs" / "benchmarks")
    specs = folder / "papermill_runs" / "specs"
    run(RunSpec.load(specs / "nano-base.yaml"), root=folder / "runs")
    base, injection = restore(run(RunSpec.load(specs / "nano-lora.yaml"), root=folder / "runs"))
    assert injection is not None
    to_peft(injection, folder / "path" / "to" / "peft", base.name)
    opt = folder / "facebook" / "opt-125m"
    tiny("tiny:opt").save_pretrained(opt)
    AutoTokenizer.from_pretrained(LAB / "models" / "nano").save_pretrained(opt)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.language == "python"}))
def test_a_page_works_from_top_to_bottom(
    page: str, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python blocks and commands of a page are executed in order, in one folder."""
    shutil.copytree(checkout, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("plotly.io.renderers.default", "json")
    names: dict[str, Any] = {}
    for block in BLOCKS:
        if block.page != page:
            continue
        if block.language == "python":
            exec(compile(block.code, page, "exec"), names)
        for line in block.code.splitlines() if block.language == "bash" else ():
            ours = of_the_lab(line) if line.strip() else None
            if ours and not ONLY_PARSED.search(line):
                done = CliRunner().invoke(app, ours)
                assert done.exit_code == 0, f"{line}\n{done.output}"
    for lab in [value for value in names.values() if type(value).__name__ == "Lab"]:
        lab.close()
