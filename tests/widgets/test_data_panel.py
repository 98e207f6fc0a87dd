"""The data panel and the texts that hand a run over: what is shown is learnt, what is copied is the same run."""

import json
import re
import shlex
from pathlib import Path

import pytest

from llm_adapters_lab.core.registry import all_adapters
from llm_adapters_lab.errors import ModelUnavailable
from llm_adapters_lab.models import loading
from llm_adapters_lab.runs.presets import spec_presets
from llm_adapters_lab.runs.rows import read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import IGNORED, Sample, encode
from widgets.panels import reproduce_panel as hand_over
from widgets.panels.data_panel import Data, leak_words, tokens
from widgets.panels.reproduce_panel import HandOver

ROOT = Path(__file__).parents[2]
KIND = next(name for name, entry in all_adapters().items() if entry.at == "q,v")
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
    panel = Data(RunSpec.parse({"adapter": KIND, "data": {"rows": 20}}))
    panel.look.click()
    spec, tokenizer = panel.spec, loading.tokenizer("nano")
    train = read_rows(spec).train
    template = get_task(spec.data.task).template
    samples, left_out = encode(tokenizer, train, template, spec.data.max_tokens, "answer")
    assert not left_out
    for sample in samples[:3]:
        assert tokens(tokenizer, sample) in panel.prompts.value
    assert tokens(tokenizer, samples[3]) not in panel.prompts.value
    assert panel.prompts.value.count("not learnt") > 3 * 10
    (shown,) = panel.plot.outputs
    assert len(shown["data"]["application/vnd.plotly.v1+json"]["data"][0]["x"]) == 20
    assert not panel.warning.value


def test_shading_follows_the_labels():
    class Letters:
        """Enough of a tokenizer that writes words with a leading mark, as that of LLaMA does."""

        def decode(self, ids):
            return " \n<"[ids[0]].strip(" ")

        def convert_ids_to_tokens(self, token):
            return "▁\n<"[token]

    shown = tokens(Letters(), Sample("x", (2, 0, 1, 2), (2, 0, IGNORED, 2)))
    boxes = re.findall(r'title="\d: ([a-z ]+)">(.*?)</span>', shown, re.S)
    # Nothing is predicted before the first token, so it is never learnt.
    assert boxes == [("not learnt", "&lt;"), ("learnt", " "), ("not learnt", "↵\n"), ("learnt", "&lt;")]


def test_hostile_rows_are_text(tmp_path, monkeypatch):
    panel = Data(own(tmp_path, monkeypatch, [{"instruction": HOSTILE, "answer": HOSTILE}] * 3))
    panel.look.click()
    assert "<img" not in panel.prompts.value and panel.prompts.value


def test_rows_too_long_and_leaks_are_told(tmp_path, monkeypatch):
    rows = [{"instruction": f"What is {n}?", "answer": "a b c " * n} for n in (1, 2, 500)]
    spec = own(tmp_path, monkeypatch, rows)
    panel = Data(
        RunSpec.parse(
            {
                **spec.model_dump(),
                "eval": {"tasks": ["own:own.jsonl"]},
                "data": {"task": "own:own.jsonl", "max_tokens": 200},
            }
        )
    )
    panel.look.click()
    assert "1 of the 3 rows are longer" in panel.warning.value
    assert "3 of 3 test rows are in the training data word for word" in panel.warning.value
    panel.form.controls["max_tokens"].entry.value = "8"
    assert not panel.warning.value and not panel.plot.outputs
    panel.look.click()
    assert "All 3 rows are longer than data.max_tokens = 8" in panel.warning.value and panel.prompts.value
    assert leak_words("t", {"exact": 0, "ngram": 0, "total": 5}) == ""


@pytest.mark.parametrize("task", ["own:missing.jsonl", "own:x.exe", "nothing", HOSTILE, ""])
def test_a_bad_task_is_told(task):
    panel = Data(RunSpec.parse({"adapter": KIND}))
    panel.form.controls["task"].entry.value = task
    panel.look.click()
    assert panel.warning.value and "<img" not in panel.warning.value + panel.form.errors["task"].value


def test_a_bare_base_and_a_random_model_are_told():
    for spec in (RunSpec(), RunSpec.parse({"base": "tiny:llama", "adapter": KIND})):
        panel = Data(spec)
        panel.look.click()
        assert "✗" in panel.warning.value


def test_the_form_changes_the_spec():
    panel, heard = Data(RunSpec(seed=4)), []
    panel.observe(lambda panel: heard.append(panel.spec))
    panel.form.controls["rows"].entry.value = "9"
    assert panel.spec == heard[-1] == RunSpec.parse({"seed": 4, "data": {"rows": 9}})
    panel.form.controls["rows"].entry.value = "0"
    assert panel.spec is None
    panel.spec = SPECS[1]
    assert panel.spec == SPECS[1]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.id)
def test_every_form_is_the_same_run(spec, tmp_path):
    widget = HandOver(spec, tmp_path)
    widget.save.click()
    file = tmp_path / hand_over.file_name(spec)
    assert widget.texts["YAML"].value == file.read_text(encoding="utf-8")
    assert RunSpec.load(file) == spec

    namespace = {}
    lines = widget.texts["Python"].value.removesuffix("record = run(spec)\n")
    exec(lines, namespace)
    assert namespace["spec"].id == spec.id

    words = shlex.split(widget.texts["command line"].value)
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


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    widget = HandOver(SPECS[1], tmp_path / "none")
    widget.save.click()
    assert "✗" in widget.said.value
    widget.spec = None
    assert widget.save.disabled and not any(text.value for text in widget.texts.values())


def test_a_tokenizer_comes_without_weights():
    assert loading.tokenizer("tiny:llama") is None
    assert loading.tokenizer("nano").eos_token_id == loading.load_base("nano").tokenizer.eos_token_id
    with pytest.raises(ModelUnavailable, match="no-such"):
        loading.tokenizer("no-such")
