"""The command line: output, JSON, and errors that come before anything is written."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from odd_models import family
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.runs import presets
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.spec import RunSpec


def lab(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def data(*arguments):
    result = lab(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(
        "base: nano\n"
        "adapter: {type: lora, rank: 4}\n"
        "data: {task: mini-addsub, rows: 16}\n"
        "train: {max_steps: 2, batch: 4}\n"
        "eval: {tasks: [mini-bool], rows: 8}\n"
    )
    return path


def test_help_in_a_process():
    done = subprocess.run([sys.executable, "-m", "llm_adapters_lab", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    commands = (
        "run",
        "list",
        "show",
        "compare",
        "report",
        "rescore",
        "sweep",
        "export",
        "merge",
        "adapters",
        "presets",
        "models",
    )
    for command in (*commands, "models", "tasks", "anatomy", "doctor"):
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("adapter.rnak=16", "'adapter.rnak' is not a known key. Did you mean 'rank'?"),
        ("trian.batch=4", "'trian' is not a known key. Did you mean 'train'?"),
        ("adapter.type=lorra", "There is no adapter 'lorra'. Did you mean 'lora' or"),
        ("adapter=housby", "There is no adapter 'housby'. Did you mean 'houlsby'"),
        ("adapter={type: houlsby, rank: 3}", "'adapter.rank' is not a known key."),
        ("data.task=mini-adsub", "There is no task 'mini-adsub'. Did you mean 'mini-addsub'"),
        ("eval.tasks=mini-bol", "There is no task 'mini-bol'. Did you mean 'mini-bool'"),
        ("eval.tasks=mini-math", "The task 'mini-math' has no test split"),
        ("base=nanno", "There is no model 'nanno'. Did you mean 'nano'"),
        ("base=./nowhere", "There is no model folder ./nowhere."),
        ("base=tiny:lama", "There is no tiny model 'lama'. Did you mean 'llama'"),
        ("adapter.at=qq", "names 'qq', which is not a role. Did you mean 'q'"),
        ("adapter.at=qkv", "The placement 'qkv' matches no site of this model."),
        ("adapter.at=q@99", "names layers 99, but the model has layers 0 to"),
        ("adapter.rank=0", "adapter.rank must be a whole number from 1 to 4096; given was 0."),
        ("train.learning_rate=-1", "train.learning_rate must be a number greater than 0 and at most 10; given was -1."),
        ("train.micro_batch=3", "batch 4 is not a multiple of micro_batch 3."),
        ("adapter.rank", "--set 'adapter.rank' is not of the form key=value"),
        ("adapter.rank=[1", "cannot be read as YAML"),
        ("data.task.name=boolq", "'data.task.name' cannot be set: 'task' is 'mini-addsub', not a group of keys."),
    ],
)
def test_a_wrong_spec_is_refused_and_leaves_no_folder(spec, tmp_path, change, message):
    # Sites need a model, but no weights: the skeleton of a tiny one is enough.
    tiny = ["--set", "base=tiny:llama"] if "adapter.at" in change else []
    result = lab("run", spec, *tiny, "--set", change, "--root", tmp_path / "runs")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "runs").exists()


def test_a_base_without_tokenizer_is_refused(spec, tmp_path):
    result = lab("run", spec, "--set", "base=tiny:llama", "--root", tmp_path / "runs")
    assert result.exit_code == 2
    assert "has no tokenizer" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_errors_in_a_process(tmp_path):
    command = [sys.executable, "-m", "llm_adapters_lab", "run", tmp_path / "nowhere.yaml", "--root", tmp_path / "runs"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: There is no spec file {tmp_path / 'nowhere.yaml'}.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["base: [", "- nano", "", "\udcff"])
def test_an_unreadable_spec_is_refused(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_text(content, errors="surrogateescape")
    result = lab("run", path, "--root", tmp_path / "runs")
    assert result.exit_code == 2
    assert str(path) in result.stderr.replace("\n", "")


def test_run_show_list_and_compare(spec, tmp_path):
    root = ("--root", tmp_path / "runs")
    assert "There are no runs" in lab("list", *root).stdout
    first = lab("run", spec, *root)
    assert first.exit_code == 0
    for text in ("trainable parameters", "training 2/2  loss", "scoring mini-bool 8/8", "95 % interval", "run: "):
        assert text in first.stdout
    again = lab("run", spec, *root)
    assert "is finished already" in again.stdout
    assert "training 2/2" not in again.stdout

    summary = data("run", spec, *root)
    assert summary["status"] == "finished"
    assert summary["scores"]["mini-bool"]["total"] == 8
    assert summary["train"]["steps"] == 2
    wide = data("run", spec, "--set", "adapter.rank=8", "--set", "train.learning_rate=1e-3", *root)
    assert wide["trainable_parameters"] == 2 * summary["trainable_parameters"]

    assert {row["id"] for row in data("list", *root)} == {summary["id"], wide["id"]}
    assert summary["id"] in lab("list", *root).stdout
    shown = data("show", summary["id"], *root)
    assert shown["summary"] == summary
    assert shown["spec"]["adapter"]["rank"] == 4
    assert data("show", spec, *root) == shown
    assert data("show", shown["folder"]) == shown
    assert "rank: 4" in lab("show", spec, *root).stdout

    rows = data("compare", summary["id"], wide["id"], *root)["rows"]
    assert [row["run"] for row in rows] == [summary["id"], wide["id"]]
    page = tmp_path / "new" / "report.html"
    result = lab("compare", spec, wide["id"], *root, "--html", page)
    assert str(page) in result.stdout
    assert "mini-bool" in page.read_text(encoding="utf-8")
    assert str(page) in lab("report", summary["id"], *root, "--out", page).stdout
    assert wide["id"] not in page.read_text(encoding="utf-8")


def test_fresh_runs_again(spec, tmp_path):
    spec.write_text(spec.read_text().replace("{type: lora, rank: 4}", "null"))
    root = ("--root", tmp_path / "runs")
    assert lab("run", spec, *root).exit_code == 0
    assert "scoring mini-bool 8/8" in lab("run", spec, "--fresh", *root).stdout


@pytest.mark.parametrize("command", ["show", "compare", "report"])
def test_an_unknown_run_is_refused(tmp_path, command):
    result = lab(command, "nothing", "--root", tmp_path)
    assert result.exit_code == 2
    assert "There is no run 'nothing'" in result.stderr


def test_adapters():
    text = lab("adapters").stdout
    for name in ("lora", "series", "parallel", "prefix"):
        assert f"\n{name} " in text
    listed = {row["name"]: row for row in data("adapters")}
    assert {"at": "q,v", "source": "arXiv:2106.09685", "expands_to": None}.items() <= listed["lora"].items()


def test_adapters_lists_presets():
    text = lab("adapters").stdout
    assert re.search(r"\nhoulsby +type: series, at: attn\+mlp, bottleneck: 64, ", text)
    assert "scaling: 4.0" in text
    assert text.index("\nseries ") < text.index("Presets") < text.index("\nhoulsby ")
    listed = {row["name"]: row for row in data("adapters")}
    assert listed["houlsby"]["expands_to"]["nonlinearity"] == "gelu"
    assert {"at": "attn+mlp", "source": "arXiv:1902.00751"}.items() <= listed["houlsby"].items()
    assert listed["rslora"]["at"] == "q,v"


def test_fields_of_a_preset():
    text = lab("adapters", "houlsby").stdout
    assert "houlsby: Series bottlenecks" in text
    assert "expands to: type: series, at: attn+mlp" in text
    shown = data("adapters", "houlsby")
    assert shown["expands_to"] == {
        "type": "series",
        "at": "attn+mlp",
        "bottleneck": 64,
        "nonlinearity": "gelu",
        "bias": True,
    }
    fields = {field["field"]: field["default"] for field in shown["fields"]}
    assert (fields["type"], fields["bottleneck"], fields["dropout"]) == ("series", 64, 0.0)


def test_presets():
    assert "paper/llama-7b-lora" in lab("presets").stdout
    listed = data("presets")
    (found,) = [preset for preset in listed if preset["name"] == "paper/gpt-j-6b-lora"]
    assert found["source"] == "arXiv:2304.01933"
    text = lab("presets", "paper/llama-7b-lora").stdout
    assert text.startswith("# LoRA on LLaMA-7B")
    assert yaml.safe_load(text) == data("presets", "paper/llama-7b-lora")["fields"]
    unknown = lab("presets", "llama-7b-lora")
    assert unknown.exit_code == 2
    assert "Did you mean 'paper/llama-7b-lora'" in unknown.stderr


def test_a_preset_is_found_by_name_where_there_is_no_such_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = ("data.task=mini-math", "eval.tasks=mini-bool", "base=tiny:llama")
    tiny = (*(part for change in changes for part in ("--set", change)), "--root", tmp_path / "runs")
    assert "has no tokenizer" in lab("run", "paper/llama-7b-lora", *tiny).stderr
    Path("paper").mkdir()
    Path("paper/llama-7b-lora").write_text("base: [")
    assert "cannot be read" in lab("run", "paper/llama-7b-lora", *tiny).stderr
    unknown = lab("run", "paper/llama-7b-lra", *tiny)
    assert unknown.exit_code == 2
    assert "There is no spec file paper/llama-7b-lra." in unknown.stderr
    assert "Did you mean 'paper/llama-7b-lora'" in unknown.stderr
    Path("taken").write_text("")
    assert "There is no spec file taken/x." in lab("run", "taken/x").stderr


def test_a_run_of_a_preset_is_shown_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "quick.yaml").write_text("# A bare base. Source: here\neval: {tasks: [mini-bool], rows: 4}\n")
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    presets.spec_presets.cache_clear()
    try:
        done = data("run", "quick", "--root", tmp_path / "runs")
        assert data("show", "quick", "--root", tmp_path / "runs")["id"] == done["id"]
        assert data("run", "quick", "--set", "eval.rows=2", "--root", tmp_path / "runs")["id"] != done["id"]
    finally:
        presets.spec_presets.cache_clear()


def test_the_name_of_an_adapter_preset_can_be_set(spec, tmp_path):
    spec.write_text(spec.read_text().replace("{type: lora, rank: 4}", "{type: lora}"))
    root = ("--root", tmp_path / "runs")
    quick = ("--set", "train.max_steps=1", "--set", "eval.rows=2", *root)
    first = data("run", spec, "--set", "adapter=houlsby", "--set", "adapter.bottleneck=8", *quick)
    assert first["id"].startswith("nano-series-")
    second = data("run", spec, "--set", "adapter.type=houlsby", "--set", "adapter.bottleneck=8", *quick)
    assert second["id"] == first["id"]
    fields = "adapter={type: series, at: attn+mlp, bottleneck: 8, nonlinearity: gelu, bias: true}"
    assert data("run", spec, "--set", fields, *quick)["id"] == first["id"]


def test_fields_of_an_adapter():
    fields = {field["field"]: field for field in data("adapters", "lora")["fields"]}
    assert fields["rank"] == {
        "field": "rank",
        "type": "int",
        "default": 8,
        "bounds": ">= 1, <= 4096",
        "description": "rank r of the update",
    }
    assert fields["init"]["type"] == "kaiming | gaussian | pissa | olora"
    text = lab("adapters", "lora").stdout
    assert "usual placement: q,v" in text
    assert "rank r of the update" in text
    unknown = lab("adapters", "lorra")
    assert unknown.exit_code == 2
    assert "Did you mean 'lora' or" in unknown.stderr


def test_models():
    text = lab("models").stdout
    assert "smollm2-135m" in text
    assert "tiny:gpt2" in text
    listed = data("models")
    assert "nano" in listed["packaged"]
    assert "tiny:llama" in listed["tiny"]


def test_tasks():
    listed = {task["name"]: task for task in data("tasks")}
    assert listed["boolq"]["answer"] == "true | false"
    assert listed["gsm8k"]["answer"] == "number"
    assert listed["math10k"]["splits"] == "train"
    assert listed["alpaca"]["answer"] == "any text"
    assert listed["arc-e-official"]["source"].endswith("allenai/ai2_arc")
    text = lab("tasks").stdout
    assert "mini-math" in text
    assert "own:FILE" in text


def test_anatomy_collapses_like_layers():
    text = lab("anatomy", "tiny:llama").stdout
    assert "tiny:llama: 2 layers, hidden size 32" in text
    assert "layers 0-1" in text
    assert "gate     mlp.gate_proj  32 -> 64" in text
    assert "●" not in text
    assert text.count("q_proj") == 1


def test_anatomy_marks_what_a_placement_selects():
    text = lab("anatomy", "tiny:llama", "--at", "v@1").stdout
    assert "● v        self_attn.v_proj  32 -> 16" in text
    assert "selected by 'v@1': 1 site\n" in text
    assert text.count("q_proj") == 2
    assert "layer 0" in text


def test_anatomy_draws_experts_once(tmp_path):
    family("jamba").save_pretrained(tmp_path)
    text = lab("anatomy", str(tmp_path), "--at", "experts?").stdout
    for line in (
        "ssm      mamba.out_proj  32 -> 32",
        "● experts.gate_up ×4 feed_forward.experts.gate_up_proj.*  32 -> 128",
        "  router             feed_forward.router.weight  32 -> 4",
        "selected by 'experts?': 8 sites",
    ):
        assert line in text
    assert text.count("×4") == 2


def test_a_dry_run_of_a_mixture_says_that_its_memory_is_unknown(spec):
    result = lab("run", spec, "--dry-run", "--set", "base=nano-moe", "--set", "adapter.at=q,experts.down")
    assert result.exit_code == 0 and "q@0-3 (4) + experts.down@0-3 (16)" in result.stdout
    assert "memory cannot be estimated beforehand" in result.stdout + result.stderr


def test_anatomy_as_data():
    found = data("anatomy", "tiny:gpt2", "--at", "q")
    assert found["hidden"] == 32
    assert found["layers"] == ["transformer.h.0", "transformer.h.1"]
    assert found["selected"] == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    site = next(s for s in found["sites"] if s["key"] == found["selected"][0])
    assert (site["role"], site["d_in"], site["d_out"], site["layer"]) == ("qkv", 32, 96, 0)
    assert data("anatomy", "tiny:gpt2")["selected"] is None


def test_anatomy_reads_a_placement_as_an_adapter_does():
    assert len(data("anatomy", "tiny:llama", "--at", "mlp")["selected"]) == 6
    assert len(data("anatomy", "tiny:llama", "--adapter", "parallel-qkv")["selected"]) == 6
    assert len(data("anatomy", "tiny:llama", "--adapter", "houlsby", "--at", "mlp")["selected"]) == 2
    assert data("anatomy", "tiny:llama", "--adapter", "series")["selected"] == [
        "model.layers.0.mlp.down_proj:mlp",
        "model.layers.1.mlp.down_proj:mlp",
    ]


def test_anatomy_refuses_what_it_cannot_do():
    for arguments in (["tiny:llama", "--at", "qkv"], ["tiny:llama", "--at", "zz"], ["tiny:nothing"]):
        result = lab("anatomy", *arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")


def test_a_run_of_another_version_does_not_hide_the_others(tmp_path):
    for name, content in (("old", '{"base": "nano", "momentum": 1}'), ("torn", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "spec.json").write_text(content)
    rows = json.loads(lab("list", "--root", str(tmp_path), "--json").stdout)
    assert {(row["id"], row["status"]) for row in rows} == {("old", "unreadable"), ("torn", "unreadable")}
    shown = lab("show", "old", "--root", str(tmp_path))
    assert shown.exit_code == 2
    assert "old/spec.json is not a spec this version understands: 'momentum' is not a known key" in shown.stderr


def test_doctor_says_what_is_chosen_here():
    chosen = {row["what"]: row for row in data("doctor")["choices"]}
    assert set(chosen) == {"device", "precision", "attention", "optimizer", "compile"}
    assert all(row["chosen"] and row["why"] for row in chosen.values())
    assert "AdamW, fused" in lab("doctor").stdout


def test_doctor_says_what_a_run_needs(spec):
    found = data("doctor", spec)
    assert {row["chosen"] for row in found["choices"] if row["what"].startswith("train.")} == {"on"}
    needed = found["memory"]
    assert needed["total"] == sum(needed[part] for part in ("weights", "adapter", "optimizer", "step"))
    more = data("doctor", spec, "--set", "train.batch=16", "--set", "adapter=prefix")
    reasons = {row["what"]: row["why"] for row in more["choices"]}
    assert reasons["train.packing"] == "prefix puts virtual tokens before every row"
    assert more["memory"]["step"] > 2 * needed["step"]
    assert "5.27 MB" in lab("doctor", spec).stdout
    bare = data("doctor", spec, "--set", "adapter=null")
    assert bare["memory"] is None
    assert 0 < bare["weights"] <= needed["weights"]  # without buffers


def test_a_merge_that_rounds_too_much_away_needs_round(spec, tmp_path):
    tiny = ("dtype=bf16", "eval.tasks=[]", "train.learning_rate=1e-5")
    run = data("run", spec, *(word for change in tiny for word in ("--set", change)), "--root", tmp_path)["id"]
    refused = lab("merge", run, tmp_path / "out", "--root", tmp_path)
    assert refused.exit_code == 2 and not (tmp_path / "out").exists()
    assert "of the adapter's ΔW survives" in refused.stderr and "--round" in refused.stderr
    done = lab("merge", run, tmp_path / "out", "--root", tmp_path, "--round")
    assert done.exit_code == 0 and (tmp_path / "out" / "model.safetensors").exists()
    assert re.search(r"[\d.]+ % of the adapter's ΔW survives rounding", done.stdout)


def test_what_falls_back_and_what_is_estimated_is_shown(spec, tmp_path, monkeypatch):
    monkeypatch.setattr("llm_adapters_lab.runs.training_phase.WORTH_IT", 0)
    changes = ("--set", "adapter={type: prefix}", "--set", "eval.tasks=[]")
    shown = lab("run", spec, *changes, "--root", tmp_path).stdout
    assert "train.packing: prefix puts virtual tokens before every row; computed without it." in shown
    assert re.search(r"memory of the training: about [\d.]+ MB \(weights 5.27 MB, ", shown)


def test_blend_makes_one_adapter_of_several(tmp_path):
    root = tmp_path / "runs"
    ids = [
        run(
            RunSpec.parse(
                {
                    "adapter": {"type": "series", "bottleneck": 4},
                    "data": {"task": "mini-math", "rows": 16},
                    "train": {"batch": 8, "max_steps": 2},
                    "eval": {"tasks": ["mini-bool"], "rows": 2},
                    "seed": seed,
                }
            ),
            root=root,
        ).id
        for seed in (0, 1)
    ]
    options = ["--root", str(root), "--out"]
    for number, more in enumerate(
        ([], ["--weights", "0.7,0.3"], ["--how", "align"], ["--how", "align", "--rows", "8"])
    ):
        result = lab("blend", *ids, *more, *options, str(tmp_path / f"out{number}"))
        assert result.exit_code == 0, result.output
        assert (tmp_path / f"out{number}" / "adapter.safetensors").is_file()
    for more, told in (
        (["--weights", "1"], "as many finite weights"),
        (["--rows", "3"], "--how align"),
        (["--weights", "a,"], "numbers"),
    ):
        result = lab("blend", *ids, *more, *options, str(tmp_path / "new"))
        assert result.exit_code == 2
        assert told in result.stderr
        assert not (tmp_path / "new").exists()
