"""What a run costs: time, memory and FLOPs against the size of the model, of the rows, of the adapter, and the rest.

    nice python benchmarks/scaling.py [--rounds 7] [--quick] [--out docs/cost.md]

Along each axis one thing is changed, on a small LLaMA shape with LoRA on the CPU in fp32, the lab's fast paths off.
All sizes of an axis take a step in turn, so that what disturbs the machine disturbs all of them; a time is the median
of the smallest size times the median ratio to it, in seconds of one processor, which other work lengthens least.
FLOPs and bytes are counted, and do not depend on the machine. An exponent is the slope of a least-squares line
through the logarithms, over all sizes and over the larger half; its interval comes from the slopes of single rounds.
Writes the page, and scaling.json beside this file; takes a few minutes.

The projection to 7B, 13B and 70B counts FLOPs by the formula that is checked here against counted ones, and bytes by
the lab's estimate of models of two and of three layers, drawn out to all layers, which are alike.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from paper_estimates import GIB, GPUS, KINDS, UTILISATION, changed
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode
from training import _ATTENTION, OFF

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.weights import dims
from llm_adapters_lab.events import Step
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.environment import environment
from llm_adapters_lab.runs.forecast.memory import Peak, estimate
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.device import make_accelerator
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.spec import TrainSpec

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "cost.md"
ALL = "q,k,v,o,gate,up,down"
_LLAMA = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096}
LARGE = {
    "7B": _LLAMA
    | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13B": _LLAMA
    | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "70B": _LLAMA
    | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    | {"num_key_value_heads": 8},
}
BATCH, LENGTH, RANK = 16, 256, 16  # of the projection
CHEAP = 5e9  # FLOPs of a round, below which four times as many are done
CHOSEN = 2  # experts of a token
PLAIN = {name: False for name in (*OFF, "recompute") if name in TrainSpec.model_fields}
"""All fast paths off."""
WHY = {
    "parameters of the model": "by its width, whose square the weights are; by layers, everything doubles",
    "tokens of a row": "projections: twice the tokens; attention: four times the pairs",
    "rows of a step": "everything is done for every row",
    "sites of the adapter": "an adapter is small beside its host, but each is several more calls",
    "rank of the adapter": "as long as the rank is far below the width",
    "adapters in a chain": "each is small beside its host, but several more calls",
    "vocabulary": "head and logits, which are written and read several times; `label_head`: only those of labels",
    "experts of a layer": f"all are in memory; a token passes {CHOSEN} of them",
    "rows of the data": "a step costs the same; the run has twice as many",
}
"""Why a step grows as it does, by axis."""


def _grouped(x: Any, weights: Any, *_: Any, **__: Any) -> int:
    return int(2 * x[0] * x[1] * weights[2])


COUNTED = _ATTENTION | {torch.ops.aten._grouped_mm: _grouped}


@dataclass(frozen=True)
class Case:
    """One size of everything."""

    hidden: int = 192
    layers: int = 4
    length: int = 128
    rows: int = 4
    at: str = "q,v"
    adapters: int = 1
    data: int = 64
    rank: int = 8
    vocabulary: int = 1024
    experts: int = 0

    @property
    def config(self) -> dict[str, Any]:
        """The model: a LLaMA, its MLP 8/3 as wide as the rest; with experts a Mixtral."""
        sizes = {"hidden_size": self.hidden, "intermediate_size": 8 * self.hidden // 3, "vocab_size": self.vocabulary}
        sizes |= {"num_hidden_layers": self.layers, "num_attention_heads": self.hidden // 32}
        chosen = {"num_local_experts": self.experts, "num_experts_per_tok": CHOSEN, "model_type": "mixtral"}
        return _LLAMA | sizes | (chosen | {"num_key_value_heads": self.hidden // 32} if self.experts else {})

    @property
    def visited(self) -> int:
        """Weights of experts that a token passes."""
        return CHOSEN * 3 * self.layers * self.hidden * (8 * self.hidden // 3) if self.experts else 0

    def model(self) -> Any:
        """Return it with random weights."""
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
            (Path(folder) / "config.json").write_text(json.dumps(self.config), encoding="utf-8")
            torch.manual_seed(0)
            return Blueprint(folder).build("cpu")

    def samples(self) -> list[Sample]:
        """Return the rows of the data, all of one length."""
        ids = torch.randint(4, 1000, (self.data, self.length), generator=torch.Generator().manual_seed(0)).tolist()
        return [Sample(str(i), tuple(row), tuple(row)) for i, row in enumerate(ids)]


class Training:
    """A training that waits between two steps.

    Attributes:
        x: what changes along the axis.
        flops: of a step.
        bytes: that a step holds beside the weights, at most.
        held: bytes of the weights.
        seconds: of a processor, of every step.
    """

    def __init__(self, x: float, case: Case) -> None:
        """Build it, and count its first step."""
        self.x, self.seconds = x, list[float]()
        model = case.model()
        self.held = sum(p.numel() * p.element_size() for p in model.parameters())
        torch.manual_seed(0)
        config = LoRAConfig(rank=case.rank, alpha=16, at=case.at)
        made = [inject(model, config, name=f"adapter{i}") for i in range(case.adapters)]
        self.trainable = sum(injection.count() for injection in made)
        linear = sum(wide * high for m in model.modules() if (size := dims(m)) for wide, high in [size])
        self.weights = linear + case.visited
        plan = TrainSpec(batch=case.rows, max_steps=1000, epochs=1000, precision="fp32", **PLAIN)
        # `train` gives its optimiser one injection; the others of a chain take part in forward and backward.
        self._events: Any = train(model, made[0], case.samples(), plan, make_accelerator("fp32"))
        self.steps = (event for event in self._events if isinstance(event, Step))
        known = [*model.parameters(), *model.buffers()]
        with Peak(known) as peak, FlopCounterMode(display=False, custom_mapping=COUNTED) as flops:
            next(self.steps)
        self.flops, self.bytes = flops.get_total_flops(), peak.most

    def step(self) -> None:
        """Do a step and take its time."""
        began = time.process_time()
        next(self.steps)
        self.seconds.append(time.process_time() - began)

    def close(self) -> None:
        """End it."""
        self._events.close()


def axes(quick: bool) -> Iterator[tuple[str, list[tuple[float, Case]]]]:
    """Yield every axis with its sizes: the number that changes, and the case."""
    base = Case(hidden=64, layers=2, length=32, rows=2) if quick else Case()

    def some(values: list[int]) -> list[int]:
        return values[:3] if quick else values

    widths = [replace(base, hidden=n) for n in some([64, 128, 192, 256, 384, 512])]
    yield "parameters of the model", [(_weights(case), case) for case in widths]
    yield "tokens of a row", [(n, replace(base, length=n, rows=2)) for n in some([32, 64, 128, 256, 512, 1024])]
    yield "rows of a step", [(n, replace(base, rows=n)) for n in some([1, 2, 4, 8, 16])]
    layers = base.layers
    yield (
        "sites of the adapter",
        [(7 * n, replace(base, at=f"{ALL}@0-{n - 1}")) for n in range(1, layers + 1)],
    )
    yield "rank of the adapter", [(n, replace(base, rank=n)) for n in some([2, 8, 32, 128])]
    yield "adapters in a chain", [(n, replace(base, adapters=n)) for n in some([1, 2, 4, 8])]
    yield "vocabulary", [(n, replace(base, vocabulary=n, rows=2)) for n in some([1024, 4096, 16384, 65536])]
    yield "experts of a layer", [(n, replace(base, experts=n, hidden=192)) for n in some([2, 4, 8, 16, 32])]
    yield "rows of the data", [(n, replace(base, data=n, length=16)) for n in some([1_000, 10_000, 100_000])]


def _weights(case: Case) -> int:
    return (
        4 * case.layers * case.hidden**2 + 3 * case.layers * case.hidden * (8 * case.hidden // 3) + 1024 * case.hidden
    )


def slope(xs: list[float], ys: list[float]) -> float:
    """Return the exponent of a power law through the points."""
    return float(numpy.polyfit(numpy.log(xs), numpy.log(ys), 1)[0])


def spread(values: list[float]) -> float:
    """Return half the width of the 95 % interval of a mean (Student's t)."""
    error = statistics.stdev(values) / len(values) ** 0.5
    return float(stats.t.ppf(0.975, len(values) - 1) * error)


def along(sizes: list[tuple[float, Case]], rounds: int) -> dict[str, Any]:
    """Measure one axis."""
    made = [Training(x, case) for x, case in sizes]
    rounds *= 4 if sum(m.flops for m in made) < CHEAP else 1
    for number in range(rounds + 1):
        for training in made[number % len(made) :] + made[: number % len(made)]:
            training.step()
    for training in made:
        training.close()
    first = made[0].seconds[1:]  # the first one is warm-up
    ratios = [statistics.median(a / b for a, b in zip(m.seconds[1:], first, strict=True)) for m in made]
    found: dict[str, Any] = {
        "x": [m.x for m in made],
        "seconds": [ratio * statistics.median(first) for ratio in ratios],
        "flops": [m.flops for m in made],
        "bytes": [m.bytes for m in made],
        "weights": [m.held for m in made],
        "tokens": [case.rows * case.length for _, case in sizes],
    }
    found["formula"] = [
        formula(m.weights, m.trainable, case) / m.flops for m, (_, case) in zip(made, sizes, strict=True)
    ]
    half = min(len(made) // 2, len(made) - 2)
    single = list(zip(*(m.seconds[1:] for m in made), strict=True))
    for end, cut in (("", 0), ("_above", half)):
        xs = found["x"][cut:]
        for key in ("seconds", "flops", "bytes", "weights"):
            found[f"{key}_exponent{end}"] = slope(xs, found[key][cut:])
        found[f"interval{end}"] = spread([slope(xs, list(each[cut:])) for each in single])
    return found


def formula(weights: int, trainable: int, case: Case) -> float:
    """Return the FLOPs of a step on paper: 4 a weight and token, 6 an adapter's, attention 14 a layer, width and pair.

    Attention is two products forward, 4 a pair of tokens and channel, and 2.5 times as much back, as its kernels do it.
    """
    tokens = case.rows * case.length
    attention = 14 * case.layers * case.hidden * case.rows * case.length**2
    return 4 * weights * tokens + 6 * trainable * tokens + attention


@dataclass
class Growth:
    """What is held after each of many steps: bytes of tensors, and of the process."""

    tensors: list[int] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)


def growth(steps: int) -> Growth:
    """Return what a long training holds after its steps."""
    case, found = Case(hidden=64, layers=2, length=32), Growth()
    with ExitStack() as stack:
        training = Training(0, case)
        peak = stack.enter_context(Peak())
        for _ in range(steps):
            training.step()
            found.tensors.append(peak.now)
            with open("/proc/self/statm") as file:
                found.resident.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        training.close()
    return found


def processes(counts: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    """Return the tokens per second of one training by each number of processes on this machine."""
    words = ["run", str(HERE.parent / "papermill_runs" / "specs" / "nano-lora.yaml")]
    words += ["--set", "train.max_steps=20", "--set", "eval.tasks=[]", "--json"]
    found: dict[str, Any] = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as root:
            # With --cpu the launcher starts one process only.
            launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count)]
            launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
            command = [sys.executable, *(launch if count > 1 else []), "-m", "llm_adapters_lab", *words, "--root", root]
            done = subprocess.run(command, capture_output=True, text=True, timeout=200)
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            if done.returncode or not lines:
                return found | {"failed": (done.stderr or done.stdout).strip()[-300:]}
            found[str(count)] = json.loads(lines[-1])["train"]["tokens_per_second"]
    return found


def shape(config: dict[str, Any], changes: dict[str, Any], batch: int, length: int, rank: int) -> dict[str, Any]:
    """Return weights, FLOPs and bytes of a step of LoRA in bf16, drawn out from two and three layers to all."""
    bytes_, counts = [], []
    for layers in (2, 3):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
            adapter = {"type": "lora", "rank": rank, "alpha": 32, "at": "q,k,v,up,down"}
            spec = changed(RunSpec.parse({"adapter": adapter, "train": {"batch": batch}}), folder, changes)
            rows = [tuple(range(i, i + length)) for i in range(batch)]  # which share no beginning
            memory = estimate(spec, [Sample(str(row[0]), row, row) for row in rows])
            assert memory is not None and spec.adapter is not None
            bytes_.append(memory.total)
            model = Blueprint(folder).skeleton
            weights = sum(wide * high for m in model.modules() if (size := dims(m)) for wide, high in [size])
            counts.append((weights, inject(model, spec.adapter).count()))
    layers = config["num_hidden_layers"]
    weights, trainable = (two + (layers - 2) * (three - two) for two, three in zip(*counts, strict=True))
    case = Case(hidden=config["hidden_size"], layers=layers, length=length, rows=batch)
    flops, total = formula(weights, trainable, case), bytes_[0] + (layers - 2) * (bytes_[1] - bytes_[0])
    return {"weights": weights, "trainable": trainable, "flops": flops, "bytes": total}


def project() -> list[dict[str, Any]]:
    """Return what the large shapes would need for a step."""
    found = []
    for name, config in LARGE.items():
        kinds = {kind: shape(config, changes, BATCH, LENGTH, RANK) for kind, changes in KINDS.items()}
        plain = kinds["bf16"]
        seconds = {gpu.name: plain["flops"] / (UTILISATION * gpu.flops) for gpu in GPUS}
        found.append({"shape": name, **plain, "bytes": {kind: each["bytes"] for kind, each in kinds.items()}})
        found[-1] |= {"seconds": seconds}
    return found


def doubled() -> dict[str, Any]:
    """Return what a step of the 7B shape would need if one thing of it were doubled."""
    plain = {"batch": BATCH, "length": LENGTH, "rank": RANK}
    sizes = {"nothing": plain, "rows of a step": plain | {"batch": 2 * BATCH}}
    sizes |= {"tokens of a row": plain | {"length": 2 * LENGTH}, "rank of the adapter": plain | {"rank": 2 * RANK}}
    found = {name: shape(LARGE["7B"], {}, **size) for name, size in sizes.items()}
    wide = LARGE["7B"] | {"vocab_size": 2 * LARGE["7B"]["vocab_size"]}
    return found | {"vocabulary": shape(wide, {}, **plain)}


def page(result: dict[str, Any]) -> str:
    """Return the results as markdown."""

    def times(exponent: float) -> str:
        return f"{2**exponent:.2f}"

    def said(text: str) -> list[str]:
        whole = re.sub("`.*?`", lambda code: code[0].replace(" ", "\0"), text)
        return [line.replace("\0", " ") for line in (*textwrap.wrap(whole, 120, break_on_hyphens=False), "")]

    lines = ["# What a run costs", ""]
    lines += said(
        "How much more time and memory a larger run takes. FLOPs and bytes are counted: they are exact, and the same "
        "on every machine. Seconds are processor time of one thread on a machine that others used too, so only their "
        "growth means anything. What a given run needs on your machine is printed by "
        "`python -m llm_adapters_lab doctor SPEC`; for the runs of the paper, see [GPU boxes](gpu.md)."
    )
    lines += ["## If you double …", ""]
    lines += said(
        "Factors for one training step, at the larger half of the sizes. The larger the model, the closer time comes "
        "to the FLOPs; in a small one, much of it goes into calls, of which there are no more."
    )
    lines += [
        "| if you double the … | FLOPs | time | memory beside the weights | weights | because |",
        "|---" * 6 + "|",
    ]
    for name, a in result["axes"].items():
        wide, middle = a["interval_above"], a["seconds_exponent_above"]
        interval = f"{times(middle)} ({times(middle - wide)} to {times(middle + wide)})"
        cells = [times(a["flops_exponent_above"]), interval, times(a["bytes_exponent_above"])]
        cells += [times(a["weights_exponent_above"]), WHY[name]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    speeds = result["processes"]
    if "2" in speeds:
        cells = f"1.00 | {speeds['1'] / speeds['2']:.2f} | 1.00 in each | 1.00 in each"
        why = "each has its share of the rows, and all of the base; by the clock, once, from 1 to 2 on busy cores"
        lines.append(f"| processes | {cells} | {why} |")
    lines.append("")
    lines += said(
        "Measured on a LLaMA of 2 M parameters (4 layers, width 192, vocabulary 1,024) with LoRA of rank 8 at q and v, "
        "in fp32, 4 rows of 128 tokens, without the fast paths, which make a "
        f"step cheaper. `nice python benchmarks/scaling.py` measures it again and writes this page; it was run with "
        f"{result['rounds']} rounds, torch {result['environment']['torch']}, {result['environment']['platform']}."
    )
    lines += ["## On paper", ""]
    above = max(ratio for a in result["axes"].values() for ratio in a["formula"]) - 1
    lines += said(
        "A step takes (4 N + 6 n) t + 14 l w r s² FLOPs: N weights of projections and head that a token passes (of "
        "experts, those chosen), n trainable ones, t tokens in all, l layers of width w, r rows of s tokens. That is "
        f"at most {100 * above:.0f} % more than was counted, because the way back ends at the lowest adapter. A run "
        "takes epochs × rows of the data / rows of a step such steps."
    )
    lines += said(
        f"The 7B shape, LoRA of rank {RANK} at q, k, v, up, down, {BATCH} rows of {LENGTH} tokens at once in bf16 with "
        "all labels counted, and the same with one thing doubled:"
    )
    lines += [
        "| doubled | TFLOPs a step | factor | GiB | factor |",
        "|---" * 5 + "|",
    ]
    first = result["doubled"]["nothing"]
    for name, d in result["doubled"].items():
        cells = [f"{d['flops'] / 1e12:,.0f}", f"{d['flops'] / first['flops']:.2f}"]
        cells += [f"{d['bytes'] / GIB:.1f}", f"{d['bytes'] / first['bytes']:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    kinds, names = list(result["projection"][0]["bytes"]), [gpu.name for gpu in GPUS]
    lines.append("")
    lines += said(
        f"The same step of larger shapes, at {100 * UTILISATION:.0f} % of the published dense 16-bit rate. A model "
        "that does not fit on one GPU is spread over several without loss. Nothing here was measured on a GPU."
    )
    lines += [
        f"| | weights | trainable | TFLOPs | {' | '.join(f'{kind}, GiB' for kind in kinds)} | "
        + f"{' | '.join(f'{n}, s' for n in names)} |",
        "|---" * (4 + len(kinds) + len(names)) + "|",
    ]
    for p in result["projection"]:
        cells = [p["shape"], f"{p['weights'] / 1e9:.2f} B", f"{p['trainable'] / 1e6:.1f} M"]
        cells += [f"{p['flops'] / 1e12:,.0f}", *(f"{p['bytes'][kind] / GIB:.0f}" for kind in kinds)]
        cells += [f"{p['seconds'][name]:.2f}" for name in names]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Exponents", ""]
    lines += said(
        "Slopes of least-squares lines through the logarithms, over all sizes and over the larger half (“above”); "
        "doubling multiplies by 2 to the power of the slope. The 95 % intervals of the time are from the slopes of "
        "single rounds; the others are exact. Where the two slopes differ, it is not a power law."
    )
    lines += [
        "| against | from, to | time | above | FLOPs | above | bytes | above | formula / counted |",
        "|---" * 9 + "|",
    ]
    for name, a in result["axes"].items():
        cells = [f"{a['x'][0]:,.0f}, {a['x'][-1]:,.0f}"]
        cells += [f"{a[f'seconds_exponent{end}']:.2f} ± {a[f'interval{end}']:.2f}" for end in ("", "_above")]
        cells += [
            f"{abs(round(a[f'{key}_exponent{end}'], 2)):.2f}" for key in ("flops", "bytes") for end in ("", "_above")
        ]
        cells.append(f"{min(a['formula']):.3f} to {max(a['formula']):.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "## Measured", ""]
    lines += [
        "| against | at | processor ms a step | µs a token | MFLOPs a token | MB beside the weights | MB of weights |",
        "|---" * 7 + "|",
    ]
    for name, a in result["axes"].items():
        columns = ("x", "seconds", "flops", "bytes", "weights", "tokens")
        for x, s, f, b, w, t in zip(*(a[key] for key in columns), strict=True):
            row = f"{x:,.0f} | {1e3 * s:.1f} | {1e6 * s / t:.0f} | {f / t / 1e6:.3f} | {b / 1e6:.1f} | {w / 1e6:.1f}"
            lines.append(f"| {name} | {row} |")
    g = result["growth"]
    lines.append("")
    lines += said(
        f"Over {g['steps']} steps the bytes of tensors grew by {g['tensors_grown']:,}, those of the process by "
        f"{g['resident_grown'] / 1e6:.1f} MB in the second half. Tokens per second of `nano` by processes: "
        f"{', '.join(f'{n}: {v:,.0f}' for n, v in speeds.items() if n != 'failed')}."
    )
    return "\n".join(lines)


def measure(rounds: int, quick: bool) -> dict[str, Any]:
    """Do all of it."""
    found: dict[str, Any] = {"rounds": rounds, "axes": {}}
    for name, sizes in axes(quick):
        began = time.monotonic()
        found["axes"][name] = along(sizes, rounds)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    steps = 20 if quick else 200
    held = growth(steps)
    half = held.resident[steps // 2]
    found["growth"] = {"steps": steps, "tensors_grown": held.tensors[-1] - held.tensors[0]}
    found["growth"] |= {"resident_grown": held.resident[-1] - half}
    found["processes"] = processes()
    found["projection"], found["doubled"] = project(), doubled()
    return found | {"environment": environment("cpu", torch.float32)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="three small sizes an axis")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page; numbers go to scaling.json, or beside it")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(asked.rounds, asked.quick)
    numbers = HERE / "scaling.json" if asked.out == PAGE else asked.out.with_suffix(".json")
    numbers.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    asked.out.write_text(page(result), encoding="utf-8")
    print(page(result))


if __name__ == "__main__":
    main()
