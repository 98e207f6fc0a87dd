"""The page for GPU boxes: its commands are commands, its sweep is the paper's runs, its table is what the lab says."""

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from accelerate.commands.launch import launch_command_parser
from packaging.specifiers import SpecifierSet

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.cli.arguments import load_spec
from llm_adapters_lab.runs.presets import spec_presets
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.sweeps.spec import Sweep

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
OURS = [line for line in LINES if "-m llm_adapters_lab" in line]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
sys.path.insert(0, str(ROOT / "benchmarks"))

import paper_estimates  # noqa: E402


def words(line: str) -> list[str]:
    """Return the words after the name of the lab."""
    return shlex.split(line, comments=True)[shlex.split(line).index("llm_adapters_lab") + 1 :]


@pytest.mark.parametrize("line", OURS)
def test_every_command_of_the_lab_parses(line: str) -> None:
    command = typer.main.get_command(app)
    name, *rest = words(line)
    found = command.commands[name]  # type: ignore[attr-defined]
    given = found.make_context(name, rest, resilient_parsing=False).params
    if name in ("run", "doctor") and given.get("spec"):
        assert load_spec(given["spec"], given["changes"] or []).base.endswith(given["spec"].name.split("-")[1])
    if name == "compare":
        assert given["paper"]


def test_every_launch_parses() -> None:
    found = [shlex.split(line, comments=True) for line in OURS if line.startswith("accelerate launch ")]
    assert len(found) == 2
    for launch in found:
        given = launch_command_parser().parse_args(launch[2:])
        assert (ROOT / given.config_file).is_file() and given.module
        assert given.training_script == "llm_adapters_lab"


def test_all_other_commands_are_known_and_their_files_are_there() -> None:
    assert len(OURS) >= 8
    others = {shlex.split(line)[0] for line in LINES if line not in OURS}
    assert others == {"git", "conda", "mkdir", "podman", "export", "hf", "pip", "ray"}
    for file in ("environment.yml", "docs/Containerfile", "benchmarks/gpu.py"):
        assert file in PAGE and (ROOT / file).is_file()
    for extra in re.findall(r"llm-adapters-lab\[(\w+)\]", PAGE):
        assert extra in PROJECT["optional-dependencies"]


def test_the_sweep_of_the_page_is_the_presets_in_bf16() -> None:
    fields = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0])
    found = {spec.adapter.type: spec.id for spec in Sweep.parse(fields).specs() if spec.adapter}
    for kind in ("lora", "series", "parallel", "prefix"):
        preset = spec_presets()[f"paper/llama-7b-{kind}"].fields
        bf16 = {**preset, "dtype": "bf16", "train": {**preset["train"], "precision": "bf16"}}
        assert found[kind] == RunSpec.parse(bf16).id, kind


def test_the_table_is_that_of_the_kept_numbers() -> None:
    kept = json.loads((ROOT / "benchmarks" / "paper-estimates.json").read_text(encoding="utf-8"))
    assert [r["preset"] for r in kept] == [name for name in spec_presets() if name.startswith("paper/")]
    assert paper_estimates.table(kept) in PAGE


def test_an_estimate_is_still_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One base of the table in small: sizes as ever, and memory grows with the micro-batch's share of all."""
    kept = json.loads((ROOT / "benchmarks" / "paper-estimates.json").read_text(encoding="utf-8"))
    counts = {r["base"]: r["parameters"] for r in kept}
    assert counts["huggyllama/llama-7b"] == 6_738_415_616 and counts["huggyllama/llama-13b"] == 13_015_864_320
    assert counts["bigscience/bloomz-7b1"] == 7_069_016_064
    small: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = paper_estimates.CONFIGS["huggyllama/llama-7b"] | small
    monkeypatch.setitem(paper_estimates.CONFIGS, "huggyllama/llama-7b", config)
    preset = spec_presets()["paper/llama-7b-lora"].fields
    found = paper_estimates.examine("small", RunSpec.parse(preset), tmp_path)
    weights = 2 * found["parameters"]
    assert not found["refused"]
    assert weights < found["bytes"]["bf16, checkpointing"] <= found["bytes"]["bf16"]
    training, scoring = found["hours"]["A100 80GB"]
    tokens = 1875 * 16 * paper_estimates.TOKENS
    flops = tokens * (4 * (found["parameters"] - 32000 * 64 - 5 * 64) + 6 * found["trainable"])
    assert training == pytest.approx(flops / (0.4 * 312e12) / 3600)
    assert scoring == pytest.approx(128 * 200 * 0.002 / 3600)


def test_environment_and_container_install_what_there_is() -> None:
    parts = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (pip,) = (part["pip"] for part in parts if isinstance(part, dict))
    container = (ROOT / "docs" / "Containerfile").read_text(encoding="utf-8")
    for text in (pip[0], container):
        extras = re.search(r"\.\[([\w,]+)\]", text)
        assert extras and set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])
    for copied in re.findall(r"^COPY (.*) \S+$", container, re.MULTILINE):
        assert all((ROOT / name).exists() for name in copied.split())
    (python,) = (part.removeprefix("python") for part in parts if str(part).startswith("python"))
    image = re.search(r"^FROM \S*/python:([\d.]+)-", container, re.MULTILINE)
    assert python.startswith(PROJECT["requires-python"]) and image and SpecifierSet(python).contains(image[1])


def test_the_container_gets_nothing_that_git_ignores() -> None:
    def patterns(path: str) -> set[str]:
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        return {line.replace("!/", "!").strip("/").removeprefix("**/") for line in lines if line and line[0] != "#"}

    assert patterns("docs/Containerfile.dockerignore") == patterns(".gitignore") | {".git"}


def test_the_download_of_the_page_asks_for_all_its_files() -> None:
    """A pattern without its own `--include` would be the name of a file, for which the others are left aside."""
    (line,) = (line for line in LINES if line.startswith("hf "))
    after = shlex.split(line)[3:]
    assert after[::2] == ["--include"] * 3 and after[1::2] == ["*.json", "*.model", "*.safetensors"]
