"""How training grows: time, memory and FLOPs against the size of the model, of the rows, of the adapter, and the rest.

    python benchmarks/scaling.py [--rounds 7] [--quick] [--out benchmarks/scaling.json]

Along each axis one thing is changed, on a small LLaMA shape with LoRA on the CPU in fp32, the lab's shortcuts off.
All sizes of an axis take a step in turn, so that what disturbs the machine disturbs all of them; a time is the median
of the smallest size times the median ratio to it, in seconds of one processor, which other work lengthens least.
FLOPs and bytes are counted, and do not depend on the machine. An exponent is the slope of a least-squares line
through the logarithms, with its standard error: over all sizes, and over the larger half. Writes JSON and a table
beside it; takes less than ten minutes.

The projection to 7B, 13B and 70B counts FLOPs by the formula that is checked here against counted ones, and bytes by
the lab's estimate of models of two and of three layers, drawn out to all layers, which are alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from paper_estimates import GIB, GPUS, UTILISATION
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
BATCH, LENGTH = 16, 256  # of the projection
CHEAP = 5e9  # FLOPs of a round, below which four times as many are done


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

    @property
    def config(self) -> dict[str, Any]:
        """The model: a LLaMA, its MLP 8/3 as wide as the rest."""
        sizes = {"hidden_size": self.hidden, "intermediate_size": 8 * self.hidden // 3, "vocab_size": 1024}
        return _LLAMA | sizes | {"num_hidden_layers": self.layers, "num_attention_heads": self.hidden // 32}

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
        seconds: of a processor, of every step.
    """

    def __init__(self, x: float, case: Case) -> None:
        """Build it, and count its first step."""
        self.x, self.seconds = x, list[float]()
        model = case.model()
        torch.manual_seed(0)
        made = [
            inject(model, LoRAConfig(rank=8, alpha=16, at=case.at), name=f"adapter{i}") for i in range(case.adapters)
        ]
        self.trainable = sum(injection.count() for injection in made)
        self.weights = sum(wide * high for m in model.modules() if (size := dims(m)) for wide, high in [size])
        plan = TrainSpec(batch=case.rows, max_steps=1000, epochs=1000, precision="fp32", **OFF)
        # `train` gives its optimiser one injection; the others of a chain take part in forward and backward.
        self._events: Any = train(model, made[0], case.samples(), plan, make_accelerator("fp32"))
        self.steps = (event for event in self._events if isinstance(event, Step))
        known = [*model.parameters(), *model.buffers()]
        with Peak(known) as peak, FlopCounterMode(display=False, custom_mapping=_ATTENTION) as flops:
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
    yield "adapters in a chain", [(n, replace(base, adapters=n)) for n in some([1, 2, 4, 8])]
    yield "rows of the data", [(n, replace(base, data=n, length=16)) for n in some([1_000, 10_000, 100_000])]


def _weights(case: Case) -> int:
    return (
        4 * case.layers * case.hidden**2 + 3 * case.layers * case.hidden * (8 * case.hidden // 3) + 1024 * case.hidden
    )


def slope(xs: list[float], ys: list[float]) -> tuple[float, float | None]:
    """Return the exponent of a power law through the points, and its standard error where there are more than two."""
    x, y = numpy.log(xs), numpy.log(ys)
    found, cut = numpy.polyfit(x, y, 1)
    rest, spread = y - (found * x + cut), ((x - x.mean()) ** 2).sum()
    error = float(numpy.sqrt((rest @ rest) / (len(xs) - 2) / spread)) if len(xs) > 2 else None
    return float(found), error


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
        "tokens": [case.rows * case.length for _, case in sizes],
    }
    found["formula"] = [
        formula(m.weights, m.trainable, case) / m.flops for m, (_, case) in zip(made, sizes, strict=True)
    ]
    half = min(len(made) // 2, len(made) - 2)
    for key in ("seconds", "flops", "bytes"):
        found[f"{key}_exponent"] = slope(found["x"], found[key])
        found[f"{key}_exponent_above"] = slope(found["x"][half:], found[key][half:])
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


def project() -> list[dict[str, Any]]:
    """Return what the large shapes would need for a step of LoRA r16 in bf16, 16 rows of 256 tokens."""
    found = []
    for name, config in LARGE.items():
        bytes_, counts = [], []
        for layers in (2, 3):
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
                adapter = {"type": "lora", "rank": 16, "alpha": 32, "at": "q,k,v,up,down"}
                plan = {"batch": BATCH, "precision": "bf16"}
                spec = RunSpec.parse({"base": folder, "adapter": adapter, "train": plan, "dtype": "bf16"})
                rows = [tuple(range(i, i + LENGTH)) for i in range(BATCH)]  # which share no beginning
                memory = estimate(spec, [Sample(str(row[0]), row, row) for row in rows])
                assert memory is not None and spec.adapter is not None
                bytes_.append(memory.total)
                model = Blueprint(folder).skeleton
                weights = sum(wide * high for m in model.modules() if (size := dims(m)) for wide, high in [size])
                counts.append((weights, inject(model, spec.adapter).count()))
        layers = config["num_hidden_layers"]
        total = bytes_[0] + (layers - 2) * (bytes_[1] - bytes_[0])
        weights, trainable = (two + (layers - 2) * (three - two) for two, three in zip(*counts, strict=True))
        case = Case(hidden=config["hidden_size"], layers=layers, length=LENGTH, rows=BATCH)
        flops = formula(weights, trainable, case)
        seconds = {gpu.name: flops / (UTILISATION * gpu.flops) for gpu in GPUS}
        found.append({"shape": name, "weights": weights, "trainable": trainable, "flops": flops, "bytes": total})
        found[-1] |= {"seconds": seconds}
    return found


def table(result: dict[str, Any]) -> str:
    """Return the results as markdown."""

    def law(pair: list[Any]) -> str:
        return f"{pair[0]:.2f}" if pair[1] is None else f"{pair[0]:.2f} ± {pair[1]:.2f}"

    lines = ["# How training grows", "", f"{result['rounds']} rounds; machine: {json.dumps(result['environment'])}."]
    lines += ["", "Exponents of a step, over all sizes and over the larger half:", ""]
    lines += [
        "| against | from, to | time | above | FLOPs | above | bytes | above | formula / counted |",
        "|---" * 9 + "|",
    ]
    for name, a in result["axes"].items():
        cells = [f"{a['x'][0]:,.0f}, {a['x'][-1]:,.0f}"]
        cells += [law(a[f"{key}_exponent{end}"]) for key in ("seconds", "flops", "bytes") for end in ("", "_above")]
        cells.append(f"{min(a['formula']):.3f} to {max(a['formula']):.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "| against | at | processor ms a step | µs a token | MFLOPs a token | MB beside the weights |",
        "|---" * 6 + "|",
    ]
    for name, a in result["axes"].items():
        for x, s, f, b, t in zip(a["x"], a["seconds"], a["flops"], a["bytes"], a["tokens"], strict=True):
            row = f"{x:,.0f} | {1e3 * s:.1f} | {1e6 * s / t:.0f} | {f / t / 1e6:.3f} | {b / 1e6:.1f}"
            lines.append(f"| {name} | {row} |")
    g = result["growth"]
    lines += [
        "",
        f"Over {g['steps']} steps the bytes of tensors grew by {g['tensors_grown']:,} (after the first to after ",
    ]
    lines[-1] += f"the last), those of the process by {g['resident_grown'] / 1e6:.1f} MB in the second half."
    lines += ["", f"By processes, tokens/s: {json.dumps(result['processes'])}."]
    lines += ["", "## On paper: 7B, 13B, 70B", ""]
    lines += [
        f"A step of LoRA r16 at q, k, v, up, down, {BATCH} rows of {LENGTH} tokens at once, bf16 weights, all labels "
        f"counted. Assumed: {UTILISATION:.0%} of the published dense 16-bit rate; a model that does not fit on one GPU "
        "is spread over several without loss; attention skips nothing. Nothing here was measured on a GPU.",
        "",
    ]
    names = [gpu.name for gpu in GPUS]
    lines += [f"| | weights | trainable | TFLOPs | GiB | {' | '.join(f'{n}, s' for n in names)} |"]
    lines += ["|---" * (5 + len(names)) + "|"]
    for p in result["projection"]:
        cells = [
            p["shape"],
            f"{p['weights'] / 1e9:.2f} B",
            f"{p['trainable'] / 1e6:.1f} M",
            f"{p['flops'] / 1e12:,.0f}",
        ]
        cells += [f"{p['bytes'] / GIB:.0f}", *(f"{p['seconds'][n]:.2f}" for n in names)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


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
    found["projection"] = project()
    return found | {"environment": environment("cpu", torch.float32)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="three small sizes an axis")
    parser.add_argument("--out", type=Path, default=HERE / "scaling.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(asked.rounds, asked.quick)
    asked.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    asked.out.with_suffix(".md").write_text(table(result), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
