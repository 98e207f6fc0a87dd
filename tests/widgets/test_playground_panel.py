"""The playground without a browser: streamed answers equal those of the evaluation, in columns and mixes."""

import asyncio
import csv
import io
import math
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import HOSTILE, KINDS, small
from transformers import MambaConfig, MambaForCausalLM

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluation.decoding import (
    StopRule,
    Watched,
    can_batch,
    check_fits,
    greedy,
    make_sampler,
    stream,
)
from llm_adapters_lab.evaluation.predictions import answer
from llm_adapters_lab.models import loading
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import find_run
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.tasks.formats import get_format
from llm_adapters_lab.tasks.prompts import demonstrations, prompt, short_name
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import prompt_ids
from widgets.kit.answers import Answer, Voice
from widgets.kit.loaded_runs import SharedModel, load_run
from widgets.kit.panel import _tasks
from widgets.kit.prompt_history import FILE, MOST, PromptHistory
from widgets.kit.workspace import Question, Workspace
from widgets.panels.playground_panel import MAX_PROMPTS, RAW, PlaygroundPanel, text_box

Finished = tuple[Path, dict[str, str]]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }} : {{ m.content }}{{ eos_token }}{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}assistant : {% endif %}"


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Finished:
    """The finished runs in a folder of their own, so that the history of a test is its own."""
    return shutil.copytree(finished[0], tmp_path / "runs"), finished[1]


def panel_of(finished: Finished, *names: str) -> PlaygroundPanel:
    panel = PlaygroundPanel(finished[0])
    panel.workspace.selection.ids = [finished[1][name] for name in names]
    return panel


def generate(panel: PlaygroundPanel) -> None:
    asyncio.run(panel.answer())
    assert panel.problem.value == ""
    assert panel.status.value == "done"


def texts(panel: PlaygroundPanel) -> dict[str, str]:
    return {key: each.text for key, each in panel.answers.items()}


def every_markup(widget: Any) -> list[str]:
    """Return the value of every widget that shows markup."""
    own = [widget.value] if type(widget).__name__.startswith("HTML") else []
    return own + [text for child in getattr(widget, "children", ()) for text in every_markup(child)]


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_answers_equal_those_of_the_evaluation(copied: Finished, kind: str) -> None:
    panel = panel_of(copied, kind)
    record = find_run(copied[1][kind], copied[0])
    scored = {p["prompt"]: p for p in record.predictions()}
    base, injection = restore(record)
    assert injection is not None
    for _ in range(3):
        generate(panel)
        rows = [prompt_ids(base.tokenizer, panel.prompt)]
        limit, template = get_task("mini-addsub").max_new_tokens, get_task("mini-addsub").template
        ended = StopRule(base.model, base.tokenizer, template)
        (with_it,) = answer(base.model, base.tokenizer.pad_token_id, rows, limit, ended)
        with injection.disabled():
            (without,) = answer(base.model, base.tokenizer.pad_token_id, rows, limit, ended)
        form = get_format(base.tokenizer, template)
        text = form.answer_text(with_it)
        assert texts(panel) == {"base": form.answer_text(without), record.id: text}
        assert text == scored[panel.prompt]["text"]
        assert [panel.answers[key].tokens for key in ("base", record.id)] == [without, with_it]
        turn = panel.grid.turns[record.id][-1]
        assert turn["good"] is scored[panel.prompt]["correct"]
        assert turn["verdict"].endswith("✓") == scored[panel.prompt]["correct"]
        assert len(turn["tokens"]) == len(with_it)
        assert scored[panel.prompt]["gold"] in panel.gold.value
        panel.examples.another.click()


def test_adapters_answer_side_by_side_as_if_each_were_alone(copied: Finished) -> None:
    names = ("lora", "prefix", "own")
    alone = {}
    for name in names[:2]:
        panel = panel_of(copied, name)
        generate(panel)
        alone |= texts(panel)
    panel = panel_of(copied, *names)
    generate(panel)
    assert [column["key"] for column in panel.grid.columns] == ["base", *(copied[1][name] for name in names)]
    assert texts(panel).items() >= alone.items()
    assert len({id(each.base) for each in panel._loaded.values()}) == 1
    assert panel.adder.disabled
    panel.grid.removed = copied[1]["prefix"]
    assert panel.workspace.selection.ids == (copied[1]["lora"], copied[1]["own"])
    assert [column["key"] for column in panel.grid.columns] == ["base", copied[1]["lora"], copied[1]["own"]]
    assert panel.grid.turns == {}
    panel.adder.value = copied[1]["prefix"]
    assert panel.workspace.selection.ids[-1] == copied[1]["prefix"]


def test_tokens_carry_their_probabilities(copied: Finished) -> None:
    panel = panel_of(copied, "lora")
    generate(panel)
    loaded = load_run(find_run(copied[1]["lora"], copied[0]))
    mine = panel.answers[copied[1]["lora"]]
    ids = prompt_ids(loaded.tokenizer, panel.prompt)
    with loaded.lock, torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([ids + mine.tokens])).logits[0].softmax(-1)
    for number, (token, shown) in enumerate(zip(mine.tokens, mine.shown, strict=True)):
        chances = logits[len(ids) - 1 + number]
        assert shown["p"] == pytest.approx(float(chances[token]), abs=1e-4)
        assert len(shown["c"]) == 5
        assert shown["c"][0][1] == pytest.approx(float(chances.max()), abs=1e-4)
        assert sorted((p for _, p in shown["c"]), reverse=True) == [p for _, p in shown["c"]]
    plain = "".join(each["t"] for each in mine.shown if each["k"] == "")
    assert plain.strip() == mine.text
    assert mine.shown[-1]["k"] in ("control", "after", "")


def test_a_mix_is_the_weighted_sum(copied: Finished) -> None:
    panel = panel_of(copied, "lora", "own")
    panel.settings.limit.value = 8
    panel.mixed.value = True
    first, second = copied[1]["lora"], copied[1]["own"]
    panel.sliders[first].value, panel.sliders[second].value = 1.0, 0.0
    generate(panel)
    assert texts(panel)["mix"] == texts(panel)[first]
    panel.sliders[first].value = 0.0  # answers anew
    assert panel.status.value == "done"
    assert texts(panel)["mix"] == texts(panel)["base"]
    before = texts(panel)
    panel.sliders[second].value = 2.0
    assert {key: text for key, text in texts(panel).items() if key != "mix"} == {
        key: text for key, text in before.items() if key != "mix"
    }
    assert "2 · " in panel.grid.columns[-1]["title"]
    panel.mixed.value = False
    assert "mix" not in texts(panel)
    assert len(panel.grid.columns) == 3


def test_what_cannot_be_mixed_is_named(copied: Finished) -> None:
    panel = panel_of(copied, "lora", "prefix")
    panel.mixed.value = True
    panel.sliders[copied[1]["lora"]].value = 1.0
    generate(panel)
    note = next(column["note"] for column in panel.grid.columns if column["key"] == "mix")
    assert note.startswith("Without prefix")
    assert texts(panel)["mix"] == texts(panel)[copied[1]["lora"]]
    panel = panel_of(copied, "prefix")
    panel.mixed.value = True
    generate(panel)
    assert "None of these adapters can be mixed" in panel.grid.turns["mix"][-1]["problem"]
    assert texts(panel)["base"]


def test_the_mix_is_answered_anew_while_others_still_answer(copied: Finished) -> None:
    panel = panel_of(copied, "lora")
    panel.template.value, panel.question.value, panel.settings.limit.value = RAW, "once upon a time", 100
    panel.mixed.value = True

    async def use() -> None:
        task = asyncio.create_task(panel.answer())
        while not panel.answers.get("mix") or not panel.answers["mix"].tokens:
            await asyncio.sleep(0.001)
        first = panel.answers["mix"]
        panel.sliders[copied[1]["lora"]].value = -1.0
        await asyncio.sleep(0)
        await task
        assert panel.answers["mix"] is not first
        assert not first.done

    asyncio.run(use())
    assert panel.status.value == "done"
    assert all(each.done for each in panel.answers.values())


def test_runs_of_another_base_bring_their_own(copied: Finished) -> None:
    other = run(small("lora", base="nano-moe", adapter={"type": "lora", "at": "q"}), root=copied[0])
    panel = PlaygroundPanel(copied[0])
    panel.workspace.selection.ids = [copied[1]["lora"]]
    assert any("other base: nano-moe" in label for label, _ in panel.adder.options)
    panel.adder.value = other.id
    panel.mixed.value = True
    generate(panel)
    assert len({id(each.base) for each in panel._loaded.values()}) == 2
    notes = {column["key"]: column["note"] for column in panel.grid.columns}
    assert notes[other.id] == "on its own base, nano-moe"
    assert "has another base" in notes["mix"]


def test_models_with_another_cache_stream_too() -> None:
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=32, state_size=4)).eval()
    assert not can_batch(model)

    def never(answer: list[int]) -> bool:
        return False

    got = list(stream(model, [3, 4, 5], 5, never, make_sampler()))
    options = {"do_sample": False, "max_new_tokens": 5, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones(1, 3, dtype=torch.long)
    whole = model.generate(input_ids=torch.tensor([[3, 4, 5]]), attention_mask=mask, **options)
    assert got == whole[0, 3:].tolist()


def test_samples_depend_on_seed_temperature_and_top_p() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    assert make_sampler()(logits) == 2
    draw, again, other = make_sampler(1.0, 1), make_sampler(1.0, 1), make_sampler(1.0, 2)
    first = [draw(logits) for _ in range(400)]
    assert first == [again(logits) for _ in range(400)] != [other(logits) for _ in range(400)]
    shares = torch.bincount(torch.tensor(first), minlength=3) / 400
    assert (shares - logits.softmax(-1)).abs().max() < 0.1
    cold = make_sampler(0.01, 1)
    assert {cold(logits) for _ in range(50)} == {2}
    for top_p, expected in ((0.01, {2}), (0.6, {2}), (0.7, {1, 2}), (1.0, {0, 1, 2})):  # of 0.09, 0.24, 0.67
        nucleus = make_sampler(1.0, 1, top_p)
        assert {nucleus(logits) for _ in range(400)} == expected


def test_a_watched_sampler_chooses_the_same(copied: Finished) -> None:
    loaded = load_run(find_run(copied[1]["lora"], copied[0]))
    row = prompt_ids(loaded.tokenizer, "tom has 3 coins .")
    ended = StopRule(loaded.model, loaded.tokenizer, None)
    watched = Watched(make_sampler(), count=10**6)
    with loaded.lock:
        assert list(stream(loaded.model, row, 20, ended, watched)) == greedy(loaded.model, [row], 0, 20, ended)[0]
    assert math.fsum(p for _, p in watched.candidates) == pytest.approx(1, abs=1e-4)


def test_characters_of_several_tokens_are_shown_when_they_are_complete() -> None:
    class Bytes:
        all_special_ids = (256,)

        def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
            return bytes(token for token in ids if token < 256).decode("utf-8", "replace")

        def convert_ids_to_tokens(self, token: int) -> str:
            return str(token)

    said = "né 東!".encode()
    made = Answer(Voice(SharedModel(None, Bytes())), [1], None, 99, make_sampler())
    for token in (*said, 256):
        made._take(token)
    assert [each["t"] for each in made.shown[:-1]] == ["n", "", "é", " ", "", "", "東", "!"]
    assert made.shown[-1]["k"] == "control"


def test_a_prompt_that_does_not_fit_is_refused(copied: Finished) -> None:
    model = loading.load_base("nano").model
    limit = model.config.max_position_embeddings
    check_fits(model, [5] * (limit - 10), 10)
    with pytest.raises(BadSpec, match=f"{limit - 9} tokens; with up to 10"):
        check_fits(model, [5] * (limit - 9), 10)
    with pytest.raises(BadSpec, match="empty"):
        check_fits(model, [], 10)
    panel = panel_of(copied, "lora")
    panel.template.value, panel.question.value, panel.settings.limit.value = RAW, "coin " * limit, 10
    asyncio.run(panel.answer())
    assert all("that is more than the" in turns[-1]["problem"] for turns in panel.grid.turns.values())
    assert not panel.generate.disabled


def test_stop_takes_effect_at_the_next_token_and_the_loop_stays_responsive(copied: Finished) -> None:
    panel = panel_of(copied, "lora")
    panel.template.value, panel.question.value, panel.settings.limit.value = RAW, "once upon a time", 100
    mine = copied[1]["lora"]

    async def use() -> int:
        turns = 0
        task = asyncio.create_task(panel.answer())
        while not (panel.answers.get(mine) and panel.answers[mine].tokens):
            await asyncio.sleep(0.001)
            turns += 1
        assert panel.generate.disabled
        assert not panel.stop.disabled
        await panel.answer()  # a second click changes nothing
        panel.stop.click()
        seen = len(panel.answers[mine].tokens)
        await task
        assert len(panel.answers[mine].tokens) <= seen + 1
        return turns

    assert asyncio.run(use()) > 1
    assert panel.status.value == "stopped"
    assert not panel.generate.disabled
    assert panel.stop.disabled
    assert panel.problem.value == ""
    assert 1 <= len(panel.answers["base"].tokens) < 100
    assert len(panel.grid.turns["base"][-1]["tokens"]) == len(panel.answers["base"].tokens)
    generate(panel)
    assert panel.answers["base"].text


def test_stop_takes_effect_while_the_model_is_loading(copied: Finished) -> None:
    panel = panel_of(copied, "own")

    async def use() -> None:
        task = asyncio.create_task(panel.answer())
        await asyncio.sleep(0)
        assert panel.status.value == "loading the model …"
        panel.stop.click()
        await task

    asyncio.run(use())
    assert panel.status.value == "stopped"
    assert panel.answers == {}


def test_another_selection_ends_what_is_generated(copied: Finished) -> None:
    panel = panel_of(copied, "lora")
    panel.template.value, panel.question.value, panel.settings.limit.value = RAW, "once upon a time", 100

    async def use(ready: bool) -> None:
        task = asyncio.create_task(panel.answer())
        while ready and not (panel.answers.get("base") and panel.answers["base"].tokens):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        panel.workspace.selection.ids = [copied[1]["prefix" if ready else "own"]]
        await task
        while _tasks:
            await asyncio.gather(*_tasks)

    for ready in (True, False):
        asyncio.run(use(ready))
        assert panel.problem.value == ""
        assert panel.status.value == "stopped"
        assert panel.answers == {}
        assert [column["key"] for column in panel.grid.columns][1:] == list(panel._ids or ())
    generate(panel)


def test_parts_add_up_to_the_whole(copied: Finished) -> None:
    panel = panel_of(copied, "lora")
    panel.template.value, panel.question.value, panel.settings.limit.value = RAW, "once upon a time", 60
    parts: list[Any] = []
    panel.grid.observe(lambda change: parts.extend(change["new"]), "part")
    generate(panel)
    for key, turns in panel.grid.turns.items():
        tokens: list[Any] = []
        for part in (part for part in parts if part["key"] == key):
            assert part["from"] == len(tokens)
            tokens += part["tokens"]
        assert [each["t"] for each in tokens] == [each["t"] for each in turns[-1]["tokens"]]


def test_templates_shots_and_raw_text(copied: Finished, tmp_path: Path) -> None:
    root, names = copied
    panel = panel_of(copied, "lora")
    example = get_task("mini-addsub").load("test", None)[0]
    assert panel.prompt == prompt(example, "qa")
    assert panel.seen.value == text_box(panel.prompt, "lab-box lab-prompt")
    panel.template.value = "alpaca"
    assert panel.prompt == prompt(example, "alpaca")
    assert panel.gold.value
    panel.question.value = "what is 3 + 4 ?"
    assert panel.gold.value == ""  # an edited question has no gold answer
    panel.template.value = RAW
    assert panel.prompt == "what is 3 + 4 ?"
    assert ">what is 3 + 4 ?<" in panel.seen.value
    panel.examples.task.value = "mini-bool"
    assert panel.template.value == get_task("mini-bool").template
    assert any(f"<b>{gold}</b>" in panel.gold.value for gold in ("true", "false"))
    shots = small("lora", eval={"tasks": ["mini-addsub"], "rows": 4, "shots": 2})
    record = find_run(names["lora"], root)
    copy = tmp_path / "others" / shots.id
    copy.mkdir(parents=True)
    (copy / "spec.json").write_text(shots.model_dump_json(), encoding="utf-8")
    (copy / "summary.json").write_text((record.folder / "summary.json").read_text(encoding="utf-8"), encoding="utf-8")
    panel = PlaygroundPanel(tmp_path / "others")
    assert panel.problem.value == ""
    assert panel.prompt.endswith(prompt(example, "qa"))
    assert panel.prompt.count(" answer :") == 3
    assert demonstrations([example], "qa") not in panel.prompt
    asyncio.run(panel.answer())
    assert "has no trained adapter" in panel.problem.value
    assert not panel.generate.disabled


def test_hostile_text_stays_text(copied: Finished) -> None:
    panel = panel_of(copied, "own")
    assert panel.question.value == panel.input.value == HOSTILE
    assert panel.seen.value.count("&lt;img") == 2
    assert "&amp;lt;" not in panel.seen.value
    assert panel.input.layout.display == ""
    panel.settings.limit.value = 2
    generate(panel)
    panel.mode.value = "batch"
    panel.question.value = HOSTILE
    generate(panel)
    assert "&lt;img" in panel.table.table.value
    panel.history.fold.button.value = True
    panel.history.list.value = 0
    assert panel.question.value == HOSTILE
    panel.system.value = HOSTILE
    panel.examples.task.options = (HOSTILE,)  # an unknown task
    panel.examples.task.value = HOSTILE
    assert "&lt;img" in panel.problem.value
    for markup in every_markup(panel.widget):
        assert "<img" not in markup
        assert "<script" not in markup


def test_the_selection_decides_which_runs_answer(copied: Finished, tmp_path: Path) -> None:
    root, names = copied
    workspace = Workspace(root)
    panel = PlaygroundPanel(workspace)
    panel.opened()
    newest = next(each.id for each in workspace.runs.finished())
    assert [entry.id for entry in panel.entries] == [newest]
    workspace.selection.ids = [names["lora"], "unknown", names["own"]]
    assert [entry.id for entry in panel.entries] == [names["lora"], names["own"]]
    panel.hidden()
    workspace.selection.ids = [names["prefix"]]
    assert panel.question.value  # nothing is read before it is shown again
    assert panel._ids == (names["lora"], names["own"])
    panel.opened()
    assert panel._ids == (names["prefix"],)
    shutil.rmtree(root / names["prefix"])
    workspace.runs.refresh()
    assert panel._ids != (names["prefix"],)
    panel.close()
    assert not workspace.selection._observers


def test_without_a_run_the_next_step_is_offered(tmp_path: Path) -> None:
    workspace, opened = Workspace(tmp_path), []
    workspace.on_go(opened.append)
    panel = PlaygroundPanel(workspace)
    panel.opened()
    assert panel._empty.layout.display == ""
    assert panel._full.layout.display == "none"
    asyncio.run(panel.answer())
    assert panel.problem.value == ""
    panel._empty.children[-1].click()
    assert opened == ["Setup"]


def test_questions_are_handed_from_place_to_place(copied: Finished) -> None:
    workspace, opened = Workspace(copied[0]), []
    workspace.selection.ids = [copied[1]["lora"]]
    workspace.on_go(opened.append)
    panel = PlaygroundPanel(workspace)
    item = get_task("mini-bool").load("test", None)[2]
    workspace.question = Question("mini-bool", item.id)
    panel.opened()
    assert panel.problem.value == ""
    assert (panel.examples.task.value, panel.question.value) == ("mini-bool", item.instruction)
    panel.inspect.click()
    assert opened == ["Inspect"]
    assert workspace.question == Question("mini-bool", item.id)
    panel.question.value = "something else"
    panel.inspect.click()
    assert workspace.question == Question(text=panel.prompt)
    workspace.question = Question(text="once upon a time")
    panel.opened()
    assert (panel.question.value, panel.template.value) == ("once upon a time", RAW)
    panel.question.value = "edited"
    panel.opened()  # taken once
    assert panel.question.value == "edited"
    workspace.question = Question("mini-bool", "mini-bool/test/99999")
    panel.opened()
    assert "The run was not asked mini-bool/test/99999" in panel.problem.value


def test_keys_submit_the_prompt(copied: Finished) -> None:
    panel = panel_of(copied, "lora")
    panel.question.submitted += 1
    assert panel.status.value == "done"
    assert texts(panel)["base"] is not None


def test_a_batch_fills_a_table_and_a_file(copied: Finished) -> None:
    panel = panel_of(copied, "lora", "prefix")
    panel.mode.value = "batch"
    panel.question.value = "tom has 3 coins .\n\n  what is 3 + 4 ?  \n"
    generate(panel)
    panel.table.save.click()
    assert panel.table.delivery.file is not None
    rows = list(csv.reader(io.StringIO(panel.table.delivery.file.data.decode())))
    assert rows[0] == ["prompt", "base", "lora r4 q,v,down s0", panel.names[copied[1]["prefix"]]]
    assert [row[0] for row in rows[1:]] == ["tom has 3 coins .", "what is 3 + 4 ?"]
    assert panel.table.table.value.count("<tr>") == 3
    panel.mode.value = "single"
    panel.question.value = "what is 3 + 4 ?"
    generate(panel)
    assert list(texts(panel).values()) == rows[2][1:]
    panel.mode.value = "batch"
    for text, problem in (("\n ", "There is no prompt."), ("a\n" * (MAX_PROMPTS + 1), "a batch has at most")):
        panel.question.value = text
        asyncio.run(panel.answer())
        assert problem in panel.problem.value


def test_prompts_are_remembered_across_sessions(copied: Finished) -> None:
    panel = panel_of(copied, "lora")
    panel.question.value = "what is 3 + 4 ?"
    generate(panel)
    said = texts(panel)
    later = panel_of(copied, "prefix")
    later.history.fold.button.value = True
    (label, number), *_ = later.history.list.options
    assert "what is 3 + 4 ?" in label
    later.history.list.value = number
    assert later.question.value == "what is 3 + 4 ?"
    assert [turns[0]["text"] for turns in later.grid.turns.values()] == list(said.values())
    assert later.grid.columns[1]["name"] == panel.names[copied[1]["lora"]]
    generate(later)
    assert [column["key"] for column in later.grid.columns] == ["base", copied[1]["prefix"]]
    later.history.clear.click()
    assert later.history.list.options == ()
    assert not (copied[0] / FILE).exists()
    assert FILE not in later.workspace.runs.entries


def test_the_history_is_bounded_and_survives_damage(tmp_path: Path) -> None:
    history = PromptHistory(tmp_path)
    assert history.read() == []
    entry = {"at": 1.0, "question": "q", "input": "", "system": "", "template": "qa", "answers": [["base", "a"]]}
    for number in range(2 * MOST + 5):
        history.add(entry | {"question": str(number)})
    assert [each["question"] for each in history.read()] == [str(n) for n in range(MOST + 5, 2 * MOST + 5)]
    assert len((tmp_path / FILE).read_text().splitlines()) <= 2 * MOST
    with (tmp_path / FILE).open("a") as file:
        file.write('\n[]\n{"at": "x"}\n{"at": 1, "answers": [1]}\n{"at": 1, "question": 3, "answers": []}\n{"at')
    assert history.read()[-1]["question"] == str(2 * MOST + 4)
    PromptHistory(tmp_path / "none").add(entry)
    assert not (tmp_path / "none").exists()


def test_an_answer_ends_at_a_repeated_header() -> None:
    tokenizer = Blueprint("nano").tokenizer
    ids = tokenizer("7 question : what", add_special_tokens=False)["input_ids"]
    form = get_format(tokenizer, "qa")
    assert form.answer_text(ids) == "7"
    made = Answer(Voice(SharedModel(None, tokenizer)), [1], form, 99, make_sampler())
    for token in ids:
        made._take(token)
    made._mark_the_end()
    assert [each["k"] for each in made.shown if each["t"].strip()] == ["", "after", "after", "after"]


def test_a_chat_has_turns_and_a_system_prompt(tmp_path: Path) -> None:
    spec = small("lora", data={"task": "mini-addsub", "rows": 8, "template": TEMPLATE, "system": "add"})
    done = run(spec, root=tmp_path)
    panel = PlaygroundPanel(tmp_path)
    assert panel.prompt.startswith("<s>system : add</s>user : ")
    assert panel.problem.value == panel.warning.value == ""
    assert panel.system.layout.display == ""
    panel.settings.limit.value = 6
    generate(panel)
    panel.question.value = "what is </s> 3 ?"  # typed text stays text
    _, ids, form = panel._written(panel.examples.tokenizer, "base", panel._typed(), ())
    assert form is not None
    assert ids.count(2) == 2
    first, said = panel.question.value, texts(panel)
    panel.follow.click()
    assert panel.question.value == ""
    panel.question.value = "and 4 ?"
    for key in ("base", done.id):
        text, _, _ = panel._written(panel.examples.tokenizer, key, panel._typed(), panel._past)
        begin = f"<s>system : add</s>user : {first}</s>assistant : {said[key]}</s>"
        assert text == f"{begin}user : and 4 ?</s>assistant : "
    generate(panel)
    turns = panel.grid.turns[done.id]
    assert [turn["asked"] for turn in turns] == [first, "and 4 ?"]
    assert turns[0]["text"] == said[done.id]
    panel.mixed.value = True  # a column that was not there
    assert panel.grid.turns["mix"][0]["text"] == said[done.id]
    panel.restart.click()
    assert panel.prompt == "<s>system : add</s>user : and 4 ?</s>assistant : "
    panel.template.value = "qa"
    assert "was trained and scored with the prompt &#x27;chat:" in panel.warning.value
    assert "this one is &#x27;qa&#x27;" in panel.warning.value
    assert panel.system.layout.display == "none"


def test_a_conversation_ends_with_a_plain_template_and_another_example(tmp_path: Path) -> None:
    run(small("lora", data={"task": "mini-addsub", "rows": 8, "template": TEMPLATE}), root=tmp_path)
    panel = PlaygroundPanel(tmp_path)
    panel.settings.limit.value = 2
    for end in (lambda: setattr(panel.template, "value", "qa"), panel.examples.another.click):
        panel.template.value = TEMPLATE
        generate(panel)
        panel.follow.click()
        assert panel._past
        end()
        assert not panel._past
        assert all(not turns for turns in panel.grid.turns.values())


def test_a_prompt_other_than_that_of_the_training_or_the_evaluation_is_named(tmp_path: Path) -> None:
    template = TEMPLATE.removeprefix("{{ bos_token }}")
    data = {"task": "mini-addsub", "rows": 8, "template": template}
    given = template + "\n"
    asked = {"tasks": ["mini-addsub"], "rows": 1, "template": given, "system": "be exact"}
    run(small("lora", data=data, eval=asked), root=tmp_path)
    panel = PlaygroundPanel(tmp_path)
    trained, scored = short_name(template), short_name(given)
    assert [name for name, _ in panel.template.options][:2] == [trained, scored]
    assert panel.template.value == given
    words = f"The adapter was trained with the prompt {trained!r}; this one is {scored!r}."
    assert words in unescape(panel.warning.value)
    panel.question.value = "what is 3 ?"  # an edited question is asked in the same way
    assert panel.prompt.startswith("system : be exact</s>user : what is 3 ?")
    panel.template.value = template
    words = f"The adapter was scored with the prompt {scored!r}; this one is {trained!r}."
    assert words in unescape(panel.warning.value)
    panel.template.value = "qa"
    words = f"trained with the prompt {trained!r} and scored with the prompt {scored!r}; this one is 'qa'."
    assert words in unescape(panel.warning.value)


def test_another_system_prompt_alone_is_named(tmp_path: Path) -> None:
    data = {"task": "mini-addsub", "rows": 8, "template": TEMPLATE, "system": "add"}
    runs = [run(small("lora", data=data, seed=seed), root=tmp_path) for seed in range(2)]
    panel = PlaygroundPanel(tmp_path, runs[0].id)
    assert panel.warning.value == ""
    panel.system.value = "subtract"
    words = "The adapter was trained and scored with the system prompt 'add'; this one has the system prompt "
    assert words + "'subtract'." in unescape(panel.warning.value)
    assert panel.prompt.startswith("<s>system : subtract</s>")
    panel.system.value = ""
    assert "this one has no system prompt." in unescape(panel.warning.value)
    assert panel.prompt.startswith("<s>user : ")
    panel.workspace.selection.ids = [each.id for each in runs]
    panel.system.value = "no"
    assert "lora r4 q,v,down s1 was trained with the system prompt 'add'" in unescape(panel.warning.value)


def test_runs_are_chosen_by_their_training_questions(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"eval": {"tasks": ["mini-bool"], "rows": 2}}
    specs = {task: small("lora", data={"task": task, "rows": 64}, **fields) for task in ("mini-addsub", "mini-bool")}
    ids = {task: run(spec, root=tmp_path).id for task, spec in specs.items()}
    panel = PlaygroundPanel(tmp_path)
    for task, run_id in ids.items():
        panel.workspace.selection.ids = [next(other for other in ids.values() if other != run_id)]
        panel.question.value = get_task(task).load("test", None)[3].instruction

        async def choose() -> None:
            await panel.choose()
            async with asyncio.timeout(180):
                while panel._kept:
                    await asyncio.sleep(0.01)

        asyncio.run(choose())
        assert panel.problem.value == ""
        assert panel.workspace.selection.ids == (run_id,)
        assert panel.status.value == f"chosen: 1.00 · {panel.workspace.runs.names[run_id]}"
        assert panel.question.value == get_task(task).load("test", None)[3].instruction  # nothing typed is lost
    panel.question.value = "Once upon a time, a king lived in a castle."
    before = panel.workspace.selection.ids
    asyncio.run(panel.choose())
    assert panel.status.value == "no run was trained on questions like this one"
    assert panel.workspace.selection.ids == before and not panel.chooser.disabled
    panel.close()
