"""Untrusted input runs no code, stays in its folder and is escaped; records contain nothing private."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from contract import config
from html_page import Page
from records import HOSTILE, make_run
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from llm_adapters_lab import privacy
from llm_adapters_lab.cli.app import app
from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import (
    BadRow,
    BadSpec,
    CannotConvert,
    CannotWrite,
    DataUnavailable,
    LabError,
    ModelUnavailable,
)
from llm_adapters_lab.models import loading, random_models
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.models.source import NANO
from llm_adapters_lab.results import plots
from llm_adapters_lab.results.reports import report
from llm_adapters_lab.runs.background import follow, launch
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run, find_run
from llm_adapters_lab.runs.rows import read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import spec_of
from llm_adapters_lab.tasks.registry import get_task

ESCAPES = "\x1b[2J\x1b]0;title\x07\r\x9b31m\u202e[bold]loud[/bold]"


class Bomb:
    """Creates a folder when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def bomb(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that plants a malicious pickle, as a plain file and as torch writes it."""
    mark = tmp_path / "it-ran"

    def plant(path: Path, plain: bool = False) -> Path:
        if plain:
            path.write_bytes(pickle.dumps(Bomb(mark)))
        else:
            torch.save({"weight": Bomb(mark)}, path)
        return path

    pickle.loads(pickle.dumps(Bomb(mark)))  # noqa: S301
    mark.rmdir()
    return plant


@pytest.fixture
def safe(tmp_path: Path) -> Any:
    """Assert after a test that nothing was unpickled and no repository code has run."""
    yield
    assert not (tmp_path / "it-ran").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder."""
    base = loading.load_base("nano")
    base.model.save_pretrained(tmp_path / "model")
    base.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refused(folder: Path, *words: str) -> None:
    for load in (lambda base: Blueprint(base).skeleton, loading.load_base):
        with pytest.raises(ModelUnavailable) as caught:
            load(str(folder))
        for word in (str(folder), *words):
            assert word in str(caught.value)


@pytest.mark.usefixtures("safe")
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "model.ckpt"])
def test_pickles_in_a_model_folder_are_named_and_not_opened(name: str, folder: Path, bomb: Callable[..., Path]) -> None:
    bomb(folder / name, plain=name.endswith("pkl"))
    loading.load_base(str(folder))  # safetensors lie beside it
    (folder / "model.safetensors").unlink()
    refused(folder, name, "never opened")
    (folder / "model.safetensors").write_bytes((folder / name).read_bytes())  # in disguise
    with pytest.raises(ModelUnavailable, match="could not be loaded"):
        loading.load_base(str(folder))


@pytest.mark.usefixtures("safe")
def test_no_model_file_leads_to_a_pickle(folder: Path, bomb: Callable[..., Path]) -> None:
    bomb(folder / "adapter_model.bin")
    rewrite(folder / "config.json", transformers_weights="adapter_model.bin")
    refused(folder, "config.json points to 'adapter_model.bin'")
    rewrite(folder / "config.json", transformers_weights="../x.safetensors")
    refused(folder, "config.json points to '../x.safetensors'")
    rewrite(folder / "config.json", transformers_weights=None)
    bomb(folder / "part.bin")
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "kept.safetensors")
    for target in ("part.bin", "../../x.safetensors", "/etc/x.safetensors", 3):
        index = {"metadata": {}, "weight_map": {**dict.fromkeys(whole, "kept.safetensors"), "lm_head.weight": target}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        refused(folder, f"points to {target!r}")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(whole, "kept.safetensors")})
    )
    assert loading.load_base(str(folder)).model.num_parameters() == loading.load_base("nano").model.num_parameters()


@pytest.mark.usefixtures("safe")
def test_adapters_and_code_in_a_model_folder_are_refused(
    folder: Path, tmp_path: Path, bomb: Callable[..., Path]
) -> None:
    code = f"import os\nos.mkdir({str(tmp_path / 'it-ran')!r})\n"
    (folder / "modeling_x.py").write_text(code)
    own = {"AutoConfig": "modeling_x.X", "AutoModelForCausalLM": "modeling_x.X", "AutoTokenizer": "modeling_x.X"}
    rewrite(folder / "config.json", auto_map=own, model_type="unheard-of")
    refused(folder)
    plain = (folder / "tokenizer_config.json").read_text()
    rewrite(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_x.X", None]}, tokenizer_class="X")
    with pytest.raises(ModelUnavailable, match="custom code"):
        _ = Blueprint(str(folder)).tokenizer
    (folder / "tokenizer_config.json").write_text(plain)
    rewrite(folder / "config.json", model_type="llama", attn_implementation="somebody/kernel")
    refused(folder, "code of somebody/kernel")
    rewrite(folder / "config.json", attn_implementation="sdpa")
    loading.load_base(str(folder))
    bomb(folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x/y"}))
    refused(folder, "adapter_config.json")


@pytest.mark.usefixtures("safe")
def test_pickles_and_code_of_adapter_folders_are_not_run(tmp_path: Path, bomb: Callable[..., Path]) -> None:
    injection = inject(random_models.tiny("tiny:llama"), config("lora"))
    for name, write in (("lab", save_adapter), ("peft", to_peft)):
        write(injection, tmp_path / name, "tiny:llama")
        tensors = next((tmp_path / name).glob("*.safetensors"))
        tensors.unlink()
        for suffix in (".bin", ".pt", ".pkl"):
            bomb(tensors.with_suffix(suffix), plain=suffix == ".pkl")
        with pytest.raises((BadSpec, CannotConvert), match=r"adapter(_model)?\.bin, adapter(_model)?\.pkl"):
            load_adapter(random_models.tiny("tiny:llama"), tmp_path / name)
        bomb(tensors)  # in disguise
        with pytest.raises(LabError, match="cannot be read as safetensors"):
            load_adapter(random_models.tiny("tiny:llama"), tmp_path / name)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "x.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'it-ran')!r})\n")
    fields = {"model_type": "x", "auto_map": {"AutoConfig": "x.X", "AutoModelForCausalLM": "x.X"}}
    (tmp_path / "base" / "config.json").write_text(json.dumps(fields))
    rewrite(tmp_path / "lab" / "adapter.json", base=str(tmp_path / "base"), trust_remote_code=True)
    done = CliRunner().invoke(app, ["export", str(tmp_path / "lab"), str(tmp_path / "out")])
    assert done.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("safe")
@pytest.mark.parametrize("name", ["test.pkl", "test.pt", "test.bin", "test.zip", "test.tar", "test.json.gz"])
def test_only_text_formats_are_read_as_data(name: str, tmp_path: Path, bomb: Callable[..., Path]) -> None:
    place = tmp_path / "boolq"
    place.mkdir()
    bomb(place / name, plain=True)
    with pytest.raises(BadSpec, match="neither a file that ends in"):
        get_task(f"own:{place / name}")
    for task in ("boolq", "boolq-official"):
        with pytest.raises(DataUnavailable):
            get_task(task).load("test", tmp_path)
    for suffix in (".json", ".jsonl", ".csv", ".parquet"):
        shutil.copy(place / name, place / f"test{suffix}")
        with pytest.raises(BadRow):
            get_task(f"own:{place}/test{suffix}").load("test", None)


def test_a_folder_is_not_taken_for_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(BadSpec, match="owner/name is a folder here"):
        get_task("own:owner/name").load("test", None)
    for name in ("own:../x", "own:~/x", "own:/x", "own:./x", "own:a/b\n"):
        with pytest.raises(BadSpec, match="neither a file"):
            get_task(name)


NAMES = [
    "../x",
    "..",
    "/etc",
    "a/../../x",
    "a\x00b",
    "a\nb",
    "con",
    "",
    ".",
    "x" * 5000,
    "~",
    "\ud800",
    "C:\\x",
    "nul.",
]


@pytest.mark.parametrize("name", NAMES)
def test_run_names_stay_in_the_root(name: str, tmp_path: Path) -> None:
    root = tmp_path / "inner" / "runs"
    make_run(tmp_path, None, {"a": 1}).folder.rename(tmp_path / "inner-x")
    (tmp_path / ".processes").mkdir()
    (tmp_path / ".processes" / "x.spec.json").write_text("{}")
    root.mkdir(parents=True)
    for ask in (find_run, spec_of):
        with pytest.raises(BadSpec):
            ask(name, root)
    for command in ("show", "rescore", "rerun", "report"):
        done = CliRunner().invoke(app, [command, name, "--root", str(root)])
        assert done.exit_code == 2, done.exception
    assert os.listdir(root) == []


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("con", "nul.", "C:\\x")])
def test_paths_in_a_spec_are_not_written_to(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    good = {"adapter": "lora", "data": {"task": "mini-math"}}
    own = f"own:{name}/x.json"
    odd = ({"base": name}, {"adapter": {"type": name}}, {"data": {"task": own}}, {"data": {"task": name}})
    for fields in (*odd, {"data": {"task": "boolq", "root": name or "."}}):
        with pytest.raises(LabError):
            run(RunSpec.parse({**good, **fields}), root=tmp_path / "runs")
    assert os.listdir(tmp_path) == ["here"]
    assert os.listdir(tmp_path / "here") == []


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a b", "a\n", "ü", "x" * 65, ".", "<b>"])
def test_an_adapter_name_cannot_be_a_path(name: str) -> None:
    with pytest.raises(BadSpec, match="cannot be called"):
        register_adapter(name, config=AdapterConfig, at="q", source="")(Adapter)
    with pytest.raises(ValueError, match="There is no adapter"):
        RunSpec(adapter=AdapterConfig(type=name, at="q"))


def test_a_linked_folder_is_not_a_run(tmp_path: Path) -> None:
    spec = RunSpec.parse({"eval": {"tasks": ["mini-addsub"], "rows": 2, "max_new_tokens": 2}})
    elsewhere = make_run(tmp_path / "elsewhere", None, {"a": 1}).folder
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / spec.id).symlink_to(elsewhere)
    before = {file: file.read_bytes() for file in elsewhere.iterdir()}
    with pytest.raises(CannotWrite, match="is a symbolic link"):
        run(spec, root=tmp_path / "runs", fresh=True)
    with pytest.raises(BadSpec, match="no run"):
        find_run(spec.id, tmp_path / "runs")
    assert {file: file.read_bytes() for file in elsewhere.iterdir()} == before


@pytest.mark.parametrize("name", ["a\x00b", "a\nb.html", "x" * 5000 + ".html", "\x1b[2J", ""])
def test_output_paths_have_plain_names(name: str, tmp_path: Path) -> None:
    record = make_run(tmp_path / "runs", None, {"a": 1})
    with pytest.raises(BadSpec):
        report([record], tmp_path / name)
    for command in (["report", str(record.folder), "--out"], ["compare", str(record.folder), "--html"]):
        done = CliRunner().invoke(app, [*command, str(tmp_path / name)])
        assert done.exit_code == 2, done.exception
    for command in ("export", "merge"):
        done = CliRunner().invoke(app, [command, str(record.folder), str(tmp_path / name)])
        assert done.exit_code == 2, done.exception
    assert os.listdir(tmp_path) == ["runs"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "aliases are not allowed"),
        ("[" * 40_000, "nested too deeply"),
        ("seed: 1\nadapter: lora\nseed: 2", "'seed' is given twice"),
        ("adapter: {type: lora, rank: 2, rank: 3}", "'rank' is given twice"),
        ("base: " + "x" * 50_000_000, "longer than"),
        ("!!python/object/apply:os.mkdir [it-ran]", "could not determine a constructor"),
        ("seed: !!python/name:os.system", "could not determine a constructor"),
    ],
)
def test_malicious_yaml_is_refused(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(BadSpec, match=message):
        RunSpec.load("spec.yaml")
    assert time.process_time() - began < 5
    if len(text) < 1000:
        done = CliRunner().invoke(app, ["run", "nano-lora", "--set", f"base={text}"])
        assert done.exit_code == 2
    assert os.listdir(tmp_path) == ["spec.yaml"]


def test_payloads_are_escaped_in_html_and_figures(tmp_path: Path) -> None:
    links = (
        f"{HOSTILE} [x](javascript:alert(1)) <a href='javascript:alert(2)'>y</a> **bold** </pre><style>*{{}}</style>"
    )
    runs = [
        make_run(tmp_path, None, {links: 1}, text=links),
        make_run(tmp_path, {"type": "lora"}, {links: 2}, text=links),
    ]
    runs[1].write("summary.json", runs[1].summary | {"environment": {links: links}, "leaks": {links: None}})
    page = Page(report(runs, tmp_path / "r.html").read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.elements]
    assert not {"img", "a", "b", "iframe"} & set(tags)
    assert tags.count("style") == 1
    assert not [
        name for _, attributes in page.elements for name in attributes if name.startswith("on") or name == "href"
    ]
    assert "[x](javascript:alert(1)) <a href='javascript:alert(2)'>y</a> **bold**" in page.text
    figure = plots.accuracy(*runs).to_json()
    assert figure is not None
    assert "<img" not in figure
    assert "<a " not in figure


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    record = make_run(tmp_path, {"type": "lora"}, {ESCAPES: 3}, text=ESCAPES)
    other = make_run(tmp_path, None, {ESCAPES: 2}, text=ESCAPES)
    record.write("summary.json", record.summary | {"leaks": {ESCAPES: {"exact": 5, "total": 9}}})
    both = [str(record.folder), str(other.folder)]
    for command in (["show", both[0]], ["compare", *both, "--items"], ["list", "--root", str(tmp_path)], ["tasks"]):
        for more in ([], ["--json"]):
            done = CliRunner().invoke(app, [*command, *more], color=True)
            assert done.exit_code == 0, done.exception
            assert not set(done.output) & set("\x1b\x07\r\x9b\u202e")
            if command[0] != "tasks":
                assert "[bold]loud" in done.output
    done = CliRunner().invoke(app, ["run", "x.yaml" + ESCAPES])
    assert done.exit_code == 2
    assert not set(done.output) & set("\x1b\x07\r\x9b\u202e")


def test_progress_does_not_interpret_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from llm_adapters_lab.cli.console import Progress
    from llm_adapters_lab.events import Noticed, Scoring

    for environment in ({}, {"FORCE_COLOR": "1", "TERM": "dumb"}):
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        with Progress() as progress:
            progress(Noticed(ESCAPES))
            progress(Scoring(f"own:{ESCAPES}", 1, 2))
        assert "[bold]loud[/bold]" in capsys.readouterr().out


SECRETS = {
    "HF_TOKEN": "hf_verysecret",
    "AWS_SECRET_ACCESS_KEY": "aws-verysecret",
    "USER": "jane-q",
    "LOGNAME": "jane-q",
}


@pytest.mark.slow
def test_records_logs_and_reports_hold_nothing_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home" / "jane-q"
    (home / "data").mkdir(parents=True)
    rows = [{"instruction": f"{n} + 1 ?", "answer": str(n + 1)} for n in range(4)]
    (home / "data" / "mine.json").write_text(json.dumps(rows))
    shutil.copytree(NANO, home / "base")
    for key, value in {**SECRETS, "HOME": str(home)}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(privacy, "HOME", str(home))
    name = f"own:{home}/data/mine.json?form=number"
    fields: dict[str, Any] = {"base": str(home / "base"), "adapter": "lora", "data": {"task": name, "root": str(home)}}
    fields |= {"train": {"batch": 2, "max_steps": 1}, "eval": {"tasks": [name], "rows": 2, "max_new_tokens": 2}}
    good, bad = RunSpec.parse(fields), RunSpec.parse({**fields, "eval": {"tasks": [name], "shots": 3}})
    assert good.base == "~/base"
    assert good.id == RunSpec.parse(good.model_dump(mode="json")).id
    root = tmp_path / "runs"
    for spec in (good, bad):
        for _ in follow(launch(spec, root)):
            pass
    assert Run(root / good.id).done
    report([Run(root / good.id)], tmp_path / "runs" / "report.html")
    files = [file for file in root.rglob("*") if file.is_file()]
    assert len(files) > 12
    for file in files:
        content = file.read_bytes()
        for private in (*SECRETS.values(), str(home)):
            assert private.encode() not in content, file


def test_only_the_home_folder_becomes_a_tilde() -> None:
    home = privacy.HOME
    assert home
    assert privacy.tilde(f"{home}/x") == "~/x"
    assert privacy.tilde(f"own:{home}/x.csv") == "own:~/x.csv"
    for other in (f"{home}-x/y", f"/other{home}/x", "x", "own:x.csv", ""):
        assert privacy.tilde(other) == other
    assert privacy.without_home(f'File "{home}/a.py" and {home}x') == f'File "~/a.py" and {home}x'


def test_a_sound_sharded_folder_is_loaded(tmp_path: Path) -> None:
    """The check of file names accepts a sharded folder as transformers writes it."""
    base = loading.load_base("nano")
    base.model.save_pretrained(tmp_path, max_shard_size="1MB")
    base.tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert loading.load_base(str(tmp_path)).model.num_parameters() == base.model.num_parameters()


def test_data_files_are_never_written(tmp_path: Path) -> None:
    rows = [{"instruction": "1 + 1 ?", "answer": "2"}] * 2
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    (tmp_path / "mine.json").chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        before = (tmp_path / "mine.json").stat().st_mtime_ns
        name = f"own:{tmp_path}/mine.json"
        assert len(read_rows(RunSpec.parse({"eval": {"tasks": [name]}})).test[name]) == 2
        assert os.listdir(tmp_path) == ["mine.json"]
        assert (tmp_path / "mine.json").stat().st_mtime_ns == before
    finally:
        tmp_path.chmod(0o755)


def test_a_spec_survives_a_round_trip_through_yaml() -> None:
    fields = {"adapter": {"type": "prompt-tuning", "init": "text", "init_text": "2001-01-01: *a &b !!x"}}
    spec = RunSpec.parse(fields)
    from llm_adapters_lab.config import read_yaml

    assert RunSpec.parse(read_yaml(yaml.safe_dump(spec.model_dump(mode="json")))).id == spec.id


def test_metadata_of_saved_tensors_is_ignored(tmp_path: Path) -> None:
    """The metadata of a safetensors file is untrusted too."""
    injection = inject(random_models.tiny("tiny:llama"), config("lora"))
    save_adapter(injection, tmp_path)
    state = injection.state_dict()
    save_file(state, tmp_path / "adapter.safetensors", metadata={"format": HOSTILE, "code": "import os"})
    again = load_adapter(random_models.tiny("tiny:llama"), tmp_path).state_dict()
    assert all(torch.equal(again[key], state[key]) for key in state)
