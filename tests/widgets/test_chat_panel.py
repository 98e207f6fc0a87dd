"""The chat panel without a browser: streamed answers equal those of the evaluation, and can be stopped."""

import asyncio
import gc
import shutil
import weakref
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
from widgets.kit.loaded_runs import load_run
from widgets.panels.chat_panel import RAW, ChatPanel, text_box

Finished = tuple[Path, dict[str, str]]


def panel_of(finished: Finished, name: str) -> ChatPanel:
    root, names = finished
    return ChatPanel(root, names[name])


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_answers_equal_those_of_the_evaluation(finished: Finished, kind: str) -> None:
    panel = panel_of(finished, kind)
    record = find_run(finished[1][kind], finished[0])
    scored = {p["prompt"]: p for p in record.predictions()}
    base, injection = restore(record)
    assert injection is not None
    for _ in range(3):
        asyncio.run(panel.answer())
        assert panel.problem.value == ""
        assert panel.status.value == "done"
        rows = [prompt_ids(base.tokenizer, panel.prompt)]
        limit, template = get_task("mini-addsub").max_new_tokens, get_task("mini-addsub").template
        ended = StopRule(base.model, base.tokenizer, template)
        (with_it,) = answer(base.model, base.tokenizer.pad_token_id, rows, limit, ended)
        with injection.disabled():
            (without,) = answer(base.model, base.tokenizer.pad_token_id, rows, limit, ended)
        form = get_format(base.tokenizer, template)
        text = form.answer_text(with_it)
        assert panel.both.adapted.text == text == scored[panel.prompt]["text"]
        assert panel.both.base.text == form.answer_text(without)
        assert (panel.both.adapted.tokens, panel.both.base.tokens) == (with_it, without)
        verdict = panel.both.adapted.foot.value.rpartition(" · ")[2]
        assert verdict.endswith("✓") == scored[panel.prompt]["correct"]
        assert panel.gold.value == f"gold answer: {scored[panel.prompt]['gold']}"
        panel.examples.another.click()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_equals_generate(finished: Finished, kind: str) -> None:
    loaded = load_run(find_run(finished[1][kind], finished[0]))
    ended = StopRule(loaded.model, loaded.tokenizer, None)
    row = prompt_ids(loaded.tokenizer, "tom has 3 coins .")
    streams = [stream(loaded.model, row, 20, ended, make_sampler()) for _ in range(2)]
    turns: tuple[list[int], list[int]] = ([], [])
    for _ in range(20):  # alternating, each with its own cache
        with loaded.base.using():
            turns[0].extend([t for t in [next(streams[0], None)] if t is not None])
        with loaded.lock:
            turns[1].extend([t for t in [next(streams[1], None)] if t is not None])
    with loaded.base.using():
        assert turns[0] == greedy(loaded.model, [row], 0, 20, ended)[0]
    with loaded.lock:
        assert turns[1] == greedy(loaded.model, [row], 0, 20, ended)[0]
    assert turns[0] != turns[1]


def test_models_with_another_cache_stream_too() -> None:
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=32, state_size=4)).eval()
    assert not can_batch(model)

    class Never:
        def __call__(self, answer: list[int]) -> bool:
            return False

    ended: Any = Never()
    got = list(stream(model, [3, 4, 5], 5, ended, make_sampler()))
    options = {"do_sample": False, "max_new_tokens": 5, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones(1, 3, dtype=torch.long)
    whole = model.generate(input_ids=torch.tensor([[3, 4, 5]]), attention_mask=mask, **options)
    assert got == whole[0, 3:].tolist()


def test_samples_depend_on_seed_and_temperature() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    assert make_sampler()(logits) == 2
    draw, again, other = make_sampler(1.0, 1), make_sampler(1.0, 1), make_sampler(1.0, 2)
    first = [draw(logits) for _ in range(400)]
    assert first == [again(logits) for _ in range(400)] != [other(logits) for _ in range(400)]
    shares = torch.bincount(torch.tensor(first), minlength=3) / 400
    assert (shares - logits.softmax(-1)).abs().max() < 0.1
    cold = make_sampler(0.01, 1)
    assert {cold(logits) for _ in range(50)} == {2}


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    model = loading.load_base("nano").model
    limit = model.config.max_position_embeddings
    check_fits(model, [5] * (limit - 10), 10)
    with pytest.raises(BadSpec, match=f"{limit - 9} tokens; with up to 10"):
        check_fits(model, [5] * (limit - 9), 10)
    with pytest.raises(BadSpec, match="empty"):
        check_fits(model, [], 10)


def test_stop_takes_effect_at_the_next_token_and_the_loop_stays_responsive(finished: Finished) -> None:
    panel = panel_of(finished, "lora")
    panel.template.value, panel.question.value, panel.limit.value = RAW, "once upon a time", 100

    async def use() -> int:
        turns = 0
        task = asyncio.create_task(panel.answer())
        while not panel.both.adapted.tokens:
            await asyncio.sleep(0.001)
            turns += 1
        assert panel.generate.disabled
        assert not panel.stop.disabled
        await panel.answer()  # a second click changes nothing
        panel.stop.click()
        seen = len(panel.both.adapted.tokens)
        await task
        assert len(panel.both.adapted.tokens) <= seen + 1
        return turns

    assert asyncio.run(use()) > 1
    assert panel.status.value == "stopped"
    assert not panel.generate.disabled
    assert panel.stop.disabled
    assert panel.problem.value == ""
    assert 1 <= len(panel.both.base.tokens) < 100
    asyncio.run(panel.answer())
    assert panel.status.value == "done"
    assert panel.both.base.text


def test_stop_takes_effect_while_the_model_is_loading(finished: Finished) -> None:
    panel = panel_of(finished, "own")

    async def use() -> None:
        task = asyncio.create_task(panel.answer())
        await asyncio.sleep(0)
        assert panel.status.value == "loading the model …"
        panel.stop.click()
        await task

    asyncio.run(use())
    assert panel.status.value == "stopped"
    assert (panel.both.base.tokens, panel.both.adapted.tokens) == ([], [])


def test_templates_shots_and_raw_text(finished: Finished, tmp_path: Path) -> None:
    root, names = finished
    panel = panel_of(finished, "lora")
    example = get_task("mini-addsub").load("test", None)[0]
    assert panel.prompt == prompt(example, "qa")
    assert panel.shown.value == text_box(panel.prompt, "lab-box lab-prompt")
    panel.template.value = "alpaca"
    assert panel.prompt == prompt(example, "alpaca")
    assert panel.gold.value
    panel.question.value = "what is 3 + 4 ?"
    assert panel.gold.value == ""  # an edited question has no gold answer
    panel.template.value = RAW
    assert panel.prompt == "what is 3 + 4 ?"
    assert ">what is 3 + 4 ?<" in panel.shown.value
    panel.examples.task.value = "mini-bool"
    assert panel.template.value == get_task("mini-bool").template
    assert panel.gold.value.removeprefix("gold answer: ") in ("true", "false")
    shots = small("lora", eval={"tasks": ["mini-addsub"], "rows": 4, "shots": 2})
    record = find_run(names["lora"], root)
    copy = tmp_path / shots.id
    copy.mkdir()
    (copy / "spec.json").write_text(shots.model_dump_json(), encoding="utf-8")
    (copy / "summary.json").write_text((record.folder / "summary.json").read_text(encoding="utf-8"), encoding="utf-8")
    panel = ChatPanel(tmp_path)
    assert panel.problem.value == ""
    assert panel.prompt.endswith(prompt(example, "qa"))
    assert panel.prompt.count(" answer :") == 3
    assert demonstrations([example], "qa") not in panel.prompt
    asyncio.run(panel.answer())
    assert "has no trained adapter" in panel.problem.value
    assert not panel.generate.disabled


def test_hostile_text_stays_text(finished: Finished) -> None:
    panel = panel_of(finished, "own")
    assert panel.question.value == panel.input.value == HOSTILE
    assert panel.shown.value.count("&lt;img") == 2
    assert "&amp;lt;" not in panel.shown.value
    panel.both.base.show(HOSTILE, HOSTILE)
    assert panel.input.layout.display == ""
    panel.examples.task.options = (HOSTILE,)  # an unknown task
    panel.examples.task.value = HOSTILE
    for markup in every_markup(panel.widget):
        assert "<img" not in markup
        assert "<script" not in markup
    assert "&lt;img" in panel.problem.value
    panel.run_id = HOSTILE
    assert HOSTILE in panel.missing.value
    assert type(panel.missing).__name__ == "Label"


def every_markup(widget: Any) -> list[str]:
    """Return the value of every widget that shows markup."""
    own = [widget.value] if type(widget).__name__.startswith("HTML") else []
    return own + [text for child in getattr(widget, "children", ()) for text in every_markup(child)]


def test_runs_are_found_and_named(finished: Finished, tmp_path: Path) -> None:
    root, names = finished
    panel = ChatPanel(root)
    assert {value for _, value in panel.box.options} == set(names.values())
    assert panel.run_id == names["prefix"]  # the newest
    panel.run_id = names["lora"][:-3]
    assert panel.run_id == names["lora"]
    panel.run_id = "nano"
    assert panel.run_id == ""
    assert "Several runs" in panel.missing.value
    asyncio.run(panel.answer())
    assert "Several runs" in panel.problem.value
    panel.run_id = "other"
    assert "other is not finished, or has no adapter" in panel.missing.value
    panel.refresh()
    assert panel.run_id == names["prefix"]
    empty = ChatPanel(tmp_path)
    asyncio.run(empty.answer())
    assert "no finished run" in empty.problem.value
    assert "no finished run" in empty.missing.value


def test_the_list_keeps_the_selected_run_and_omits_unreadable_ones(finished: Finished, tmp_path: Path) -> None:
    root, names = finished
    for name in ("lora", "prefix"):
        shutil.copytree(root / names[name], tmp_path / names[name])
    panel = ChatPanel(tmp_path, names["lora"])
    called: list[str] = []
    panel.observe(lambda panel: called.append(panel.run_id))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "spec.json").write_text("{}x", encoding="utf-8")
    (tmp_path / "broken" / "summary.json").write_text("{}", encoding="utf-8")
    panel.refresh()
    assert panel.run_id == names["lora"]
    assert not called
    shutil.rmtree(tmp_path / names["lora"])
    panel.refresh()
    assert panel.run_id == names["prefix"]
    assert called


def test_panels_share_a_model_and_the_last_one_frees_it(finished: Finished, tmp_path: Path) -> None:
    root, names = finished
    root = shutil.copytree(root, tmp_path / "runs")
    first, second = ChatPanel(root, names["lora"]), ChatPanel(root, names["lora"])
    one, two = asyncio.run(first.loaded()), asyncio.run(second.loaded())
    assert one is two
    held = weakref.ref(one)  # other tests may hold the base
    del one, two
    first.run_id = names["prefix"]
    gc.collect()
    assert held() is not None
    second.close()
    gc.collect()
    assert held() is None


def test_an_answer_ends_at_a_repeated_header() -> None:
    tokenizer = Blueprint("nano").tokenizer
    ids = tokenizer("7 question : what", add_special_tokens=False)["input_ids"]
    assert get_format(tokenizer, "qa").answer_text(ids) == "7"


def test_a_chat_is_asked_by_the_template_it_was_trained_with(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }} : {{ m.content }}{{ eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant : {% endif %}"
    spec = small("lora", data={"task": "mini-addsub", "rows": 8, "template": template, "system": "add"})
    run(spec, root=tmp_path)
    panel = ChatPanel(tmp_path)
    assert panel.prompt.startswith("<s>system : add</s>user : ")
    assert panel.problem.value == ""
    asyncio.run(panel.answer())
    assert panel.status.value == "done"
    panel.question.value = "what is </s> 3 ?"  # typed text stays text
    _, ids, form = panel._written()
    assert form is not None
    assert ids.count(2) == 2
    panel.template.value = "qa"
    assert "was trained and scored with the prompt &#x27;chat:" in panel.problem.value
    assert "this one is &#x27;qa&#x27;" in panel.problem.value


def test_a_prompt_other_than_that_of_the_training_or_the_evaluation_is_named(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }} : {{ m.content }}{{ eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant : {% endif %}"
    data = {"task": "mini-addsub", "rows": 8, "template": template}
    given = template + "\n"
    asked = {"tasks": ["mini-addsub"], "rows": 1, "template": given, "system": "be exact"}
    run(small("lora", data=data, eval=asked), root=tmp_path)
    panel = ChatPanel(tmp_path)
    trained, scored = short_name(template), short_name(given)
    assert [name for name, _ in panel.template.options][:2] == [trained, scored]
    assert panel.template.value == given
    words = f"The adapter was trained with the prompt {trained!r}; this one is {scored!r}."
    assert words in unescape(panel.problem.value)
    panel.question.value = "what is 3 ?"  # an edited question is asked in the same way
    assert panel.prompt.startswith("system : be exact</s>user : what is 3 ?")
    panel.template.value = template
    words = f"The adapter was scored with the prompt {scored!r}; this one is {trained!r}."
    assert words in unescape(panel.problem.value)
    panel.template.value = "qa"
    words = f"trained with the prompt {trained!r} and scored with the prompt {scored!r}; this one is 'qa'."
    assert words in unescape(panel.problem.value)
