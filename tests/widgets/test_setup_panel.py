"""The place Setup: fields make the draft, lists make a sweep, every fault is told at its field and in the bar."""

import ipywidgets as W
import pytest

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.spec import RunSpec
from widgets.forms.cost_strip import CostStrip
from widgets.kit.draft import make_draft
from widgets.panels.draft_bar import DraftBar, short_task, summary
from widgets.panels.setup_panel import SetupPanel

SMALL = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 4, "alpha": 8},
    "data": {"rows": 64, "validation": 8},
    "train": {"batch": 8, "max_steps": 4},
    "eval": {"tasks": ["mini-addsub"], "rows": 8},
}
HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
WRONG = ["", "0", "-1", "1.5", "x", "nan", "inf", "1e400", "9" * 400, HOSTILE, "\0", "[1, 2", "{a: 1}", "日本", "2, x"]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def setup(root):
    made = SetupPanel(root, RunSpec.parse(SMALL))
    yield made
    made.close()


def bar(setup):
    made = DraftBar(CostStrip(setup.workspace.root), lambda: None)
    made.show(setup.draft, setup.faults, None, 0, setup.waiting)
    return made


def write(form, name, text):
    form.controls[name].entry.value = text


def test_the_fields_make_the_draft(setup):
    assert setup.spec == RunSpec.parse(SMALL) and setup.faults == [] and setup.draft.count() == ""
    write(setup.method.form, "rank", "16")
    write(setup.train, "learning_rate", "0.01")
    write(setup.other, "seed", "7")
    setup.place.text.value = "mlp@0-2"
    spec = setup.spec
    assert (spec.adapter.rank, spec.adapter.alpha, spec.adapter.at) == (16, 32.0, "mlp@0-2")
    assert (spec.train.learning_rate, spec.seed) == (0.01, 7)


def test_the_number_of_steps_is_told(setup):
    assert "4 steps (max_steps" in setup.steps.value
    write(setup.train, "max_steps", "2000")
    assert "24 steps (3 epochs; max_steps 2,000 is not reached)" in setup.steps.value
    setup.method.kind.value = ""
    assert setup.steps.value == ""


def test_a_spec_fills_all_fields(setup):
    spec = RunSpec.load("quickstart")
    setup.spec = spec
    assert setup.spec == spec
    bare = RunSpec.parse({**SMALL, "adapter": None})
    setup.spec = bare
    assert setup.spec == bare and setup.method.form is None


def test_lists_make_a_sweep(setup):
    write(setup.method.form, "rank", "2, 8, 32")
    setup.place.text.value = "q,v; mlp"
    write(setup.other, "seed", "3 seeds")
    assert len(setup.draft.specs) == 18 and setup.faults == []
    assert {(s.adapter.rank, s.adapter.alpha) for s in setup.draft.specs} == {(2, 4.0), (8, 16.0), (32, 64.0)}
    assert {s.adapter.at for s in setup.draft.specs} == {"q,v", "mlp"}
    shown = bar(setup)
    assert shown.start.description == "Start 18 runs" and "18 runs" in shown.line.value
    assert "sweep" in shown.copy.texts["CLI"] and "adapter.rank: 32" in shown.copy.texts["YAML"]
    write(setup.train, "batch", "4, 8, 16, 32, 64")
    write(setup.train, "learning_rate", ", ".join(f"{n}e-4" for n in range(1, 8)))
    assert setup.draft is None and "at most 500" in setup.faults[0].text


def test_the_grid_follows_the_text_and_writes_it(setup):
    setup.place.text.value = "q,v; mlp"
    assert {name for _, name in setup.place.grid.selected} == {"q", "v"}
    setup.place.grid.selected = {(layer, "down") for layer in range(6)}
    setup.place._clicked()
    assert setup.place.text.value == "down; mlp" and len(setup.draft.specs) == 2
    setup.place.reset.click()
    assert setup.place.text.value == "" and setup.spec == RunSpec.parse(SMALL)


@pytest.mark.parametrize("text", ["qq", "q@99", "q,", "@", HOSTILE, "q,v; qq", "q@5-2"])
def test_a_wrong_placement_is_told(setup, text):
    setup.place.text.value = text
    assert setup.draft is None and setup.faults[0].field == "adapter.at"
    assert "✗" in setup.place.problem.value and "<img" not in setup.place.problem.value
    assert bar(setup).start.disabled and setup.place.text.value == text
    setup.place.text.value = "q,v"
    assert setup.draft is not None and not setup.place.problem.value


def fields():
    made = SetupPanel("runs", RunSpec.parse(SMALL))
    forms = {"adapter": made.method.form, "train": made.train, "eval": made.evaluation, "data": made.data.form}
    for part, form in {**forms, "": made.other}.items():
        for name, control in form.controls.items():
            if isinstance(control.entry, W.Text | W.Textarea | W.Combobox):
                yield part, name
    made.close()


def test_every_field_with_every_kind_of_wrong_value(root):
    setup = SetupPanel(root, RunSpec.parse(SMALL))
    told = 0
    for part, name in fields():
        forms = {"adapter": setup.method.form, "train": setup.train, "eval": setup.evaluation, "data": setup.data.form}
        form = forms.get(part, setup.other)
        entry = form.controls[name].entry
        for value in WRONG:
            before = entry.value
            entry.value = value
            assert entry.value == value, (part, name, value)  # nothing that was typed is lost
            if setup.draft is None:
                told += 1
                assert setup.faults, (part, name, value)
                shown = bar(setup)
                assert shown.start.disabled and "✗" in shown.remark.value
                assert "pydantic" not in str(setup.faults).lower() and "Input should" not in str(setup.faults)
                assert "<img" not in shown.remark.value + form.errors[name].value
            entry.value = before
        assert setup.draft is not None, (part, name)
    assert told > 200
    setup.close()


def test_the_bar_names_the_field_of_the_first_fault(setup):
    write(setup.method.form, "rank", "0")
    write(setup.train, "batch", "x")
    shown = bar(setup)
    assert "lab-to-adapter-rank" in shown.remark.value or "lab-to-train-batch" in shown.remark.value
    assert (
        "(and 1 more)" in shown.remark.value and "lab-at-adapter-rank" in setup.method.form.boxes["rank"]._dom_classes
    )
    assert shown.copy.texts == {}


def test_another_method_has_its_own_fields_and_placement(setup):
    write(setup.method.form, "rank", "32")
    setup.method.kind.value = "series"
    assert setup.spec == RunSpec.parse({**SMALL, "adapter": "series"})
    setup.method.kind.value = "lora"
    assert setup.spec.adapter.rank == 32
    setup.method.kind.value = "pfeiffer"  # a preset
    assert setup.spec == RunSpec.parse({**SMALL, "adapter": "pfeiffer"})


def test_a_copy_says_what_was_changed(setup):
    setup.copy(RunSpec.parse(SMALL), "lora r4")
    assert "copy of lora r4" in bar(setup).remark.value
    write(setup.method.form, "rank", "8")
    assert "from lora r4: rank 4 → 8, alpha 8.0 → 16.0" in bar(setup).remark.value
    setup.spec = RunSpec.parse(SMALL)
    assert setup.draft.parent is None


def test_a_preset_and_a_file_fill_the_fields(setup, tmp_path):
    setup.preset.value = next(value for _, value in setup.preset.options if value)
    assert setup.spec or setup.faults  # its base may not be here
    path = tmp_path / "my.yaml"
    path.write_text("base: nano\nadapter: {type: lora, rank: 2}\n", encoding="utf-8")
    setup.upload.path.value = str(path)
    setup.upload.load.click()
    assert setup.spec.adapter.rank == 2 and not setup.upload.problem.value


def test_every_field_has_help(setup):
    assert "rank r of the update" in setup.help.texts["adapter-rank"]
    assert "several, as in q,v; mlp" in setup.help.texts["adapter-at"]
    setup.method.kind.value = "series"
    assert "adapter-rank" not in setup.help.texts and "adapter-bottleneck" in setup.help.texts
    assert all(setup.help.texts[name] for name in ("train-batch", "eval-tasks", "data-rows", "seed"))


def test_settings_are_found(setup):
    setup.search.value = "packing"
    assert "lab-hidden" not in setup.train.boxes["packing"]._dom_classes and setup.train.more.button.value
    assert setup.cards["placement"].layout.display == "none"
    setup.search.value = ""
    assert all(shown.layout.display != "none" for shown in setup.cards.values())


def test_a_beginner_sees_six_fields(root):
    setup = SetupPanel(root, RunSpec.parse(SMALL), level="beginner")
    visible = [
        n for f in (setup.train, setup.data.form) for n, box in f.boxes.items() if "lab-hidden" not in box._dom_classes
    ]
    assert sorted(visible) == ["learning_rate", "max_steps", "task"]
    assert setup.cards["eval"].layout.display == setup.cards["placement"].layout.display == "none"
    assert setup.spec == RunSpec.parse(SMALL)


def test_an_instructor_locks_fields(root):
    locked = ("base", "adapter.type", "adapter.rank", "train.epochs", "eval", "seed", "placement")
    setup = SetupPanel(root, RunSpec.parse(SMALL), locked=locked)
    assert setup.model.disabled and setup.method.kind.disabled and setup.place.text.disabled
    assert setup.method.form.controls["rank"].entry.disabled and setup.other.controls["seed"].entry.disabled
    assert all(control.entry.disabled for control in setup.evaluation.controls.values())
    assert not setup.train.controls["batch"].entry.disabled
    with pytest.raises(BadSpec, match="no field 'train.epoch' to lock"):
        SetupPanel(root, RunSpec.parse(SMALL), locked=("train.epoch",))


def test_the_summary_names_what_matters():
    draft = make_draft(RunSpec.parse({**SMALL, "data": {"task": "mini-math"}}), {"adapter.rank": [2, 4]})
    assert "lora r2, 4" in summary(draft) and "mini-math · 4 steps · 1 task" in summary(draft)
    assert short_task("own:/home/me/my rows.jsonl?answer=x") == "my rows.jsonl"
    assert "no adapter · " not in summary(make_draft(RunSpec(base="nano"), {})).replace("<b>", "").split("</b>")[0]
    hostile = make_draft(RunSpec.parse({**SMALL, "base": HOSTILE}), {})
    assert "<img" not in summary(hostile)
