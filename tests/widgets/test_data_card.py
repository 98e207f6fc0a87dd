"""The rows page shows what the model is trained on, and the card of Setup chooses it."""

import asyncio
import html
import json
import re

import chat_templates as chat
import pytest

from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.rows import read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.encoding import encode
from llm_adapters_lab.tasks.formats import get_format
from llm_adapters_lab.tasks.registry import all_tasks, get_task
from llm_adapters_lab.tasks.spec import DataSpec
from llm_adapters_lab.tasks.tokens import IGNORED, Sample
from widgets.figures.row_preview import VIEWS, contamination_warning, look
from widgets.figures.row_view import RowView
from widgets.panels.data_card import BUILT_IN, OWN, DataCard
from widgets.panels.rows_page import RowsPage

KIND = "lora"
HOSTILE = "<img src=x onerror=alert(1)>"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }}</s>{% endfor %}\n"
    "{%- if add_generation_prompt %}assistant {% endif %}"
)


def opened(spec):
    page = RowsPage()
    page.open(spec)
    return page


def lengths(page):
    """The lengths in the histogram."""
    return page.lengths.figure["data"][0]["x"] if page.lengths.figure else []


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


def test_rows_are_shown_as_the_model_sees_them():
    assert RowsPage().widget.layout.display == "none"
    spec, tokenizer = RunSpec.parse({"adapter": KIND, "data": {"rows": 50}}), Blueprint("nano").tokenizer
    page = opened(spec)
    template, limit = get_task(spec.data.task).template, spec.data.max_tokens
    samples, left_out = encode(tokenizer, read_rows(spec).train, template, limit, "answer")
    assert not left_out.dropped and page.widget.layout.display == ""

    def expect(first, last):
        ids = [int(i) for i in re.findall(r'title="(\d+): ', page.prompts.value)]
        assert ids == [i for sample in samples[first:last] for i in sample.ids]
        learnt = sum(learnt for _, learnt, _, _ in chips(page.prompts.value))
        assert learnt == sum(sample.counted for sample in samples[first:last])

    expect(0, 20)
    learnt = f"{samples[0].counted} of {len(samples[0].ids)} tokens are learnt; end token learnt: &lt;/s&gt;"
    assert learnt in page.prompts.value
    assert "rows 1–20 of 50" in page.place.value and page.back.disabled
    assert "Template: qa, plain. Learnt: the answers." in page.template.value
    page.forward.click()
    expect(20, 40)
    assert "rows 21–40 of 50" in page.place.value and not page.back.disabled
    page.forward.click()
    assert "rows 41–50 of 50" in page.place.value and page.forward.disabled
    page.back.click()
    expect(20, 40)
    assert len(lengths(page)) == 50 and not page.warning.value
    page.hide.click()
    assert page.widget.layout.display == "none"


def test_rows_are_searched():
    page = opened(RunSpec.parse({"adapter": KIND, "data": {"rows": 50}}))
    row = page.shown.rows[33]
    page.search.value = row.instruction.upper()
    assert "row 1 of 1 found in 50" in page.place.value and row.id in text_of(page.prompts.value)
    page.search.value = HOSTILE
    assert "No row contains this text, of 50" in page.place.value and page.forward.disabled
    page.search.value = ""
    assert "rows 1–20 of 50" in page.place.value


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
    page = opened(chat_spec(tmp_path, monkeypatch, rows))
    found = shown_turns(page.prompts.value)
    looks = ["lab-system", "lab-user", "lab-assistant", "lab-user", "lab-assistant"]
    assert [css for css, _, _ in found] == looks
    assert [head.split(" · ")[0] for _, head, _ in found] == ["system", "user", "assistant", "user", "assistant"]
    assert "masked" in found[1][1] and "2 of " in found[2][1] and "tokens learnt" in found[2][1]
    learnt = [text for text, learnt, _, _ in chips(page.prompts.value) if learnt]
    assert learnt == ["5", "</s>", "9", "</s>"]
    assert "end token learnt: &lt;/s&gt; × 2" in page.prompts.value
    page = opened(chat_spec(tmp_path, monkeypatch, rows, loss_on="last"))
    assert [text for text, learnt, _, _ in chips(page.prompts.value) if learnt] == ["9", "</s>"]
    assert "Template: chat:" in page.template.value and "none of its own" in page.template.value


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
    spec = chat_spec(tmp_path, monkeypatch, rows, template=refuses)
    page = opened(spec)
    number = next(i for i, row in enumerate(read_rows(spec).train) if len(row.messages) == 4)
    assert f"row {number + 1} of 3" in page.place.value
    *before, tool, last = shown_turns(page.prompts.value)
    assert "turn 3 (tool): the chat template refuses it: no tools" in tool[2] and tool[0] == "lab-tool"
    assert not any("⚠" in body for _, _, body in [*before, last]) and "<img" not in page.prompts.value
    assert "own.jsonl/train/1, turn 3 (tool)" in page.warning.value
    assert len(lengths(page)) == 2
    page._at = 0
    page.flagged.click()
    assert page._at == number


@pytest.mark.parametrize("said", ["  ", 7])
def test_a_row_that_cannot_be_read_is_shown_as_it_is_in_the_file(said, tmp_path, monkeypatch):
    rows = [{"conversations": [{"from": "human", "value": HOSTILE}, {"from": "gpt", "value": said}]}]
    page = opened(chat_spec(tmp_path, monkeypatch, rows))
    user, answer = shown_turns(page.prompts.value)
    assert user[0] == "lab-user" and HOSTILE in user[2] and "⚠" not in user[2]
    assert answer[0] == "lab-assistant" and "⚠ turn 2 (" in answer[2]
    page.view.value = "raw row"
    assert '"from": "human"' in text_of(page.prompts.value) and "turn 2" in page.prompts.value
    assert "field &#x27;conversations&#x27; turn 2" in page.warning.value and not lengths(page)


def test_a_chat_without_an_answer_is_drawn_with_the_reason(tmp_path, monkeypatch):
    page = opened(chat_spec(tmp_path, monkeypatch, [{"messages": [{"role": "user", "content": HOSTILE}]}]))
    ((look, _, said),) = shown_turns(page.prompts.value)
    assert look == "lab-user" and HOSTILE in said and "ends without an answer" in text_of(page.prompts.value)


def test_pairs_stand_side_by_side(tmp_path, monkeypatch):
    rows = [{"prompt": "say 5", "chosen": "5", "rejected": "9 9"}] * 3
    page = opened(chat_spec(tmp_path, monkeypatch, rows, template=None))
    found = shown_turns(page.prompts.value.split('<div class="lab-pair">')[1])
    assert [head.split(" · ")[0] for _, head, _ in found] == ["chosen", "rejected"]
    learnt = [[text for text, learnt, _, _ in chips(part) if learnt] for part in page.prompts.value.split("rejected")]
    assert learnt == [["5", "</s>"], ["9", "9", "</s>"]]
    assert "row 1 of 3" in page.place.value


def test_documents_are_drawn_in_their_packed_samples(tmp_path, monkeypatch):
    rows = [{"text": "1 2 3 4 5"}, {"text": "6 7"}, {"text": HOSTILE}]
    spec = chat_spec(tmp_path, monkeypatch, rows, template=None, form="text", max_tokens=64)
    page = opened(spec)
    heads = [head for _, head, _ in shown_turns(page.prompts.value)]
    assert len(heads) == 3 and all(head.startswith("document · ") for head in heads)
    assert "sample 1 of 1" in page.place.value and "lab-packed" in page.prompts.value
    masked = [text for text, learnt, _, _ in chips(page.prompts.value) if not learnt]
    assert masked == ["<s>"] * 3 and "3 documents in 1 packed samples" in page.template.value
    for how in VIEWS:
        page.view.value = how
        assert page.prompts.value and "<img" not in page.prompts.value
    assert len(lengths(page)) == 3


def test_the_three_views_of_a_row(tmp_path, monkeypatch):
    rows = [
        {"conversations": [{"from": "human", "value": "two"}, {"from": "gpt", "value": "2\u200b"}], "mine": {"a": 1}}
    ]
    page = opened(chat_spec(tmp_path, monkeypatch, rows))
    assert "".join(text.strip("#") for text, *_ in chips(page.prompts.value)).startswith("usertwo</s>assistant")
    page.view.value = "rendered text"
    assert "user two</s>assistant 2⟨U+200B⟩</s>" in text_of(page.prompts.value)
    page.view.value = "raw row"
    assert (
        json.loads(text_of(re.search("<pre.*?</pre>", page.prompts.value, re.S)[0]).replace("⟨U+200B⟩", "\u200b"))
        == rows[0]
    )
    with_task = opened(RunSpec.parse({"adapter": KIND, "data": {"rows": 2}}))
    with_task.view.value = "raw row"
    assert '"instruction": "' in text_of(with_task.prompts.value)


def test_hostile_rows_are_escaped(tmp_path, monkeypatch):
    page = opened(own(tmp_path, monkeypatch, [{"instruction": HOSTILE, "answer": HOSTILE}] * 3))
    for how in VIEWS:
        page.view.value = how
        assert "<img" not in page.prompts.value and page.prompts.value
    assert "<img" not in page.template.value + page.place.value + page.warning.value


def test_long_rows_and_contamination_are_reported(tmp_path, monkeypatch):
    rows = [{"instruction": f"What is {n}?", "answer": "a b c " * n} for n in (1, 2, 500)]
    spec = own(tmp_path, monkeypatch, rows)
    fields = {**spec.model_dump(), "eval": {"tasks": ["own:own.jsonl"]}}
    page = opened(RunSpec.parse(fields | {"data": {"task": "own:own.jsonl", "max_tokens": 200}}))
    assert "Of 3 training rows: 1 longer than data.max_tokens, dropped; 3 with a question" in page.warning.value
    assert "3 of 3 test rows are in the training data verbatim" in page.warning.value
    page.open(RunSpec.parse(fields | {"data": {"task": "own:own.jsonl", "max_tokens": 8}}))
    assert "All 3 training rows are longer than data.max_tokens = 8" in page.warning.value and page.prompts.value
    assert contamination_warning("t", {"exact": 0, "ngram": 0, "total": 5}) == ""


def test_a_bare_base_and_a_random_model_have_no_rows():
    for spec in (RunSpec(), RunSpec.parse({"base": "tiny:llama", "adapter": KIND})):
        assert "✗" in opened(spec).warning.value


def test_facts_are_counted():
    spec = RunSpec.parse({"adapter": KIND, "data": {"rows": 30, "validation": 10}})
    found = look(spec)
    assert found.facts(spec.data, 8).startswith("30 rows · 0 too long · ") and "tokens/step" in found.facts(
        spec.data, 8
    )
    short = DataSpec(rows=30, validation=10, max_tokens=8)
    assert found.facts(short, 8) == "30 rows · 40 too long · nothing to learn"


# The card.


@pytest.fixture
def card(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = DataCard(tmp_path / "runs")
    yield made
    made.close()


def send(card, name, content, size=3):
    """Send a file in pieces, as the browser does; return the answers."""
    answers = []
    card.upload.send = answers.append
    for start in range(0, max(1, len(content)), size):
        piece, last = content[start : start + size], start + size >= len(content)
        card.upload._received(None, {"name": name, "from": start, "last": last}, [memoryview(piece)])
        if answers[-1].get("error"):
            break
    return answers


def options(card):
    found = {}
    for each in card.task.options:
        found.setdefault(each["group"], []).append(each["value"])
    return found


def test_tasks_are_grouped_and_chosen(card):
    found = options(card)
    trainable = {name for name, task in all_tasks().items() if "train" in task.splits}
    assert trainable <= {name for names in found.values() for name in names}
    assert next(iter(found)) == BUILT_IN and len(found) >= 3
    heard = []
    card.observe(lambda each: heard.append(each.value))
    card.task.value = "math10k"  # as the browser does
    assert card.value == heard[-1] == DataSpec(task="math10k") and "LLM-Adapters repository" in card.about.value
    card.value = DataSpec(task="mini-bool", rows=9)
    assert card.task.value == "mini-bool" and card.value.rows == 9
    card.form.lock(["task"])
    assert card.task.disabled


@pytest.mark.parametrize("task", ["own:x.exe", "nothing", HOSTILE, "", "gsm8k"])
def test_a_bad_task_is_reported(card, task):
    card.task.value = task
    assert card.value is None and card.see.disabled
    assert card.form.errors["task"].value and "<img" not in card.form.errors["task"].value
    assert card.task.value == task


def test_a_template_of_several_lines_is_kept(card, tmp_path):
    data = DataSpec(template=TEMPLATE + "\n\n", system="a\nb\n")
    card.value = data
    assert card.value == data
    entry = card.form.controls["template"].entry
    assert "\n" not in entry.value and {"chat", "alpaca"} <= {*entry.options}
    card.form.controls["rows"].entry.value = "9"
    assert card.value.template == TEMPLATE + "\n\n" and card.value.system == "a\nb\n"
    (tmp_path / "mine.jinja").write_text(TEMPLATE)
    entry.value = str(tmp_path / "mine.jinja")
    assert card.value.template == TEMPLATE


def test_rows_are_read_on_demand_and_counted_in_a_kernel(card):
    card.see.click()
    assert "✗" in card.status.value
    spec = RunSpec.parse({"adapter": KIND, "data": {"rows": 30}, "train": {"batch": 4}})
    card.value = spec.data
    card.use_context(spec)
    card.see.click()
    assert "rows 1–20 of 30" in card.rows.place.value and not card.status.value
    asyncio.run(card.refresh())
    assert "30 rows · 0 too long" in card.facts.value

    async def kernel():
        card.use_context(spec.model_copy(update={"seed": 3}))
        assert not card.rows.prompts.value  # outdated
        await card._waiting
        card.see.click()
        assert "rows 1–20 of 30" in card.rows.place.value

    asyncio.run(kernel())


def test_an_uploaded_file_becomes_the_task(card, tmp_path):
    content = b"question,solution\n2 + 3?,5\n4 + 4?,8\n"
    answers = send(card, "my quiz (1).csv", content)
    assert [answer["done"] for answer in answers[-2:]] == [False, True]
    path = tmp_path / "runs/.uploads/my-quiz-1.csv"
    assert path.read_bytes() == content and "saved" in card.status.value
    assert card.task.value == "own:runs/.uploads/my-quiz-1.csv?instruction=question&answer=solution&form=number"
    assert card.value.task == card.task.value and "2 rows · 2 columns" in text_of(card.mapping.title.value)
    assert options(card)[OWN] == [card.task.value]
    send(card, "my quiz (1).csv", content)
    assert "was here already" in card.status.value
    send(card, "my quiz (1).csv", b"question,solution\nagain?,1\n")
    assert card.task.value.startswith("own:runs/.uploads/my-quiz-1-2.csv?") and path.read_bytes() == content
    assert {each.name for each in path.parent.iterdir()} == {"my-quiz-1.csv", "my-quiz-1-2.csv"}


@pytest.mark.parametrize("name", ["x.exe", "../../x.csv.pkl", HOSTILE, ""])
def test_a_file_of_another_kind_is_refused(card, name, tmp_path):
    assert send(card, name, b"a")[-1]["error"]
    assert "is no file of rows" in card.status.value and "<img" not in card.status.value
    assert not (tmp_path / "runs").exists()


def test_a_file_stays_where_it_belongs(card, tmp_path):
    send(card, "../../../.hidden/日本&?.CSV", b"instruction,answer\na,b\n")
    assert [path.name for path in (tmp_path / "runs/.uploads").iterdir()] == ["rows.csv"]


def test_a_file_that_is_too_large_or_incomplete_is_refused(card, tmp_path):
    card.upload.limit = 5
    assert send(card, "x.csv", b"a,b\n1,2\n")[-1]["error"] and "more than 5 B" in card.status.value
    card.upload.limit = 100
    card.upload._received(None, {"name": "x.csv", "from": 0, "last": False}, [b"a"])
    card.upload._received(None, {"name": "x.csv", "from": 9, "last": True}, [b"a"])
    assert "did not arrive completely" in card.status.value
    assert not list((tmp_path / "runs/.uploads").iterdir())
