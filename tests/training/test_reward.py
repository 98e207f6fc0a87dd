"""Reward training: what is drawn, the gradient, and the same promises as any other training."""

import copy
import json
import threading

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluation.decoding import drawn, greedy
from llm_adapters_lab.events import Noticed, Step
from llm_adapters_lab.models import random_models
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.tokens import IGNORED, Sample
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.loss import FastPaths
from llm_adapters_lab.training.reward import Answering, RewardObjective, Rollout, question
from llm_adapters_lab.training.spec import TrainSpec
from llm_adapters_lab.training.step import GradientComputer

END, LIMIT = 2, 3
ROWS = [Sample(f"row/{i}", (5, 6, 7 + i, 40, END), (*[IGNORED] * 3, 40, END)) for i in range(5)]
PLAN = TrainSpec(objective="reward", answers=3, batch=4, max_steps=5, epochs=9, learning_rate=0.02, precision="fp32")


def changed(**fields):
    return TrainSpec.model_validate({**PLAN.model_dump(), **fields})


def small_numbers(row, answer):
    """Give 1 for an answer that begins with a token below 64, as half of them do."""
    return float(answer[0] < 64)


ANSWERING = Answering(small_numbers, lambda answer: answer[-1] == END, LIMIT)


def tiny(kind="lora"):
    torch.manual_seed(0)
    model = random_models.tiny("tiny:llama")
    injection = inject(model, get_adapter(kind).config(type=kind, rank=2))
    with torch.no_grad():
        for p in injection.parameters():
            p.add_(0.1)
    return model, injection


def computer(plan=PLAN, answering=ANSWERING):
    model, injection = tiny()
    return GradientComputer(model, injection, ROWS, plan, 0, answering), model, injection


def test_tokens_are_drawn_with_their_probabilities():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]])
    count = 20_000
    uniforms = torch.rand(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for temperature in (1.0, 0.5):
        tokens = drawn(uniforms, temperature)(logits.expand(count, -1), range(count), 0)
        shares = tokens.bincount(minlength=4) / count
        assert shares.tolist() == pytest.approx((logits[0] / temperature).softmax(0).tolist(), abs=0.01)
        assert shares[2] == 0
    edges = drawn(torch.tensor([[0.0], [1 - 1e-16]], dtype=torch.float64), 1.0)
    assert edges(torch.tensor([[-torch.inf, 1.0, 1.0, -torch.inf]] * 2), [0, 1], 0).tolist() == [1, 2]


def test_a_row_is_answered_alike_in_any_company():
    model, _ = tiny()
    uniforms = torch.rand(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    asked = [list(question(row)) for row in ROWS]
    together = greedy(model.eval(), asked, 0, 6, ANSWERING.is_complete, drawn(uniforms, 1.0))
    alone = [
        greedy(model, [ids], 0, 6, ANSWERING.is_complete, drawn(uniforms[i : i + 1], 1.0))[0]
        for i, ids in enumerate(asked)
    ]
    assert together == alone
    assert len({tuple(answer) for answer in together}) > 1


def test_rollouts_have_their_siblings_for_a_baseline():
    gradients, model, _ = computer()
    model.train()
    rollouts = gradients.objective.draw(Accelerator(cpu=True), 1, 7, ROWS)
    assert model.training and len(rollouts) == 15 and gradients.objective.units(rollouts) == 15
    for i, row in enumerate(ROWS):
        group = rollouts[3 * i : 3 * i + 3]
        for rollout in group:
            answer = rollout.ids[3:]
            assert rollout.id == row.id and rollout.ids[:3] == row.ids[:3]
            assert rollout.labels == (*[IGNORED] * 3, *answer)
            assert len(answer) == LIMIT or answer[-1] == END
            others = [other.reward for other in group if other is not rollout]
            assert rollout.reward == small_numbers("", answer)
            assert rollout.advantage == pytest.approx(rollout.reward - sum(others) / 2)
    again = gradients.objective.draw(Accelerator(cpu=True), 1, 7, ROWS)
    other = gradients.objective.draw(Accelerator(cpu=True), 1, 8, ROWS)
    assert again == rollouts != other


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_gradient_is_that_of_the_expected_reward(temperature):
    """Over all answers of one token, weighted by their probability, it is the gradient of the mean reward."""
    model, injection = tiny()
    plan, words = changed(temperature=temperature), range(0, 128)
    objective = RewardObjective(plan, ROWS, ANSWERING, model, FastPaths(True, True, True), 0, injection)
    prompt = (5, 6, 7)
    logits = model(torch.tensor([prompt])).logits[0, -1] / temperature
    expected = logits.softmax(0)[:64].sum()
    wanted = torch.autograd.grad(expected, injection.parameters(), allow_unused=True)
    chances = logits.softmax(0).tolist()
    rollouts = [
        Rollout("0", (*prompt, word), (*[IGNORED] * 3, word), reward=1.0, advantage=chances[word] * (word < 64))
        for word in words
    ]
    with objective.loss(model, rollouts) as loss:
        found = torch.autograd.grad(-loss, injection.parameters(), allow_unused=True)
    for mine, theirs in zip(found, wanted, strict=True):
        if theirs is not None:
            assert torch.allclose(mine, theirs, atol=1e-6)


def steps(plan=PLAN, answering=ANSWERING, saved=None, after=None):
    gradients, model, injection = computer(plan, answering)
    options = {"gradients": gradients, "saved": saved, "after_step": after, "seed": 3}
    events = [e for e in train(model, injection, ROWS, plan, **options) if isinstance(e, Step)]
    return events, injection.state_dict()


def test_training_raises_the_reward_and_says_so():
    torch.manual_seed(0)
    model = random_models.tiny("tiny:llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # so that its likelihoods can change
    injection = inject(model, get_adapter("lora").config(type="lora", rank=8))
    plan = changed(max_steps=25, answers=8, learning_rate=0.05)
    gradients = GradientComputer(model, injection, ROWS, plan, 0, Answering(small_numbers, lambda answer: True, 1))
    found = list(train(model, injection, ROWS, plan, gradients=gradients))
    measures = [event.measures for event in found if isinstance(event, Step)]
    assert sum(m["reward"] for m in measures[-5:]) > sum(m["reward"] for m in measures[:5]) + 0.5
    assert all(0 <= m["idle"] <= 1 for m in measures)


@pytest.mark.parametrize("paths", [{"packing": False}, {"label_head": False, "packing": False}, {"micro_batch": 2}])
def test_fast_paths_and_micro_batches_do_not_matter(paths):
    plain, tensors = steps()
    other, found = steps(changed(**paths))
    assert [e.loss for e in plain] == pytest.approx([e.loss for e in other], abs=1e-4)
    for mine, theirs in zip(plain, other, strict=True):
        assert mine.measures == pytest.approx(theirs.measures, abs=1e-5)
    assert all(torch.allclose(tensors[key], found[key], atol=1e-3) for key in tensors)


def test_resumed_to_the_bit():
    kept = []

    def keep(state):
        if state.step == 2:
            kept.append(copy.deepcopy(state.checkpoint()))

    whole, tensors = steps(after=keep)
    rest, found = steps(saved=kept[0])
    assert [(e.loss, e.measures) for e in rest] == [(e.loss, e.measures) for e in whole[2:]]
    assert all(torch.equal(tensors[key], found[key]) for key in tensors)


def test_nothing_is_learnt_where_all_rewards_are_equal():
    events, tensors = steps(answering=Answering(lambda row, answer: 1.0, ANSWERING.is_complete, LIMIT))
    assert [(e.loss, e.gradient_norm, e.measures) for e in events] == [(0, 0, {"reward": 1.0, "idle": 1.0})] * 5
    assert all(torch.equal(tensors[key], value) for key, value in tiny()[1].state_dict().items())


def test_the_question_of_a_chat_is_all_before_the_last_answer():
    ids = tuple(range(10, 18))
    chat = Sample("c", ids, (IGNORED, 11, 12, IGNORED, IGNORED, 15, 16, IGNORED))
    assert question(chat) == ids[:5]
    assert question(Sample("p", ids, (IGNORED,) * 8)) == ids
    assert [len(row.ids) for row in ANSWERING.longest([chat])] == [5 + LIMIT]


def test_what_cannot_be_answered_is_refused():
    model, injection = tiny()
    model.config.max_position_embeddings = 5
    with pytest.raises(BadSpec, match="longest question has 3 tokens; with up to 3 for the answer .* than the 5"):
        GradientComputer(model, injection, ROWS, PLAN, 0, ANSWERING)
    model.config.max_position_embeddings = 128
    with pytest.raises(BadSpec, match="scores answers"):
        GradientComputer(model, injection, ROWS, PLAN, 0)
    state = random_models.tiny("tiny:mamba")
    with pytest.raises(BadSpec, match="MambaForCausalLM has a cache of its own"):
        GradientComputer(
            state, inject(state, get_adapter("lora").config(type="lora", at="in_proj")), ROWS, PLAN, 0, ANSWERING
        )


@pytest.fixture
def fields(tmp_path):
    """A spec whose questions `nano` answers as wanted at times: with another question, one with "how"."""
    rows = [{"instruction": f"Tom has {i} apples .", "answer": "how"} for i in range(12)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {
        "base": "nano",
        "adapter": {"type": "lora", "rank": 4},
        "data": {"task": f"own:{file}?template=qa&labels=how|what"},
        "train": {"objective": "reward", "batch": 4, "max_steps": 4, "learning_rate": 0.01, "checkpoint_every": 2},
        "eval": {"max_new_tokens": 6},
    }


def test_a_run_that_is_stopped_resumes_to_the_bit(fields, tmp_path):
    spec, stop = RunSpec.parse(fields), threading.Event()
    whole = run(spec, root=tmp_path / "whole")
    run(spec, root=tmp_path / "runs", stop=stop, on_event=lambda e: stop.set() if getattr(e, "step", 0) == 2 else None)
    record = run(spec, root=tmp_path / "runs")
    assert list(record.events("Resumed"))
    losses = [[(e["step"], e["loss"], e["measures"]) for e in one.events("Step")] for one in (whole, record)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert any(measures["idle"] < 1 and loss for _, loss, measures in losses[0])
    mine, theirs = (load_file(one.folder / "adapter" / "adapter.safetensors") for one in (whole, record))
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    first, last = (whole.summary["train"][f"reward_{end}"] for end in ("first", "last"))
    assert (first, last) == (losses[0][0][2]["reward"], losses[0][-1][2]["reward"])


def test_a_run_in_which_no_reward_differs_says_so(fields, tmp_path):
    told = []
    file = tmp_path / "rows.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace("how", "why"), encoding="utf-8")
    fields["data"] = {"task": f"own:{file}?template=qa&labels=how|what|why"}
    run(RunSpec.parse(fields), root=tmp_path / "runs", on_event=told.append)
    assert any("same reward, so nothing was learnt" in e.text for e in told if isinstance(e, Noticed))
