"""DPO: TRL's numbers, the bare base as the reference, and the same promises as any other training."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.peft_format import from_peft
from llm_adapters_lab.core.registry import all_adapters
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.events import Step
from llm_adapters_lab.models import random_models
from llm_adapters_lab.models.loading import load_base
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.sweeps.studies import check_compatible
from llm_adapters_lab.tasks.tokens import IGNORED, Sample
from llm_adapters_lab.training.dpo import PreferenceObjective
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.loss import FastPaths
from llm_adapters_lab.training.spec import TrainSpec
from llm_adapters_lab.training.step import GradientComputer

GOLDEN = Path(__file__).parent / "golden"
TRL = json.loads((GOLDEN / "dpo.json").read_text(encoding="utf-8"))
PATHS = [FastPaths(), FastPaths(label_head=True), FastPaths(True, True), FastPaths(True, True, True)]


def pair(name: str, prompt: list[int], chosen: list[int], rejected: list[int]) -> Sample:
    ids, labels = [], []
    for answer in (chosen, rejected):
        ids += [*prompt, *answer]
        labels += [*[IGNORED] * len(prompt), *answer]
    return Sample(name, tuple(ids), tuple(labels), starts=(len(prompt) + len(chosen),))


TRL_PAIRS = [pair(str(i), p["prompt_ids"], p["chosen_ids"], p["rejected_ids"]) for i, p in enumerate(TRL["pairs"])]
PAIRS = [pair(str(i), [5, 6, 7 + i], [20 + i, 21, 2], [30 + i, 2][i % 2 :]) for i in range(6)]


def objective(model, injection, paths=PATHS[0], pairs=PAIRS, **plan):
    return PreferenceObjective(TrainSpec(objective="dpo", **plan), pairs, model, paths, 0, injection)


@pytest.mark.parametrize("paths", PATHS, ids=["plain", "head", "packed", "shared"])
def test_loss_margin_and_gradients_are_those_of_trl(paths):
    model = load_base("nano").model.float().train()
    injection = from_peft(model, GOLDEN / "dpo_adapter")
    for case in TRL["cases"]:
        found = objective(model, injection, paths, TRL_PAIRS, beta=case["beta"])
        with found.loss(model, [TRL_PAIRS[i] for i in case["pairs"]]) as loss:
            (loss / len(case["pairs"])).backward()
        margin, accuracy = (float(value) / len(case["pairs"]) for value in found.measured)
        assert float(loss.detach()) / len(case["pairs"]) == pytest.approx(case["loss"], abs=1e-5)
        assert margin == pytest.approx(case["rewards/margins"], abs=1e-5)
        assert accuracy == case["rewards/accuracies"]
        norms = sorted(float(p.grad.norm()) for p in injection.parameters())
        if "gradients" in case:
            assert norms == pytest.approx(sorted(case["gradients"].values()), rel=1e-4)
        for p in injection.parameters():
            p.grad = None


@pytest.mark.parametrize("kind", sorted(all_adapters()))
def test_the_reference_is_the_bare_base(kind):
    entry = all_adapters()[kind]
    config = entry.config(**{"type": kind, **entry.cls.example})
    model = random_models.tiny("tiny:llama").train()
    bare = copy.deepcopy(model).eval()
    injection = inject(model, config)
    with torch.no_grad():
        for p in injection.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    found = objective(model, injection)

    def logp(model: nn.Module, ids: tuple[int, ...], answer: int) -> torch.Tensor:
        each = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return each.gather(-1, torch.tensor(ids[1:])[:, None])[-answer:].sum()

    with torch.no_grad(), found.loss(model, PAIRS[:2]):
        wanted = [
            logp(bare, s.ids[: s.starts[0]], 3) - logp(bare, s.ids[s.starts[0] :], len(s.ids) - s.starts[0] - 3)
            for s in PAIRS[:2]
        ]
        assert found._reference.tolist() == pytest.approx(torch.stack(wanted).tolist(), abs=1e-5)
        assert float(found.measured[0]) != 0.0  # the adapter has an effect
    assert model.training


def steps(plan, pairs=PAIRS, saved=None, after=None, kind="lora", validation=()):
    torch.manual_seed(0)
    model = random_models.tiny("tiny:llama")
    injection = inject(model, all_adapters()[kind].config(**{"type": kind, "rank": 2}))
    found = list(train(model, injection, pairs, plan, validation=validation, saved=saved, after_step=after))
    return [event for event in found if isinstance(event, Step)], injection.state_dict(), found


PLAN = TrainSpec(objective="dpo", batch=4, max_steps=6, epochs=9, learning_rate=0.02, precision="fp32")


def test_training_prefers_the_chosen_answers_and_says_so():
    events, _, every = steps(replace_plan(max_steps=12, beta=0.5, learning_rate=0.05), validation=PAIRS[:2])
    assert events[0].loss == pytest.approx(0.6931472, abs=1e-6)  # log 2: nothing preferred yet
    assert events[0].measures == {"margin": 0.0, "accuracy": 0.0}
    assert events[-1].loss < 0.6 and events[-1].measures["margin"] > 0.3 and events[-1].measures["accuracy"] == 1.0
    (held,) = [event for event in every if type(event).__name__ == "Validated"]
    assert held.loss < 0.65 and held.right == ""  # a pair has no answer to write


def replace_plan(**changes):
    return TrainSpec.model_validate({**PLAN.model_dump(), **changes})


@pytest.mark.parametrize(
    "changes", [{"micro_batch": 1}, {"micro_tokens": 20}, {"packing": False}, {"label_head": False}]
)
def test_micro_batches_and_paths_do_not_matter(changes):
    plain, tensors, _ = steps(PLAN)
    other, found, _ = steps(replace_plan(**changes))
    assert [e.loss for e in plain] == pytest.approx([e.loss for e in other], abs=1e-5)
    assert [e.measures["margin"] for e in plain] == pytest.approx([e.measures["margin"] for e in other], abs=1e-4)
    assert all(torch.allclose(tensors[key], found[key], atol=1e-4) for key in tensors)


def test_resumed_to_the_bit():
    kept = []

    def keep(state):
        if state.step == 3:
            kept.append(copy.deepcopy(state.checkpoint()))

    whole, tensors, _ = steps(PLAN, after=keep)
    rest, found, _ = steps(PLAN, saved=kept[0])
    assert [(e.loss, e.measures) for e in rest] == [(e.loss, e.measures) for e in whole[3:]]
    assert all(torch.equal(tensors[key], found[key]) for key in tensors)


class Part(Accelerator):
    """One of two processes, which are run one after the other."""

    num_processes, process_index = 2, 0

    def reduce(self, tensor, *args, **kwargs):
        return tensor


def test_the_shares_of_two_processes_add_up_to_one():
    torch.manual_seed(0)
    model = random_models.tiny("tiny:llama")
    injection = inject(model, all_adapters()["lora"].config(type="lora", rank=2))
    with torch.no_grad():
        for p in injection.parameters():
            p.add_(0.3)
    gradients = GradientComputer(model, injection, PAIRS, PLAN, 0)
    losses, measured = [], []
    for accelerator, ranks in ((Accelerator(cpu=True), [0]), (Part(cpu=True), [0, 1])):
        total = [0.0, 0.0, 0.0]
        for rank in ranks:
            if len(ranks) == 2:
                accelerator.process_index = rank
            loss = gradients.step(accelerator, model, PAIRS[:4])
            total = [a + b for a, b in zip(total, [loss, *gradients.measured.values()], strict=True)]
        losses.append(total)
        measured.append(torch.cat([p.grad.flatten() for p in injection.parameters()]))
        gradients.clear()
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_rows_that_are_no_pairs_are_named():
    single = replace(PAIRS[1], starts=())
    with pytest.raises(
        BadSpec, match="^1: .* pairs of a chosen and a rejected answer, but this row has 1 with a label"
    ):
        steps(PLAN, [PAIRS[0], single])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"train": {"beta": 0.3}}, "train.beta = 0.3 is only read by the objective 'dpo'"),
        ({"train": {"objective": "dpo", "answers": 8}}, "train.answers = 8 is only read by the objective 'reward'"),
        ({"train": {"objective": "dpo", "compile": True}}, "train.compile does not work with train.objective = 'dpo'"),
        ({"train": {"objective": "dpo"}, "data": {"loss_on": "all"}}, "data.loss_on = all"),
        ({"train": {"objective": "dpo"}, "data": {"form": "text"}}, "data.form = text, which has no answers"),
        ({"train": {"objective": "dpo"}, "adapter": {"type": "lora", "split": {"parts": 3}}}, "split.parts = 3"),
        ({"train": {"objective": "reward"}, "data": {"validation": 9}}, "data.validation = 9"),
        ({"train": {"objective": "reward", "answers": 1}}, "train.answers"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, said):
    with pytest.raises(BadSpec, match=said):
        RunSpec.parse({"adapter": {"type": "lora"}, **fields})


def test_a_study_refuses_it_and_ids_stay():
    specs = [RunSpec.parse({"adapter": {"type": "lora", "rank": r}, "train": {"objective": "dpo"}}) for r in (2, 4)]
    with pytest.raises(BadSpec, match=r"another\s+train.objective"):
        check_compatible(specs)
    plain = RunSpec.parse({"adapter": {"type": "lora"}, "train": {"objective": "likelihood", "beta": 0.1}})
    assert plain.id == RunSpec.parse({"adapter": {"type": "lora"}}).id
