"""The data panel shows what the model is trained on, and every exported form of a spec is the same run."""

import json
import re
import shlex
from pathlib import Path

import pytest

from llm_adapters_lab.errors import ModelUnavailable
from llm_adapters_lab.models import loading
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.presets import spec_presets
from llm_adapters_lab.runs.rows import read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import IGNORED, Sample, encode
from widgets.panels import spec_files
from widgets.panels.data_panel import DataPanel, contamination_warning, token_markup
from widgets.panels.spec_files import ExportPanel

ROOT = Path(__file__).parents[2]
KIND = "lora"
HOSTILE = "<img src=x onerror=alert(1)>"
SPECS = [
    RunSpec(),
    RunSpec.parse({"adapter": KIND, "seed": 3}),
    RunSpec.parse({"base": "o'w/n er", "adapter": {"type": KIND, "at": "q@0"}, "data": {"root": "a 'b' \"c\" \\ $d"}}),
    *(RunSpec.parse(preset.fields) for preset in spec_presets().values()),
]


def own(tmp_path, monkeypatch, rows):
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    return RunSpec.parse({"adapter": KIND, "data": {"task": "own:own.jsonl", "max_tokens": 64}})


def test_prompts_are_shown_as_the_model_sees_them():
    panel = DataPanel(RunSpec.parse({"adapter": KIND, "data": {"rows": 20}}))
    panel.preview.click()
    spec, tokenizer = panel.spec, Blueprint("nano").tokenizer
    train = read_rows(spec).train
    template = get_task(spec.data.task).template
    samples, left_out = encode(tokenizer, train, template, spec.data.max_tokens, "answer")
    assert not left_out.dropped
    for sample in samples[:3]:
        assert token_markup(tokenizer, sample) in panel.prompts.value
    assert token_markup(tokenizer, samples[3]) not in panel.prompts.value
    assert panel.prompts.value.count("masked") > 3 * 10
    (shown,) = panel.plot.outputs
    assert len(shown["data"]["application/vnd.plotly.v1+json"]["data"][0]["x"]) == 20
    assert not panel.warning.value


def test_shading_follows_the_labels():
    class Letters:
        """A minimal tokenizer that marks the start of words, like LLaMA's."""

        def decode(self, ids):
            return " \n<"[ids[0]].strip(" ")

        def convert_ids_to_tokens(self, token):
            return "▁\n<"[token]

    shown = token_markup(Letters(), Sample("x", (2, 0, 1, 2), (2, 0, IGNORED, 2)))
    boxes = re.findall(r'title="\d: ([a-z ]+)">(.*?)</span>', shown, re.S)
    # Nothing predicts the first token, so it is never in the loss.
    assert boxes == [("masked", "&lt;"), ("in the loss", " "), ("masked", "↵\n"), ("in the loss", "&lt;")]


def test_hostile_rows_are_escaped(tmp_path, monkeypatch):
    panel = DataPanel(own(tmp_path, monkeypatch, [{"instruction": HOSTILE, "answer": HOSTILE}] * 3))
    panel.preview.click()
    assert "<img" not in panel.prompts.value and panel.prompts.value


def test_long_rows_and_contamination_are_reported(tmp_path, monkeypatch):
    rows = [{"instruction": f"What is {n}?", "answer": "a b c " * n} for n in (1, 2, 500)]
    spec = own(tmp_path, monkeypatch, rows)
    panel = DataPanel(
        RunSpec.parse(
            {
                **spec.model_dump(),
                "eval": {"tasks": ["own:own.jsonl"]},
                "data": {"task": "own:own.jsonl", "max_tokens": 200},
            }
        )
    )
    panel.preview.click()
    assert "Of 3 training rows: 1 longer than data.max_tokens, dropped; 3 with a question" in panel.warning.value
    assert "3 of 3 test rows are in the training data verbatim" in panel.warning.value
    panel.form.controls["max_tokens"].entry.value = "8"
    assert not panel.warning.value and not panel.plot.outputs
    panel.preview.click()
    assert "All 3 training rows are longer than data.max_tokens = 8" in panel.warning.value and panel.prompts.value
    assert contamination_warning("t", {"exact": 0, "ngram": 0, "total": 5}) == ""


@pytest.mark.parametrize("task", ["own:missing.jsonl", "own:x.exe", "nothing", HOSTILE, ""])
def test_a_bad_task_is_reported(task):
    panel = DataPanel(RunSpec.parse({"adapter": KIND}))
    panel.form.controls["task"].entry.value = task
    panel.preview.click()
    assert panel.warning.value and "<img" not in panel.warning.value + panel.form.errors["task"].value


def test_a_bare_base_and_a_random_model_have_no_preview():
    for spec in (RunSpec(), RunSpec.parse({"base": "tiny:llama", "adapter": KIND})):
        panel = DataPanel(spec)
        panel.preview.click()
        assert "✗" in panel.warning.value


def test_the_form_changes_the_spec():
    panel, heard = DataPanel(RunSpec(seed=4)), []
    panel.observe(lambda panel: heard.append(panel.spec))
    panel.form.controls["rows"].entry.value = "9"
    assert panel.spec == heard[-1] == RunSpec.parse({"seed": 4, "data": {"rows": 9}})
    panel.form.controls["rows"].entry.value = "0"
    assert panel.spec is None
    panel.spec = SPECS[1]
    assert panel.spec == SPECS[1]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.id)
def test_every_form_is_the_same_run(spec, tmp_path):
    widget = ExportPanel(spec, tmp_path)
    widget.save.click()
    file = tmp_path / spec_files.file_name(spec)
    assert widget.texts["YAML"].value == file.read_text(encoding="utf-8")
    assert RunSpec.load(file) == spec

    namespace = {}
    lines = widget.texts["Python"].value.removesuffix("record = run(spec)\n")
    exec(lines, namespace)
    assert namespace["spec"].id == spec.id

    words = shlex.split(widget.texts["CLI"].value)
    assert words[:4] == ["python", "-m", "llm_adapters_lab", "run"]
    assert RunSpec.load(tmp_path / words[4]).id == spec.id

    words = shlex.split(widget.texts["papermill"].value)
    given = namespace["RunSpec"].load(tmp_path / words[words.index("-f") + 1])
    cells = json.loads((ROOT / words[1]).read_text(encoding="utf-8"))["cells"]
    defaults = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", ()))
    exec(defaults, parameters := {})
    import yaml

    parameters |= yaml.safe_load(file.read_text(encoding="utf-8"))
    assert given.id == RunSpec.parse({name: parameters[name] for name in RunSpec.model_fields}).id == spec.id


def test_a_file_that_cannot_be_written_is_reported(tmp_path):
    widget = ExportPanel(SPECS[1], tmp_path / "none")
    widget.save.click()
    assert "✗" in widget.status.value
    widget.spec = None
    assert widget.save.disabled and not any(text.value for text in widget.texts.values())


def test_a_tokenizer_loads_without_weights():
    assert Blueprint("tiny:llama").tokenizer is None
    assert Blueprint("nano").tokenizer.eos_token_id == loading.load_base("nano").tokenizer.eos_token_id
    with pytest.raises(ModelUnavailable, match="no-such"):
        Blueprint("no-such").tokenizer  # noqa: B018
