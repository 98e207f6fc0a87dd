"""Runs on chats and documents, from the spec to the record, the saved adapter and the merged model."""

import json

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from llm_adapters_lab import RunSpec, run
from llm_adapters_lab.cli.app import app
from llm_adapters_lab.config import read_yaml, to_yaml
from llm_adapters_lab.errors import BadRow, BadSpec
from llm_adapters_lab.evaluation.decoding import StopRule
from llm_adapters_lab.events import Noticed
from llm_adapters_lab.models.loading import load_base
from llm_adapters_lab.results.appearance import spec_fields
from llm_adapters_lab.runs import restoring
from llm_adapters_lab.runs.rows import read_rows, scoring_format
from llm_adapters_lab.tasks.formats import get_format
from llm_adapters_lab.tasks.registry import get_task

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }} : {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


@pytest.fixture
def chats(tmp_path):
    rows = get_task("mini-addsub").load("train")[:24]
    turns = [[{"role": "user", "content": r.instruction}, {"role": "assistant", "content": r.output}] for r in rows]
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps({"messages": found}) for found in turns))
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    return tmp_path


def spec(folder, **changes):
    fields = {
        "base": "nano",
        "adapter": {"type": "lora", "rank": 2},
        "data": {"task": f"own:{folder}/chats.jsonl", "template": f"{folder}/chat.jinja", "system": "add"},
        "train": {"max_steps": 2, "batch": 4},
        "eval": {"tasks": ["mini-addsub"], "rows": 3, "max_new_tokens": 4},
    }
    return RunSpec.parse(fields | changes)


def test_a_chat_run_is_learnt_asked_saved_and_merged_by_its_template(chats):
    told = []
    record = run(spec(chats), root=chats / "runs", on_event=told.append)
    (chats / "chat.jinja").unlink()  # the text is part of the spec
    assert record.spec.data.template == TEMPLATE
    answered = list(record.predictions())
    assert all(p["prompt"].startswith("<s>system : add</s>user : ") for p in answered)
    assert all(p["prompt"].endswith("</s>assistant : ") for p in answered)
    score = record.summary["scores"]["mini-addsub"]
    assert score["template"].startswith("chat:")
    assert score["trained_with"] is None
    assert any("for nano, which has none of its own" in event.text for event in told if isinstance(event, Noticed))
    base, injection = restoring.restore(record)
    assert injection.prompt == {"template": TEMPLATE, "system": "add"}
    for command in ("merge", "export"):
        done = CliRunner().invoke(app, [command, record.id, str(chats / command), "--root", str(chats / "runs")])
        assert done.exit_code == 0, done.output
        assert AutoTokenizer.from_pretrained(chats / command).chat_template == TEMPLATE
    assert json.loads((chats / "merge" / "merge.json").read_text())["prompt"]["template"] == TEMPLATE
    assert TEMPLATE in (chats / "export" / "README.md").read_text()
    stops = StopRule(base.model, base.tokenizer, get_format(base.tokenizer, TEMPLATE))
    assert stops.tokens == [base.tokenizer.eos_token_id]


def test_asking_by_another_template_than_that_of_the_training_is_told(chats):
    told = []
    changed = {"tasks": ["mini-addsub"], "rows": 3, "max_new_tokens": 4, "template": "qa"}
    record = run(spec(chats, eval=changed), root=chats / "runs", on_event=told.append)
    score = record.summary["scores"]["mini-addsub"]
    assert score["template"] == "qa"
    assert score["trained_with"].startswith("chat:")
    assert any(
        "asked with the prompt 'qa', but the adapter is trained" in e.text for e in told if isinstance(e, Noticed)
    )
    assert next(record.predictions())["prompt"].startswith("question : ")


def test_another_system_prompt_than_that_of_the_training_is_told_by_name(chats):
    plan = {"tasks": ["mini-addsub"], "rows": 2, "max_new_tokens": 2, "system": ""}
    record = run(spec(chats, eval=plan), root=chats / "runs")
    score = record.summary["scores"]["mini-addsub"]
    assert score["trained_with"] == f"{score['template']} with the system prompt 'add'"
    fields = spec_fields(record.spec)
    assert fields["data.template"] == score["template"]
    assert TEMPLATE in read_yaml(to_yaml({"t": f"{TEMPLATE}\n{TEMPLATE}"}))["t"]
    assert to_yaml({"t": "a: {{ b }}\nc"}) == "t: |-\n  a: {{ b }}\n  c\n"
    long = spec(chats, data={"task": "mini-addsub", "system": "be brief " * 40, "template": TEMPLATE})
    assert len(spec_fields(long)["data.system"]) < 60


def test_control_tokens_are_read_in_scoring_as_in_training(chats):
    row = {"instruction": "is </s> it ?", "output": "yes"}
    (chats / "asked.jsonl").write_text(json.dumps(row))
    asked = {"task": f"own:{chats}/asked.jsonl?template=qa", "control_tokens": "allow"}
    plan = spec(chats, data=asked, eval={"tasks": [asked["task"]]})
    tokenizer, rows = load_base("nano").tokenizer, read_rows(plan)
    trained = rows.training_format(tokenizer, plan.data).row(rows.train[0]).ids
    ((_, ids),) = scoring_format(plan, asked["task"], rows.test[asked["task"]], tokenizer).prompts(rows.train)
    assert tuple(ids) == trained[: len(ids)]
    assert tokenizer.eos_token_id in ids


def test_a_plain_prompt_on_a_base_with_a_chat_template_is_told(chats):
    base = load_base("nano")
    base.tokenizer.chat_template = TEMPLATE
    base.model.save_pretrained(chats / "base")
    base.tokenizer.save_pretrained(chats / "base")
    told = []
    plain = {"task": "mini-addsub", "rows": 8, "template": "qa"}
    run(spec(chats, base=f"{chats}/base", data=plain), root=chats / "runs", on_event=told.append)
    assert any("has a chat template, but rows are written with the plain prompt 'qa'" in str(e) for e in told)
    own = {"task": f"own:{chats}/chats.jsonl", "rows": 8}
    record = run(spec(chats, base=f"{chats}/base", data=own), root=chats / "runs")
    assert record.summary["scores"]["mini-addsub"]["template"] == "qa"  # that of the task, which says so
    assert record.summary["scores"]["mini-addsub"]["trained_with"] == "chat"


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([{"role": "tool", "content": "a"}], r"train/1, turn 1 \(tool\): the chat template refuses it: tool"),
        ([{"role": "user", "content": "a"}], r"train/\d, turn 2 \(assistant\): no end token follows it but ''"),
    ],
)
def test_a_chat_that_cannot_be_written_stops_the_run_before_weights_load(chats, turns, message, monkeypatch):
    ends = turns[0]["role"] == "tool"
    refusing = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('tool') }}{% endif %}{% endfor %}"
    (chats / "chat.jinja").write_text(refusing + TEMPLATE.replace("{{ eos_token }}", "{{ eos_token }}" * ends))
    rows = (chats / "chats.jsonl").read_text().splitlines()
    rows[1] = json.dumps({"messages": [*turns, {"role": "assistant", "content": "b"}]})
    (chats / "chats.jsonl").write_text("\n".join(rows[:2]))
    monkeypatch.setattr(restoring, "load_base", lambda *args: pytest.fail("weights were loaded"))
    with pytest.raises(BadRow, match=message):
        run(spec(chats), root=chats / "runs")


def test_documents_are_learnt_whole(tmp_path):
    rows = get_task("mini-addsub").load("train")[:40]
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": row.instruction}) for row in rows))
    data = {"task": f"own:{tmp_path}/text.jsonl", "form": "text", "max_tokens": 64, "validation": 4}
    told = []
    record = run(spec(tmp_path, data=data, eval={}), root=tmp_path / "runs", on_event=told.append)
    assert record.spec.data.loss_on == "all"
    notes = [event.text for event in told if isinstance(event, Noticed)]
    assert any(text.startswith("data.form = text: 40 documents in ") for text in notes)
    with pytest.raises(BadSpec, match=r"40 of 40 rows of own:.* are documents .*, but data.form = rows"):
        run(spec(tmp_path, data={"task": f"own:{tmp_path}/text.jsonl"}, eval={}), root=tmp_path / "runs")
    with pytest.raises(BadSpec, match="0 of 4000 rows of mini-addsub are documents"):
        run(spec(tmp_path, data={"task": "mini-addsub", "form": "text"}, eval={}), root=tmp_path / "runs")
    with pytest.raises(BadSpec, match="holds documents, which ask nothing"):
        run(spec(tmp_path, data=data, eval={"tasks": [data["task"]]}), root=tmp_path / "runs")
    with pytest.raises(BadSpec, match=r"learns whole documents: remove data\.template"):
        spec(tmp_path, data=data | {"template": "qa"})


def test_preferences_are_not_learnt_as_if_both_answers_were_right(tmp_path):
    rows = [{"prompt": f"{i} + 1 = ", "chosen": f"{i + 1}", "rejected": f"{i + 2}"} for i in range(9)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(BadSpec, match=r"9 of 9 training rows have a rejected answer\. The objective dpo needs"):
        run(spec(tmp_path, data={"task": f"own:{tmp_path}/pairs.jsonl"}, eval={}), root=tmp_path / "runs")
    with pytest.raises(BadSpec, match=r"0 of 8 training rows have a rejected answer\. The objective dpo needs"):
        data = {"task": "mini-addsub", "rows": 8}
        run(spec(tmp_path, data=data, eval={}, train={"objective": "dpo"}), root=tmp_path / "runs")
    rows[0]["rejected"] = rows[0]["chosen"]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs, plan, told = {"task": f"own:{tmp_path}/pairs.jsonl"}, {"objective": "dpo", "max_steps": 1, "batch": 2}, []
    run(spec(tmp_path, data=pairs, eval={}, train=plan), root=tmp_path / "runs", on_event=told.append)
    assert any("In 1 of 9 pairs, both answers are equal" in str(event) for event in told)
