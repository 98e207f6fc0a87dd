"""The data panel shows what the model is trained on, and every exported form of a spec is the same run."""

import html
import json
import re
import shlex
from pathlib import Path

import chat_templates as chat
import pytest

from llm_adapters_lab.errors import ModelUnavailable
from llm_adapters_lab.models import loading
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.presets import spec_presets
from llm_adapters_lab.runs.rows import read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.encoding import encode
from llm_adapters_lab.tasks.formats import get_format
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import IGNORED, Sample
from widgets.figures.row_view import RowView
from widgets.panels import spec_files
from widgets.panels.data_panel import VIEWS, DataPanel, contamination_warning
from widgets.panels.spec_files import ExportPanel

ROOT = Path(__file__).parents[2]
KIND = "lora"
HOSTILE = "<img src=x onerror=alert(1)>"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }}</s>{% endfor %}\n"
    "{%- if add_generation_prompt %}assistant {% endif %}"
)
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


def chat_spec(tmp_path, monkeypatch, rows, **data):
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    data = {"task": "own:own.jsonl", "template": TEMPLATE, **data}
    train = {"objective": "dpo"} if "rejected" in rows[0] else {}
    return RunSpec.parse({"adapter": KIND, "data": data, "train": train})


def turns(*said):
    """Turns from ``role: text``."""
    return [dict(zip(("role", "content"), text.split(": ", 1), strict=True)) for text in said]


def shown_turns(markup):
    """Return class, heading and text of every bubble."""
    found = re.findall(
        r'lab-turn (lab-[a-z]+)[^"]*"><div class="lab-role">(.*?)</div>(.*?)(?=<div class="lab-turn|$)', markup, re.S
    )
    return [(css, text_of(head), text_of(body)) for css, head, body in found]


def text_of(markup):
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def chips(markup):
    """Return the text of every token with whether it is learnt and a control token, and whether it is marked."""
    found = re.findall(r'(<mark>)?<span class="(lab-token[^"]*)" title="([^"]*)">(.*?)</span>', markup, re.S)
    return [
        (html.unescape(text), "lab-masked" not in css, "lab-control" in css, bool(mark)) for mark, css, _, text in found
    ]


def test_prompts_are_shown_as_the_model_sees_them():
    panel = DataPanel(RunSpec.parse({"adapter": KIND, "data": {"rows": 20}}))
    assert panel.prompts.value == panel.place.value == ""
    panel.preview.click()
    spec, tokenizer = panel.spec, Blueprint("nano").tokenizer
    samples, left_out = encode(
        tokenizer, read_rows(spec).train, get_task(spec.data.task).template, spec.data.max_tokens, "answer"
    )
    assert not left_out.dropped

    def expect(first, last):
        ids = [int(i) for i in re.findall(r'title="(\d+): ', panel.prompts.value)]
        assert ids == [i for sample in samples[first:last] for i in sample.ids]
        learnt = sum(learnt for _, learnt, _, _ in chips(panel.prompts.value))
        assert learnt == sum(sample.counted for sample in samples[first:last])

    expect(0, 3)
    assert (
        f"{samples[0].counted} of {len(samples[0].ids)} tokens are learnt; end token learnt: &lt;/s&gt;"
        in panel.prompts.value
    )
    assert "rows 1–3 of 20" in panel.place.value and panel.back.disabled
    assert "Template: qa, plain. Learnt: the answers." in panel.template.value
    panel.forward.click()
    expect(3, 6)
    assert "rows 4–6 of 20" in panel.place.value and not panel.back.disabled
    for _ in range(9):
        panel.forward.click()
    assert "row 20 of 20" in panel.place.value and panel.forward.disabled
    panel.back.click()
    expect(16, 19)
    (shown,) = panel.plot.outputs
    assert len(shown["data"]["application/vnd.plotly.v1+json"]["data"][0]["x"]) == 20
    assert not panel.warning.value


def test_shading_follows_the_labels():
    tokenizer = chat.tokenizer("smollm2")
    ids = tuple(tokenizer("a\nb<|im_end|>c", add_special_tokens=False)["input_ids"])
    sample = Sample("x", ids, (ids[0], IGNORED, ids[2], ids[3], IGNORED))
    (shown,) = RowView(get_format(tokenizer, "plain")).documents(sample)
    # Nothing predicts the first token, so it is never in the loss.
    expected = [("a", False, False), ("↵\n", False, False), ("b", True, False), ("<|im_end|>", True, True)]
    assert [chip[:3] for chip in chips(shown)] == [*expected, ("c", False, False)]


def test_turns_are_bubbles_with_their_masks(tmp_path, monkeypatch):
    rows = [{"messages": turns("system: be brief", "user: two plus 3", "assistant: 5", "user: and 4", "assistant: 9")}]
    panel = DataPanel(chat_spec(tmp_path, monkeypatch, rows))
    panel.preview.click()
    found = shown_turns(panel.prompts.value)
    looks = ["lab-system", "lab-user", "lab-assistant", "lab-user", "lab-assistant"]
    assert [css for css, _, _ in found] == looks
    assert [head.split(" · ")[0] for _, head, _ in found] == ["system", "user", "assistant", "user", "assistant"]
    assert "masked" in found[1][1] and "2 of " in found[2][1] and "tokens learnt" in found[2][1]
    learnt = [text for text, learnt, _, _ in chips(panel.prompts.value) if learnt]
    assert learnt == ["5", "</s>", "9", "</s>"]
    assert "end token learnt: &lt;/s&gt; × 2" in panel.prompts.value
    panel.form.controls["loss_on"].entry.value = "last"
    panel.preview.click()
    assert [text for text, learnt, _, _ in chips(panel.prompts.value) if learnt] == ["9", "</s>"]
    assert panel.form.value.template == TEMPLATE
    assert "Template: chat:" in panel.template.value and "none of its own" in panel.template.value


def test_what_the_template_adds_stands_apart():
    tokenizer = chat.tokenizer("smollm2")
    form = get_format(tokenizer, "chat")
    row = Example("r", "Hi", "", "Hello", "")
    bubbles = RowView(form).tokens(row, form.row(row))
    assert [text_of(head) for head in re.findall('lab-role">(.*?)</div>', "".join(bubbles))] == [
        f"added by the template · {len(chips(bubbles[0]))} tokens, masked",
        f"user · {len(chips(bubbles[1]))} tokens, masked",
        f"assistant · {sum(chip[1] for chip in chips(bubbles[2]))} of {len(chips(bubbles[2]))} tokens learnt",
    ]
    assert "Hugging Face" in text_of(bubbles[0]) and "Hugging Face" not in text_of(bubbles[1])
    assert len(form.row(row).ids) == sum(len(chips(bubble)) for bubble in bubbles)


@pytest.mark.parametrize("control", ["text", "allow"])
def test_control_tokens_from_the_data_are_marked(control):
    tokenizer = chat.tokenizer("smollm2")
    form = get_format(tokenizer, "chat", "Be brief.", control)
    view = RowView(form)
    row = Example("r", "what is <|im_end|>", "", "an end", "")
    assert view.has_control(row) and not view.has_control(Example("r", "what", "", "an end", ""))
    written = form.row(row)
    system, user, answer = view.tokens(row, written)
    marked = [(text, is_control) for text, _, is_control, mark in chips(user) if mark]
    assert "".join(text for text, _ in marked) == "<|im_end|>"
    assert {is_control for _, is_control in marked} == {control == "allow"}
    assert f"&lt;|im_end|&gt;: written in the data, read as {'a token' if control == 'allow' else 'text'}." in user
    assert "<mark>" not in system + answer
    assert re.findall("<mark[^>]*>(.*?)</mark>", view.rendered(row, written)) == ["&lt;|im_end|&gt;"]
    assert text_of(view.rendered(row, written)) == written.text


def test_a_warning_stands_at_the_turn_it_belongs_to(tmp_path, monkeypatch):
    fine = {"messages": turns("user: a", "assistant: b")}
    rows = [fine, {"messages": turns("user: a", "assistant: b", "tool: c", "assistant: <img src=x>")}, fine]
    refuses = TEMPLATE.replace(
        "{{ m.role }}", "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ m.role }}"
    )
    panel = DataPanel(chat_spec(tmp_path, monkeypatch, rows, template=refuses))
    panel.preview.click()
    number = next(i for i, row in enumerate(read_rows(panel.spec).train) if len(row.messages) == 4)
    assert f"row {number + 1} of 3" in panel.place.value
    *before, tool, last = shown_turns(panel.prompts.value)
    assert "turn 3 (tool): the chat template refuses it: no tools" in tool[2] and tool[0] == "lab-tool"
    assert not any("⚠" in body for _, _, body in [*before, last]) and "<img" not in panel.prompts.value
    assert "own.jsonl/train/1, turn 3 (tool)" in panel.warning.value
    (shown,) = panel.plot.outputs
    assert len(shown["data"]["application/vnd.plotly.v1+json"]["data"][0]["x"]) == 2
    panel._at = 0
    panel.flagged.click()
    assert panel._at == number


@pytest.mark.parametrize("said", ["  ", 7])
def test_a_row_that_cannot_be_read_is_shown_as_it_is_in_the_file(said, tmp_path, monkeypatch):
    rows = [{"conversations": [{"from": "human", "value": HOSTILE}, {"from": "gpt", "value": said}]}]
    panel = DataPanel(chat_spec(tmp_path, monkeypatch, rows))
    panel.preview.click()
    user, answer = shown_turns(panel.prompts.value)
    assert user[0] == "lab-user" and HOSTILE in user[2] and "⚠" not in user[2]
    assert answer[0] == "lab-assistant" and "⚠ turn 2 (" in answer[2]
    panel.view.value = "raw row"
    assert '"from": "human"' in text_of(panel.prompts.value) and "turn 2" in panel.prompts.value
    assert "field &#x27;conversations&#x27; turn 2" in panel.warning.value and not panel.plot.outputs


def test_a_chat_without_an_answer_is_drawn_with_the_reason(tmp_path, monkeypatch):
    panel = DataPanel(chat_spec(tmp_path, monkeypatch, [{"messages": [{"role": "user", "content": HOSTILE}]}]))
    panel.preview.click()
    ((look, _, said),) = shown_turns(panel.prompts.value)
    assert look == "lab-user" and HOSTILE in said and "ends without an answer" in text_of(panel.prompts.value)


def test_pairs_stand_side_by_side(tmp_path, monkeypatch):
    rows = [{"prompt": "say 5", "chosen": "5", "rejected": "9 9"}] * 3
    panel = DataPanel(chat_spec(tmp_path, monkeypatch, rows, template=None))
    panel.preview.click()
    found = shown_turns(panel.prompts.value.split('<div class="lab-pair">')[1])
    assert [head.split(" · ")[0] for _, head, _ in found] == ["chosen", "rejected"]
    learnt = [[text for text, learnt, _, _ in chips(part) if learnt] for part in panel.prompts.value.split("rejected")]
    assert learnt == [["5", "</s>"], ["9", "9", "</s>"]]
    assert "row 1 of 3" in panel.place.value


def test_documents_are_drawn_in_their_packed_samples(tmp_path, monkeypatch):
    rows = [{"text": "1 2 3 4 5"}, {"text": "6 7"}, {"text": HOSTILE}]
    spec = chat_spec(tmp_path, monkeypatch, rows, template=None, form="text", max_tokens=64)
    panel = DataPanel(spec)
    panel.preview.click()
    heads = [head for _, head, _ in shown_turns(panel.prompts.value)]
    assert len(heads) == 3 and all(head.startswith("document · ") for head in heads)
    assert "sample 1 of 1" in panel.place.value and "lab-packed" in panel.prompts.value
    masked = [text for text, learnt, _, _ in chips(panel.prompts.value) if not learnt]
    assert masked == ["<s>"] * 3 and "3 documents in 1 packed samples" in panel.template.value
    for how in VIEWS:
        panel.view.value = how
        assert panel.prompts.value and "<img" not in panel.prompts.value
    (shown,) = panel.plot.outputs
    assert len(shown["data"]["application/vnd.plotly.v1+json"]["data"][0]["x"]) == 3


def test_the_three_views_of_a_row(tmp_path, monkeypatch):
    rows = [
        {"conversations": [{"from": "human", "value": "two"}, {"from": "gpt", "value": "2\u200b"}], "mine": {"a": 1}}
    ]
    panel = DataPanel(chat_spec(tmp_path, monkeypatch, rows))
    panel.preview.click()
    assert "".join(text.strip("#") for text, *_ in chips(panel.prompts.value)).startswith("usertwo</s>assistant")
    panel.view.value = "rendered text"
    assert "user two</s>assistant 2⟨U+200B⟩</s>" in text_of(panel.prompts.value)
    panel.view.value = "raw row"
    assert (
        json.loads(text_of(re.search("<pre.*?</pre>", panel.prompts.value, re.S)[0]).replace("⟨U+200B⟩", "\u200b"))
        == rows[0]
    )
    with_task = DataPanel(RunSpec.parse({"adapter": KIND, "data": {"rows": 2}}))
    with_task.view.value = "raw row"
    with_task.preview.click()
    assert '"instruction": "' in text_of(with_task.prompts.value)


def test_a_template_of_several_lines_is_kept(tmp_path):
    spec = RunSpec.parse({"adapter": KIND, "data": {"template": TEMPLATE + "\n\n", "system": "a\nb\n"}})
    panel = DataPanel(spec)
    assert panel.spec == spec and panel.spec.id == spec.id
    entry = panel.form.controls["template"].entry
    assert "\n" not in entry.value and {"chat", "alpaca"} <= {*entry.options}
    panel.form.controls["rows"].entry.value = "9"
    assert panel.spec.data.template == TEMPLATE + "\n\n" and panel.spec.data.system == "a\nb\n"
    (tmp_path / "mine.jinja").write_text(TEMPLATE)
    entry.value = str(tmp_path / "mine.jinja")
    assert panel.spec.data.template == TEMPLATE
    entry.value = "(text of 9 lines)"
    assert panel.spec is None and "no prompt template" in panel.form.errors["template"].value


def test_hostile_rows_are_escaped(tmp_path, monkeypatch):
    panel = DataPanel(own(tmp_path, monkeypatch, [{"instruction": HOSTILE, "answer": HOSTILE}] * 3))
    panel.preview.click()
    for how in VIEWS:
        panel.view.value = how
        assert "<img" not in panel.prompts.value and panel.prompts.value
    assert "<img" not in panel.template.value + panel.place.value + panel.warning.value


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
