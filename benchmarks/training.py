"""How fast training is: peft with transformers' Trainer, peft in a plain loop, and the lab, on the same work.

    python benchmarks/training.py [--base nano] [--task mini-math] [--batch 32] [--steps 5] [--rounds 5] [--root DATA]
    python benchmarks/training.py --base smollm2-135m --task arc-e,boolq,gsm8k-official --batch 4,16,64 --counts

With TRL installed, its SFTTrainer takes part, with its defaults and at its best. All train LoRA from the same first
tensors on the same rows in the same order, with the same optimiser, schedule and precision. The ways take turns, so
that what disturbs the machine disturbs all of them; ratios are of neighbours. FLOPs, tokens and held bytes are counted
in a step of their own and do not depend on the machine; --counts leaves out the timed rounds. The second part trains
--study adapters at once over one base, as `study` does, and compares that with as many runs one after the other, and
with one run of as many tokens in a pass. Writes each result to training-BASE-TASK-BATCH.json in the folder --out, and
all results there to training.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.events import FellBack, Step
from llm_adapters_lab.models import loading
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.environment import environment
from llm_adapters_lab.runs.forecast.memory import Peak
from llm_adapters_lab.tasks.encoding import encode
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.batches import collate, row_order
from llm_adapters_lab.training.device import make_accelerator
from llm_adapters_lab.training.fast_paths import choose_fast_paths
from llm_adapters_lab.training.joint import JointTrainer, Member
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.optimizer import learning_rate
from llm_adapters_lab.training.packing import pack
from llm_adapters_lab.training.spec import TrainSpec

HERE = Path(__file__).parent
OFF = {"label_head": False, "packing": False, "share_prefix": False, "recompute": False}
RIVALS = ("trainer", "trl", "trl-tuned")


@dataclass
class Work:
    """What every way is to do, and the clock it is measured by."""

    base: str
    rows: list[Sample]  # in the order in which they are trained on
    plan: TrainSpec
    config: LoRAConfig
    pad_id: int
    losses: list[float] = field(default_factory=list)
    trial: int = 0  # FLOPs of the lab's trial of its shortcuts, once in a training
    wall: float = 0.0
    cpu: float = 0.0
    ends: list[float] = field(default_factory=list)  # of every step, by the clock
    spent: list[float] = field(default_factory=list)  # of the processor, by then

    def load(self) -> loading.Base:
        """Return the base, afresh."""
        return loading.load_base(self.base)

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Measure what is done inside, a GPU's part too."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu

    def end_step(self) -> None:
        """Note the times at the end of a step."""
        self.ends.append(self.wall)
        self.spent.append(self.cpu)

    def batches(self) -> list[list[Sample]]:
        """Return the rows of each step."""
        size = self.plan.batch
        return [self.rows[i : i + size] for i in range(0, len(self.rows), size)][: self.plan.max_steps]


def trainer(work: Work) -> Iterator[None]:
    """peft, Trainer: padded to the longest row of a batch, logits of every token."""
    model, tokenizer = _peft(work)
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    yield from _with_trainer(work, model, Trainer, TrainingArguments, data_collator=collator)


def trl(work: Work) -> Iterator[None]:
    """TRL, SFTTrainer with its defaults: gradient checkpointing on."""
    yield from _trl(work, {})


def trl_tuned(work: Work) -> Iterator[None]:
    """TRL, SFTTrainer at its best: no checkpointing; on a GPU no padding, and Liger's kernels."""
    gpu = torch.cuda.is_available()  # on a CPU, rows without padding attend to each other's masks: half as fast
    yield from _trl(
        work, {"gradient_checkpointing": False, "padding_free": gpu, "max_length": None, "use_liger_kernel": gpu}
    )


def _trl(work: Work, options: dict[str, Any]) -> Iterator[None]:
    from trl import SFTConfig, SFTTrainer  # not among the packages that the tests need

    model, tokenizer = _peft(work)
    yield from _with_trainer(work, model, SFTTrainer, SFTConfig, options, processing_class=tokenizer)


def _with_trainer(
    work: Work, model: Any, kind: Any, settings: Any, options: dict[str, Any] | None = None, **parts: Any
) -> Iterator[None]:
    """Train by a class that inherits from transformers' Trainer, with the settings that all ways share."""
    data = [{"input_ids": [*s.ids], "labels": [*s.labels]} for s in work.rows]
    if kind is Trainer:
        data = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in data]

    class InOrder(kind):  # type: ignore[misc]
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    plan = work.plan
    with tempfile.TemporaryDirectory() as folder:
        arguments = settings(
            output_dir=folder,
            per_device_train_batch_size=plan.batch,
            max_steps=plan.max_steps or -1,
            learning_rate=plan.learning_rate,
            max_grad_norm=plan.clip,
            bf16=plan.precision == "bf16",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            **(options or {}),
        )
        rows: Any = data if kind is Trainer else Dataset.from_list(data)
        made = InOrder(model=model, args=arguments, train_dataset=rows, callbacks=[_Clock(work)], **parts)
        yield
        made.train()
        work.losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]


class _Clock(TrainerCallback):
    def __init__(self, work: Work) -> None:
        self.work = work

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.running = self.work.clock()
        self.running.__enter__()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.running.__exit__(None, None, None)
        self.work.end_step()


def loop(work: Work) -> Iterator[None]:
    """peft, plain loop: the same padding and logits."""
    model, _ = _peft(work)
    plan, model = work.plan, model.train()
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=plan.learning_rate, weight_decay=0.0)
    yield
    for step, rows in enumerate(work.batches()):
        with work.clock():
            optimizer.param_groups[0]["lr"] = learning_rate(plan, step, plan.max_steps or 1)
            batch = collate(rows, work.pad_id, model.device)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(own, plan.clip)
            optimizer.step()
            optimizer.zero_grad()
            work.losses.append(float(loss.detach()))
        work.end_step()


def off(work: Work) -> Iterator[None]:
    """lab, all shortcuts off."""
    yield from _lab(work, OFF)


def on(work: Work) -> Iterator[None]:
    """lab, as it comes."""
    yield from _lab(work, {})


WAYS: dict[str, Callable[[Work], Iterator[None]]] = {"trainer": trainer, "loop": loop, "off": off, "on": on}
if importlib.util.find_spec("trl"):
    WAYS = {"trainer": trainer, "trl": trl, "trl-tuned": trl_tuned, "loop": loop, "off": off, "on": on}


def _lab(work: Work, changes: dict[str, Any]) -> Iterator[None]:
    base = work.load()
    torch.manual_seed(0)
    injection = inject(base.model, work.config)
    plan = work.plan.model_copy(update=changes)
    # The lab orders rows by seed; they are given so that its order is that of the others.
    places = [i for batch in row_order(len(work.rows), plan.batch, plan.max_steps or 1, 0) for i in batch]
    rows = [row for _, row in sorted(zip(places, work.rows, strict=False), key=lambda pair: pair[0])]
    accelerator = make_accelerator(plan.precision)
    base.model.to(accelerator.device)
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as flops:
        choose_fast_paths(base.model, injection, rows, plan)
    work.trial = flops.get_total_flops()
    events = train(base.model, injection, rows, plan, accelerator, pad_id=work.pad_id)
    yield
    while True:
        with work.clock():
            event = next(events, None)
        if event is None:
            return
        if isinstance(event, Step):
            work.losses.append(event.loss)
            work.end_step()
        if isinstance(event, FellBack):
            print(event)


def _peft(work: Work) -> tuple[Any, Any]:
    """Return a model with peft's LoRA, which starts from the tensors that the lab's starts from."""
    base = work.load()
    torch.manual_seed(0)
    injection = inject(base.model, work.config)
    paths, start = [site.path for site in injection.sites.values()], injection.state_dict()
    injection.eject()
    config = work.config
    model = get_peft_model(
        base.model, LoraConfig(r=config.rank, lora_alpha=int(config.alpha), lora_dropout=0.0, target_modules=paths)
    )
    with torch.no_grad():
        for path in paths:
            theirs: Any = model.get_submodule(f"base_model.model.{path}")
            theirs.lora_A.default.weight.copy_(start[f"{path}/A"])
    return model, base.tokenizer


def timed(way: str, work: Work) -> tuple[float, float, list[float]]:
    """Return seconds of the wall clock and of the processor, from the second step on, and the losses of all."""
    running = WAYS[way](work)
    next(running)
    next(running, None)
    wall, cpu = ([0.0, *times] if len(times) == 1 else times for times in (work.ends, work.spent))
    return wall[-1] - wall[0], cpu[-1] - cpu[0], work.losses


def counted(way: str, work: Work) -> dict[str, int]:
    """Return the FLOPs of a step, and the most bytes it holds beside all weights."""
    running = WAYS[way](work)
    found = _counted(running, _ready(running))
    return {**found, "flops": found["flops"] - work.trial, "trial_flops": work.trial}


def _counted(running: Iterator[None], own: list[torch.Tensor]) -> dict[str, int]:
    flops = FlopCounterMode(display=False, custom_mapping=_ATTENTION)
    with Peak(own) as peak, flops:
        next(running, None)
    return {"flops": flops.get_total_flops(), "peak_bytes": peak.most}


def _parameters(running: Any) -> list[torch.Tensor]:
    known = running.gi_frame.f_locals if running.gi_yieldfrom is None else running.gi_yieldfrom.gi_frame.f_locals
    model = known["model"] if "model" in known else known["base"].model
    return [*model.parameters(), *model.buffers()]


def at_once(work: Work, count: int, tokens: int | None = None) -> Iterator[None]:
    """Train several adapters together; timed from the second step on, the first that is shared."""
    base = loading.load_base(work.base)
    together, going = JointTrainer(base.model, tokens), []
    for number in range(count):
        together.activate()
        torch.manual_seed(0)
        injection = inject(base.model, work.config, name=f"study{number}")
        member = Member(together, base.model, injection, work.rows, work.plan, work.pad_id)
        going.append(train(base.model, injection, work.rows, work.plan, pad_id=work.pad_id, gradients=member))
    together.start()
    for step in range(work.plan.max_steps or 1):
        if step == 1:
            yield
        together.begin_step([f"study{number}" for number in range(count)], step)
        with work.clock() if step else nullcontext():
            for events in going:
                work.losses.append(next(e.loss for e in events if isinstance(e, Step)))
    together.finish()


def many(asked: argparse.Namespace, samples: list[Sample], config: LoRAConfig, pad_id: int) -> dict[str, Any]:
    """Compare adapters at once with runs one after the other, and with one run of as many tokens in a pass."""
    count, steps = asked.study, asked.steps + 1

    def work(batch: int, steps: int) -> Work:
        plan = TrainSpec(batch=batch, max_steps=steps, epochs=1000, learning_rate=1e-3)
        return Work(asked.base, samples, plan, config, pad_id)

    def step(adapters: int, batch: int) -> dict[str, int]:
        return _counted(running := at_once(work(batch, 2), adapters, 10**9), _ready(running))

    small = max(1, asked.batch // 4)
    counts = {"one": step(1, small), "study": step(count, small), "large": step(1, small * count)}
    rounds = []
    for number in range(asked.rounds):
        seconds = {}
        for way in ("study", "one") if number % 2 else ("one", "study"):
            found = []
            for _ in range(1 if way == "study" else count):
                done = work(small, steps)
                _finish(at_once(done, count if way == "study" else 1))
                found.append((done.wall, done.cpu, done.losses))
            seconds[way] = [sum(f[i] for f in found) for i in (0, 1)]
            if way == "one":
                alone = found[0][2]
            else:
                losses = found[0][2]
        rounds.append({"wall": seconds["one"][0] / seconds["study"][0], "cpu": seconds["one"][1] / seconds["study"][1]})
        print(rounds[-1], flush=True)
    weights = sum({p.data_ptr(): p.nbytes for p in loading.load_base(asked.base).model.parameters()}.values())
    memory = {way: weights + found["peak_bytes"] for way, found in counts.items()}
    apart = max(abs(loss - alone[i // count]) for i, loss in enumerate(losses))
    return {
        "adapters": count,
        "at": config.at,
        "batch": small,
        "counts": counts,
        "memory_bytes": memory,
        "rounds": rounds,
        "apart": apart,
    }


def _ready(running: Iterator[None]) -> list[torch.Tensor]:
    next(running)
    return _parameters(running)


def _finish(running: Iterator[None]) -> None:
    for _ in running:
        pass


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(2 * query[0] * query[1] * query[2] * key[2] * (query[3] + value[3]))


def _attention_backward(slope: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return 5 * _attention(query, key, value) // 2


# What torch does not count on a CPU.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Do the whole comparison for one base."""
    tokenizer, task = Blueprint(asked.base).tokenizer, get_task(asked.task)
    rows = task.load("train", asked.root)
    mixed = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    count = asked.batch * asked.steps
    samples, _ = encode(tokenizer, [rows[i] for i in mixed[: 2 * count]], task.template, 512, "answer")
    samples = samples[:count]
    plan = TrainSpec(batch=asked.batch, max_steps=asked.steps, epochs=1000, learning_rate=1e-3)
    config = LoRAConfig(rank=asked.rank, alpha=2 * asked.rank, at="q,k,v,up,down")

    def work(steps: int) -> Work:
        part = plan.model_copy(update={"max_steps": steps})
        return Work(asked.base, samples[: steps * asked.batch], part, config, tokenizer.pad_token_id)

    first, ways = work(1).batches()[0], [way for way in WAYS if way in asked.ways.split(",") or way == "trainer"]
    results: dict[str, dict[str, Any]] = {way: {"what": WAYS[way].__doc__, **counted(way, work(1))} for way in ways}
    print(json.dumps(results), flush=True)
    rounds: list[dict[str, tuple[float, float, list[float]]]] = []
    for number in range(0 if asked.counts else asked.rounds):
        # In turns, from a different one each time.
        names = [*ways[number % len(ways) :], *ways[: number % len(ways)]]
        rounds.append({way: timed(way, work(asked.steps)) for way in names})
        print({way: [round(x, 2) for x in found[:2]] for way, found in rounds[-1].items()}, flush=True)
    depth = len(Blueprint(asked.base).anatomy.layers)
    upper = f"{config.at}@{depth - max(1, depth // 3)}-{depth - 1}"  # the upper third of the layers
    places = (config.at, upper) if asked.study and not asked.counts else ()
    shared = [LoRAConfig(rank=asked.rank, alpha=2 * asked.rank, at=at) for at in places]
    studies = [many(asked, samples, each, tokenizer.pad_token_id) for each in shared]
    timed_rows = samples[asked.batch :] if asked.steps > 1 else samples
    tokens, useful = sum(len(s.ids) for s in timed_rows), sum(len(s.ids) for s in first)
    weights = sum({p.data_ptr(): p.nbytes for p in loading.load_base(asked.base).model.parameters()}.values())
    padded = len(first) * max(len(s.ids) for s in first)
    for way, result in results.items():
        computed = pack(first, share=True).ids.shape[1] if way == "on" else padded
        result |= {"flops_per_token": result.pop("flops") / useful, "computed_per_token": computed / useful}
        result |= {"memory_bytes": weights + result["peak_bytes"], "losses": rounds[0][way][2] if rounds else []}
        result |= {"rounds": [tokens / r[way][0] for r in rounds]}
        result |= {"tokens_per_second": statistics.median(result["rounds"]) if rounds else None}
        result |= {"against_trainer": _against(results["trainer"], result, rounds, way)}
    return {
        **{key: getattr(asked, key) for key in ("base", "task", "batch", "steps", "rounds", "rank")},
        "tokens_per_row": sum(len(s.ids) for s in samples) / len(samples),
        "labels_per_row": sum(s.counted for s in samples) / len(samples),
        "ways": results,
        "studies": studies,
        "environment": environment(make_accelerator("auto").device.type, loading.pick_dtype("auto")),
    }


def _against(trainer: dict[str, Any], way: dict[str, Any], rounds: list[Any], name: str) -> dict[str, Any]:
    ratios = {part: sorted(r["trainer"][i] / r[name][i] for r in rounds) for i, part in enumerate(("wall", "cpu"))}
    return {
        "flops": way["flops_per_token"] / trainer["flops_per_token"],
        "memory": way["memory_bytes"] / trainer["memory_bytes"],
        "loss": max((abs(a - b) for a, b in zip(way["losses"], trainer["losses"], strict=True)), default=None),
        **{part: {"median": statistics.median(found), "all": found} for part, found in ratios.items() if found},
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as markdown."""
    lines = ["# Training speed"]
    for result in results:
        head = f"{result['base']}, LoRA r{result['rank']} at q,k,v,up,down, {result['task']}, batch {result['batch']}"
        about = f"{result['tokens_per_row']:.0f} tokens a row, {result['labels_per_row']:.1f} of them labels; "
        timed = result["ways"]["on"]["tokens_per_second"]
        about += f"{result['rounds']} rounds of {result['steps']} steps" if timed else "counted only"
        about += f". Machine: {json.dumps(result['environment'])}."
        columns = "MFLOPs/token | computed/token | memory MB | tokens/s | FLOPs | memory | speed | CPU time | loss"
        lines += ["", f"## {head}", "", about, "", f"| | {columns} |", "|---|" + "---|" * 9]
        for way in result["ways"].values():
            than = way["against_trainer"]
            cells = [f"{way['flops_per_token'] / 1e6:.2f}", f"{way['computed_per_token']:.2f}"]
            cells += [f"{way['memory_bytes'] / 1e6:.0f}", f"{rate:.0f}" if (rate := way["tokens_per_second"]) else "–"]
            cells += [f"{than['flops']:.2f}", f"{than['memory']:.2f}"]
            if rate:
                wall = than["wall"]
                cells += [f"{wall['median']:.2f} ({wall['all'][0]:.2f} to {wall['all'][-1]:.2f})"]
                cells += [f"{1 / than['cpu']['median']:.2f}", f"{than['loss']:.0e}"]
            else:
                cells += ["–"] * 3
            lines.append(f"| {way['what']} | {' | '.join(cells)} |")
        lines += ["", _verdict(result)]
        for found in result["studies"]:
            lines += _many_lines(found)
    lines += [
        "",
        "Tokens are counted without padding. Computed: tokens that run through the layers. Memory: weights "
        "and the most that torch holds at a time. The last five columns compare with the first line: ratios, and for "
        "the loss the largest difference of a step. Seconds are from the second step on: in the first, the lab tries "
        "its shortcuts.",
    ]
    return "\n".join(lines) + "\n"


def _verdict(result: dict[str, Any]) -> str:
    """Return how the lab compares with peft and Trainer, with the rival of the least memory, and with the fastest."""
    own, rivals = result["ways"]["on"], {name: result["ways"][name] for name in RIVALS if name in result["ways"]}
    flops, memory = (own["against_trainer"][key] for key in ("flops", "memory"))
    least = own["memory_bytes"] / min(rival["memory_bytes"] for rival in rivals.values())
    text = (
        f"The lab takes {flops:.2f} of the FLOPs and {memory:.2f} of the memory of peft with Trainer, and {least:.2f} "
    )
    text += "of the memory of the rival with the least"
    if own["tokens_per_second"]:
        speeds = [own / max(others) for own, *others in zip(*_rates(result), strict=True)]
        text += f"; it has {statistics.median(speeds):.2f} times the tokens per second of the fastest "
        text += f"({min(speeds):.2f} to {max(speeds):.2f})"
    return text + "."


def _rates(result: dict[str, Any]) -> list[list[float]]:
    """Return the tokens per second of every round, of the lab and of each rival."""
    return [result["ways"][name]["rounds"] for name in ("on", *RIVALS) if name in result["ways"]]


def _many_lines(found: dict[str, Any]) -> list[str]:
    count, counts, memory = found["adapters"], found["counts"], found["memory_bytes"]
    one, study = (counts[way] for way in ("one", "study"))
    speeds = {part: sorted(r[part] for r in found["rounds"]) for part in ("wall", "cpu")}
    middle = {part: statistics.median(each) for part, each in speeds.items()}
    return [
        "",
        f"{count} adapters at {found['at']} at once (`study`), batch {found['batch']} each, beside {count} runs one "
        f"after the other: {study['flops'] / one['flops'] / count:.3f} of their FLOPs, {middle['wall']:.2f} times the "
        "speed "
        f"({speeds['wall'][0]:.2f} to {speeds['wall'][-1]:.2f}; by processor time {middle['cpu']:.2f}), losses "
        f"{found['apart']:.0e} off at most. Memory: {memory['study'] / 1e6:.0f} MB, one run of that batch "
        f"{memory['one'] / 1e6:.0f} MB, one run of {count} times that batch, as many rows in a pass, "
        f"{memory['large'] / 1e6:.0f} MB: {memory['study'] / memory['large']:.2f} of it.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--base", default="nano")
    parser.add_argument("--task", default="mini-math", help="one or several, with commas")
    parser.add_argument("--batch", default="32", help="one or several, with commas")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--study", type=int, default=8, help="adapters at once; 0: leave that part out")
    parser.add_argument("--ways", default=",".join(WAYS), help="which to compare with trainer, with commas")
    parser.add_argument("--counts", action="store_true", help="count FLOPs and bytes, and measure no time")
    parser.add_argument("--root", type=Path, default=None, help="folder with the benchmark files")
    parser.add_argument("--out", type=Path, default=HERE)
    asked = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    asked.out.mkdir(parents=True, exist_ok=True)
    for task in asked.task.split(","):
        for batch in map(int, asked.batch.split(",")):
            result = measure(argparse.Namespace(**(vars(asked) | {"task": task, "batch": batch})))
            path = asked.out / f"training-{asked.base}-{task}-{batch}.json"
            path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            print(table([result]), flush=True)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(asked.out.glob("training-*.json"))]
    found.sort(key=lambda result: (result["base"], result["task"], result["batch"]))
    (asked.out / "training.md").write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
