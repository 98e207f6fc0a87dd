"""Evaluation: protocols, batches, likelihoods, solved examples, rows that are too long, rescoring, resuming."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.merging import temporarily_merged
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluation.decoding import StopRule, context_length
from llm_adapters_lab.evaluation.likelihood import Question, _uncached_likelihoods, choice_scores
from llm_adapters_lab.evaluation.predictions import _generate, answer, evaluate
from llm_adapters_lab.evaluation.scoring import count, score
from llm_adapters_lab.events import Event, Scoring
from llm_adapters_lab.models import loading, random_models
from llm_adapters_lab.results.rescoring import rescore
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.rows import MARGIN, answer_limit
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks import prompts
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.formats import get_format
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import prompt_ids

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "rank": 4, "at": "attn+mlp"},
    "series": {"type": "series", "bottleneck": 8},
    "parallel": {"type": "parallel", "bottleneck": 8},
    "prefix": {"type": "prefix", "virtual_tokens": 5},
}
BOOL, SUMS = get_task("mini-bool"), get_task("mini-addsub")
SMALL: dict[str, Any] = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 4},
    "data": {"task": "mini-math", "rows": 24},
    "train": {"batch": 8, "max_steps": 2, "learning_rate": 1e-3},
    "eval": {"tasks": ["mini-addsub", "mini-bool"], "rows": 7, "batch": 3, "max_new_tokens": 4},
}


@pytest.fixture(scope="module")
def nano() -> loading.Base:
    return loading.load_base("nano")


def shaken(adapter: str) -> tuple[loading.Base, Any]:
    base = loading.load_base("nano")
    injection = inject(base.model, get_adapter(ADAPTERS[adapter]["type"]).config(**ADAPTERS[adapter]))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in injection.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return base, injection


def by_id(predictions: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {p["id"]: p for p in predictions}
    assert len(found) == len(predictions)
    return found


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("protocol", ["lab", "paper", "options"])
def test_predictions_do_not_depend_on_the_batch_size(adapter: str, protocol: str) -> None:
    base, _ = shaken(adapter)
    rows = BOOL.load("test", None)[: 6 if protocol == "paper" else 16]
    options: dict[str, Any] = {"protocol": protocol, "max_new_tokens": 5}
    one, many = (by_id(list(evaluate(base.model, base.tokenizer, BOOL, rows, batch=n, **options))) for n in (1, 16))
    assert one.keys() == many.keys() == {row.id for row in rows}
    for name, p in one.items():
        scores, same = p.pop("options"), many[name].pop("options")
        assert p == many[name]
        for kind in ("label", "text"):
            assert scores[kind] == pytest.approx(same[kind], abs=1e-4)


@given(
    st.lists(st.integers(0, 199), min_size=1, max_size=12, unique=True), st.integers(1, 13), st.sampled_from(["a", "b"])
)
@settings(deadline=None, max_examples=15)
def test_no_row_is_lost_duplicated_or_swapped(nano: loading.Base, which: list[int], batch: int, kind: str) -> None:
    task = BOOL if kind == "a" else SUMS
    rows = [task.load("test", None)[i] for i in which]
    found = by_id(list(evaluate(nano.model, nano.tokenizer, task, rows, batch=batch, max_new_tokens=2)))
    assert set(found) == {row.id for row in rows}
    for row in rows:
        assert found[row.id]["gold"] == row.answer
        assert found[row.id]["prompt"] == prompts.prompt(row, task.template)


def test_the_lab_answers_as_plain_generation_does(nano: loading.Base) -> None:
    rows = [prompt_ids(nano.tokenizer, prompts.prompt(r, "qa")) for r in SUMS.load("test", None)[:12]]
    ended = StopRule(nano.model, nano.tokenizer, "qa")
    plain = _generate(nano.model, nano.tokenizer.pad_token_id, rows, 24, ended, 1)
    assert answer(nano.model, nano.tokenizer.pad_token_id, rows, 24, ended) == plain


def test_models_with_another_kind_of_cache_are_scored_by_transformers(nano: loading.Base) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    model = MambaForCausalLM(MambaConfig(vocab_size=len(nano.tokenizer), **size)).eval()
    rows = BOOL.load("test", None)[:3]
    found = list(evaluate(model, nano.tokenizer, BOOL, rows, batch=1, max_new_tokens=3))
    assert {p["id"] for p in found} == {row.id for row in rows}
    assert all(set(p["options"]["label"]) == {"true", "false"} for p in found)


def test_cached_and_uncached_likelihoods_agree(nano: loading.Base) -> None:
    rows = BOOL.load("test", None)[:5]
    items = [Question(row, prompt_ids(nano.tokenizer, prompts.prompt(row, "qa"))) for row in rows]
    answers = [[nano.tokenizer(f" {t}", add_special_tokens=False)["input_ids"] for t in ("true", "false")]] * 5
    whole = _uncached_likelihoods(nano.model, [item.ids for item in items], answers, nano.tokenizer.pad_token_id)
    found = choice_scores(nano.model, nano.tokenizer, BOOL, items, "qa")
    for values, scores in zip(whole, found, strict=True):
        difference = scores["label"]["true"] - scores["label"]["false"]
        assert difference == pytest.approx(values[0] - values[1], abs=1e-4)


def test_rows_longer_than_the_context_count_as_wrong_and_are_not_truncated(nano: loading.Base) -> None:
    short = BOOL.load("test", None)[0]
    long = Example("long", short.instruction * 40, "", short.output, short.answer)
    for protocol, text in (("lab", ""), ("options", None)):
        found = list(evaluate(nano.model, nano.tokenizer, BOOL, [long, short], protocol=protocol, max_new_tokens=3))
        assert {p["id"]: p.get("too_long", False) for p in found} == {"long": True, short.id: False}
        assert by_id(found)["long"]["text"] == text
        result = score(BOOL, found, [long, short], protocol=protocol)
        assert result["too_long"] == 1
        assert result["total"] == 2
        assert result["accuracy"] <= 0.5
        assert result["by_label"] <= 0.5


def test_virtual_tokens_take_up_context() -> None:
    base, _ = shaken("prefix")
    limit = base.model.config.max_position_embeddings
    assert context_length(loading.load_base("nano").model) == limit
    assert context_length(base.model) == limit - 5
    assert context_length(random_models.tiny("tiny:bloom")) is None


def test_solved_examples_are_seeded_and_refused_without_a_train_split(tmp_path: Path) -> None:
    spec = RunSpec.parse({**SMALL, "adapter": None, "eval": {**SMALL["eval"], "shots": 2, "tasks": ["mini-bool"]}})
    record = run(spec, root=tmp_path)
    asked = [p["prompt"] for p in record.predictions()]
    front = {text[: text.rindex("question :")].split("\n\n")[0] for text in asked}
    assert len(front) == 1
    assert all(text.count("answer :") == 3 for text in asked)
    assert record.summary["scores"]["mini-bool"]["shots"] == 2
    with pytest.raises(BadSpec, match="'gsm8k' has no train split"):
        RunSpec.parse({"eval": {"tasks": ["gsm8k"], "shots": 1}})
    with pytest.raises(BadSpec, match="'gsm8k' offers no options"):
        RunSpec.parse({"eval": {"tasks": ["gsm8k"], "protocol": "options"}})


@pytest.mark.parametrize(
    ("protocol", "extraction", "decoding"),
    [
        ("lab", "lab", "greedy"),
        ("paper", "original", "4 beams by transformers"),
        ("options", "lab", "likelihood"),
    ],
)
def test_every_score_names_its_protocol(protocol: str, extraction: str, decoding: str, tmp_path: Path) -> None:
    plan = {"tasks": ["mini-bool"], "rows": 3, "max_new_tokens": 3, "protocol": protocol}
    record = run(RunSpec.parse({"base": "nano", "eval": plan}), root=tmp_path)
    found = record.summary["scores"]["mini-bool"]
    assert (found["protocol"], found["extraction"], found["decoding"]) == (protocol, extraction, decoding)
    assert found["by_label"] is not None
    assert found["by_text"] is None
    assert (found["in_format"] is None) == (protocol == "options")
    if protocol == "paper":
        assert all(p["prompt"].endswith("\n\n" + 16 * " " + "### Response:\n" + 16 * " ") for p in record.predictions())


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_merging_for_the_evaluation_leaves_no_trace(adapter: str) -> None:
    base, injection = shaken(adapter)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    rows = BOOL.load("test", None)[:4]
    hooked = by_id(list(evaluate(base.model, base.tokenizer, BOOL, rows, max_new_tokens=6)))
    with pytest.raises(KeyboardInterrupt), temporarily_merged(injection) as was:
        assert was == (adapter == "lora")
        found = by_id(list(evaluate(base.model, base.tokenizer, BOOL, rows, max_new_tokens=6)))
        raise KeyboardInterrupt
    assert {i: p["text"] for i, p in found.items()} == {i: p["text"] for i, p in hooked.items()}
    after = base.model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    again = by_id(list(evaluate(base.model, base.tokenizer, BOOL, rows, max_new_tokens=6)))
    assert again == hooked


def test_a_base_in_bf16_is_not_merged_into() -> None:
    model = random_models.tiny("tiny:llama").to(torch.bfloat16)
    with temporarily_merged(inject(model, get_adapter("lora").config(type="lora"))) as was:
        assert not was
    with temporarily_merged(None) as was:
        assert not was


def timeless(record: Run) -> tuple[Any, ...]:
    summary = record.summary
    for key in ("seconds", "tokens_per_second", "peak_memory_bytes"):
        (summary["train"] or {}).pop(key, None)
    return summary, list(record.predictions())


@pytest.mark.parametrize("adapter", [None, {"type": "lora", "rank": 4}, {"type": "prefix"}])
@pytest.mark.parametrize(("torn", "batch"), [(False, 3), (True, 3), (True, 1)])
def test_an_interrupted_evaluation_resumes_with_the_same_result(
    adapter: Any, torn: bool, batch: int, tmp_path: Path
) -> None:
    plan = {**SMALL["eval"], "batch": batch}  # 1: more than one block
    spec, stop, asked = RunSpec.parse({**SMALL, "adapter": adapter, "eval": plan}), threading.Event(), []

    def listen(event: Event) -> None:
        asked.append(event)
        if isinstance(event, Scoring) and event.done == 6:
            stop.set()

    whole = run(spec, root=tmp_path / "whole")
    record = run(spec, root=tmp_path / "cut", stop=stop, on_event=listen)
    assert not record.done
    file = record.folder / "predictions.jsonl"
    assert len(list(record.predictions())) == 6
    if torn:  # killed in the middle of a line, one row into a batch
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(lines[:4]) + lines[4][:20])
        events = record.folder / "events.jsonl"
        events.write_text(events.read_text() + '{"event": "Sco')
    steps = len(list(record.events("Step")))
    again = run(spec, root=tmp_path / "cut")
    assert timeless(again) == timeless(whole)
    assert len(list(again.events("Step"))) == steps  # not trained again
    assert [json.loads(line)["event"] for line in (record.folder / "events.jsonl").read_text().splitlines()][
        -1
    ] == "Finished"


def test_a_limit_learnt_from_the_training_rows(tmp_path: Path) -> None:
    plan = {"tasks": ["mini-bool"], "rows": 6, "likelihood": False}
    found, scores = {}, {}
    for limit in ("auto", None, 3):
        record = run(RunSpec.parse({"base": "nano", "eval": {**plan, "max_new_tokens": limit}}), root=tmp_path)
        found[limit], scores[limit] = list(record.predictions()), record.summary["scores"]["mini-bool"]
    form = get_format(loading.load_base("nano").tokenizer, BOOL.template)
    longest = max(len(form.row(row).ids) - len(form.prompts([row])[0][1]) for row in BOOL.load("train")[:50])
    asked = [(score["max_new_tokens"], score["limit_from"]) for score in scores.values()]
    assert asked == [(longest + MARGIN, "auto"), (BOOL.max_new_tokens, "task"), (3, "spec")]
    for short, whole in zip(found["auto"], found[None], strict=True):
        assert short["tokens"] == min(whole["tokens"], longest + MARGIN)
        assert short["cut"] == (whole["tokens"] > longest + MARGIN or whole["cut"])


def test_scored_rows_teach_no_limit(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {n}", "output": "a " * n, "answer": "a"} for n in range(1, 6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name, tokenizer = f"own:{tmp_path / 'rows.jsonl'}?form=text", loading.load_base("nano").tokenizer
    spec = RunSpec.parse({"base": "nano", "eval": {"tasks": [name], "max_new_tokens": "auto"}})
    examples, form = get_task(name).load("test"), get_format(tokenizer, "alpaca")
    assert answer_limit(spec, name, form, examples) == get_task(name).max_new_tokens
    longest = len(tokenizer("a a a", add_special_tokens=False)["input_ids"]) + 1
    assert answer_limit(spec, name, form, examples[3:]) == pytest.approx(longest + MARGIN, abs=1)
    with pytest.raises(BadSpec, match=r"eval.max_new_tokens .*or auto"):
        RunSpec.parse({"base": "nano", "eval": {"tasks": [name], "max_new_tokens": "most"}})


def test_answers_to_another_prompt_are_not_reused(tmp_path: Path) -> None:
    spec = RunSpec.parse({**SMALL, "adapter": None})
    whole = timeless(run(spec, root=tmp_path))
    record = Run(tmp_path / spec.id)
    (record.folder / "summary.json").unlink()
    lines = [json.loads(line) for line in (record.folder / "predictions.jsonl").read_text().splitlines()]
    lines[2] |= {"prompt_hash": "0", "text": "stale", "extracted": "7", "correct": True}
    (record.folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert timeless(run(spec, root=tmp_path)) == whole


def test_rescoring_applies_another_rule_to_the_stored_text(tmp_path: Path) -> None:
    text = "I have 9 apples. The answer is 12. Next question 3"
    (tmp_path / "SVAMP").mkdir()
    rows = [{"instruction": "How many?", "input": "", "output": "", "answer": "12"}]
    (tmp_path / "SVAMP" / "test.json").write_text(json.dumps(rows))
    spec = RunSpec.parse({"base": "nano", "eval": {"tasks": ["svamp"], "root": str(tmp_path), "max_new_tokens": 2}})
    record = run(spec, root=tmp_path / "runs")
    (line,) = record.predictions()
    (record.folder / "predictions.jsonl").write_text(json.dumps({**line, "text": text}) + "\n")
    lab, original = rescore(record, "lab")["svamp"], rescore(record, "original")["svamp"]
    assert (lab["correct"], lab["extraction"]) == (1, "lab")
    assert (original["correct"], original["extraction"]) == (0, "original")
    assert set(original) == set(record.summary["scores"]["svamp"])


def test_rescoring_a_run_without_a_result_or_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="unfinished"):
        rescore(Run(tmp_path), "lab")
    plan = {"tasks": ["mini-bool"], "rows": 2, "protocol": "options"}
    record = run(RunSpec.parse({"base": "nano", "eval": plan}), root=tmp_path)
    with pytest.raises(BadSpec, match="no text to read again"):
        rescore(record, "lab")


def test_counting_options_by_label_and_by_text() -> None:
    common: dict[str, Any] = {"gold": "b", "extracted": None, "correct": False, "text": ""}
    right = {"options": {"label": {"a": -1.0, "b": -2.0}, "text": {"a": -3.0, "b": -1.0}}}
    wrong = {"options": {"label": {"a": -2.0, "b": -1.0}, "text": {"a": -1.0, "b": -3.0}}}
    result = count([{**common, **right}, {**common, **right}, {**common, **wrong}])
    assert result["by_label"] == pytest.approx(1 / 3)
    assert result["by_text"] == pytest.approx(2 / 3)
    assert result["accuracy"] == result["in_format"] == 0
    assert count([common])["by_text"] is None


def test_the_original_prompt_keeps_its_white_space() -> None:
    example = Example("1", "What?", "", "", "")
    pad = 16 * " "
    assert prompts.prompt(example, "original").endswith(
        f"appropriately completes the request. \n\n{pad}### Instruction:\n{pad}What?\n\n{pad}### Response:\n{pad}"
    )
    more = prompts.prompt(Example("1", "What?", "That.", "", ""), "original")
    assert f"completes the request.\n\n{pad}### Instruction:\n{pad}What?\n\n{pad}### Input:\n{pad}That.\n\n" in more


def test_a_log_cut_inside_a_character_is_resumed(tmp_path: Path) -> None:
    spec = RunSpec.parse({"eval": {"tasks": ["mini-addsub"], "rows": 6, "batch": 2, "max_new_tokens": 3}})
    whole = run(spec, root=tmp_path / "whole")
    record = run(spec, root=tmp_path / "torn")
    (record.folder / "summary.json").unlink()
    for name in ("events.jsonl", "predictions.jsonl"):
        path = record.folder / name
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:2]) + '{"text": "café'.encode()[:-1])
    assert list(run(spec, root=tmp_path / "torn").predictions()) == list(whole.predictions())


def test_a_changed_gold_answer_is_a_changed_row(tmp_path: Path) -> None:
    rows = [{"q": f"Is {i} odd?", "a": "yes" if i % 2 else "no"} for i in range(6)]
    file = tmp_path / "odd.json"
    file.write_text(json.dumps(rows))
    name = f"own:{file}?instruction=q&answer=a&form=label&labels=yes|no"
    spec = RunSpec.parse({"eval": {"tasks": [name], "batch": 2, "max_new_tokens": 3}})
    record = run(spec, root=tmp_path)
    (record.folder / "summary.json").unlink()
    file.write_text(json.dumps([{**row, "a": "yes"} for row in rows]))
    with pytest.raises(BadSpec, match="rows changed"):
        run(spec, root=tmp_path)
    assert {p["gold"] for p in run(spec, root=tmp_path, fresh=True).predictions()} == {"yes"}


def test_options_reserve_no_context_for_an_answer() -> None:
    base = loading.load_base("nano")
    rows = BOOL.load("test", None)[:4]
    made = list(evaluate(base.model, base.tokenizer, BOOL, rows, protocol="options", max_new_tokens=100_000))
    assert not any(p.get("too_long") for p in made) and all(p["options"]["label"] for p in made)


def test_solved_examples_depend_on_the_seed_and_not_on_the_questions() -> None:
    from llm_adapters_lab.runs.rows import read_rows

    def shots(rows: int, seed: int = 0) -> list[str]:
        fields = {"eval": {"tasks": ["mini-addsub"], "rows": rows, "shots": 3}, "seed": seed}
        return [row.id for row in read_rows(RunSpec.parse(fields)).shots["mini-addsub"]]

    assert shots(5) == shots(50) != shots(5, seed=1)


def test_rescoring_an_incomplete_log_is_refused(tmp_path: Path) -> None:
    spec = RunSpec.parse({"eval": {"tasks": ["mini-addsub"], "rows": 4, "max_new_tokens": 3}})
    record = run(spec, root=tmp_path)
    path = record.folder / "predictions.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))
    with pytest.raises(BadSpec, match="holds 1 of 4 answers to mini-addsub"):
        rescore(record, "original")
