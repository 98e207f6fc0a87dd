"""How fast a GPU box is, in one call of under eight minutes: a 7B shape with random weights.

    python benchmarks/gpu.py [--small] [--seconds 450] [--out benchmarks/gpu.json]

1. ceiling: bf16 products of the shapes of the model, the rate that nothing can exceed here
2. ways: LoRA r16 by peft with Trainer, TRL, peft in a plain loop, the lab with and without its shortcuts, see
   training.py, and by Unsloth; on 16 rows of 256 tokens, and on rows of real lengths, 4,096 tokens in a step
3. linear: the same at every projection, which is where Unsloth's own kernels apply
4. families: LoRA, series, parallel, prefix, 20 steps each on a bf16 base and on a 4-bit one
5. study: eight adapters at once on a 135M shape against eight runs

TRL and Unsloth are measured where they are installed. Unsloth changes transformers for the whole process, so it gets
one of its own, with UNSLOTH_PYTHONPATH as its path where it needs other versions than the rest.

Model FLOPs utilisation counts 4 FLOPs for each weight of a projection or the head and useful token (forward, and back
to the activations), against the ceiling. Seconds of a step are medians after the first two. What does not fit into the
time is left out and named. --small, and the want of a GPU, take small shapes; their numbers are about the script only.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

if "--unsloth" in sys.argv:
    import unsloth  # first of all: it changes what is imported after it

import numpy
import torch
from torch import nn
from training import WAYS, Work, _lab, _with_trainer
from transformers.utils import logging

import llm_adapters_lab
from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.core.weights import dims
from llm_adapters_lab.events import FellBack, Step
from llm_adapters_lab.models import loading
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.environment import environment
from llm_adapters_lab.runs.forecast.memory import Peak
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.device import make_accelerator
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.spec import TrainSpec

HERE = Path(__file__).parent
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# Tokens of a row of GSM8K with prompt and solution, in 3,000 rows with SmolLM2's tokenizer: the quantiles at SHARES;
# and the prompt's part of them.
LENGTHS, PROMPT = (81, 113, 123, 143, 174, 215, 259, 291, 460), 0.49
SHARES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
FAMILIES: dict[str, dict[str, Any]] = {
    "lora": {"rank": 16, "alpha": 32, "at": "q,k,v,up,down"},
    "series": {"bottleneck": 256, "at": "down"},
    "parallel": {"bottleneck": 256, "at": "up,down"},
    "prefix": {"virtual_tokens": 10},
}


class Shape(NamedTuple):
    """Sizes of what is measured."""

    config: dict[str, Any]
    study: dict[str, Any]
    rows: int
    length: int
    tokens: int
    steps: int
    family_steps: int
    study_steps: int


_LLAMA = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096}
LARGE = Shape(
    _LLAMA | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    {**_LLAMA, "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    | {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    **{"rows": 16, "length": 256, "tokens": 4096, "steps": 8, "family_steps": 20, "study_steps": 20},
)
SMALL = Shape(
    _LLAMA
    | {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
    | {"vocab_size": 2048},
    {**_LLAMA, "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}
    | {"num_attention_heads": 4},
    **{"rows": 4, "length": 64, "tokens": 1024, "steps": 4, "family_steps": 4, "study_steps": 4},
)


@dataclass
class Random(Work):
    """Work on a base with random weights, built where it is used."""

    folder: Path = Path()
    pack: bool = False

    def load(self) -> loading.Base:
        """Return it, the one before it dropped."""
        dtype = torch.bfloat16 if GPU else torch.float32
        torch.manual_seed(0)
        plan = Blueprint(str(self.folder))
        model = plan.build(DEVICE, dtype)
        if self.pack:
            in_four_bits(model, dtype)
        return loading.Base(model, Blueprint("nano").tokenizer, plan)


def in_four_bits(model: nn.Module, dtype: torch.dtype) -> None:
    """Put every projection of the layers into 4 bits, as bitsandbytes does: nf4, its scales quantised too."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for site in Anatomy.of(model).projections:
        old = model.get_submodule(site.path)
        if not isinstance(old, nn.Linear):
            continue
        new = Linear4bit(old.in_features, old.out_features, bias=False, compute_dtype=dtype, device="meta")
        options: dict[str, Any] = {"requires_grad": False, "quant_type": "nf4", "compress_statistics": True}
        new.weight = Params4bit(old.weight.detach(), **options)
        new.support_avx512bf16_for_cpu = False  # or evaluating repacks it on a CPU, and no gradient passes any more
        model.set_submodule(site.path, new.to(DEVICE))


def rows(shape: Shape, real: bool) -> list[list[Sample]]:
    """Return the rows of each step: all of one length, or of real lengths and as many as make up the tokens."""
    chance = torch.Generator().manual_seed(0)
    steps: list[list[Sample]] = []
    for step in range(max(shape.steps, shape.family_steps)):
        chunk: list[Sample] = []
        while len(chunk) < shape.rows if not real else sum(len(s.ids) for s in chunk) < shape.tokens:
            length = shape.length
            if real:
                length = int(numpy.interp(float(torch.rand(1, generator=chance)), SHARES, LENGTHS))
                length = min(length, shape.tokens - sum(len(s.ids) for s in chunk))
            # Below the number of tokens of the tokenizer whose padding is used.
            ids = torch.randint(4, 300, (length,), generator=chance).tolist()
            head = int(PROMPT * length)
            labels = (*[-100] * head, *ids[head:])
            chunk.append(Sample(f"{step}/{len(chunk)}", tuple(ids), labels))
        steps.append(chunk)
    return steps


def ceiling(shape: Shape) -> dict[str, float]:
    """Return the FLOPs in a second of the products of the model's shapes; the best of them is the ceiling."""
    size, wide = shape.config["hidden_size"], shape.config["intermediate_size"]
    dtype, found = torch.bfloat16 if GPU else torch.float32, {}
    for one, other in ((size, size), (size, wide), (wide, size)):
        left = torch.randn(shape.tokens, one, device=DEVICE, dtype=dtype)
        right = torch.randn(one, other, device=DEVICE, dtype=dtype)
        times = []
        for _ in range(30):
            began = now()
            left @ right
            times.append(now() - began)
        found[f"{shape.tokens}x{one}x{other}"] = 2 * shape.tokens * one * other / statistics.median(times[5:])
    return found


def now() -> float:
    """Return the time at which the GPU has done all it was asked for."""
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def freed() -> None:
    """Give memory back, and reset its peak."""
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def held(peak: Peak) -> int:
    """Return the most bytes that were held: of the GPU, else of all tensors that were made inside."""
    most: int = torch.cuda.max_memory_allocated() if GPU else peak.most
    return most


def a_step(ends: list[float]) -> float:
    """Return the median seconds of a step, after two."""
    return statistics.median(b - a for a, b in pairwise(ends[1:]))


def weights(model: nn.Module) -> int:
    """Return the parameters that a token is multiplied with."""
    return sum(wide * high for m in model.modules() if (size := dims(m)) for wide, high in [size])


PAPER = "q,k,v,up,down"
LINEAR = "q,k,v,o,gate,up,down"


def deterministic(work: Work) -> Iterator[None]:
    """lab, kernels that give the same bits every time."""
    yield from _lab(work, {"deterministic": True})


def way(name: str, shape: Shape, folder: Path, real: bool, at: str = PAPER) -> dict[str, Any]:
    """Train in one of the ways of training.py, or in one that only a GPU has."""
    freed()
    steps = rows(shape, real)[: shape.steps]
    count = min(map(len, steps))  # every step has the same number of rows
    chosen = [row for chunk in steps for row in chunk[:count]]
    precision = "bf16" if GPU else "fp32"
    plan = TrainSpec(batch=count, max_steps=shape.steps, epochs=1000, learning_rate=1e-4, precision=precision)
    config = LoRAConfig(rank=16, alpha=32, at=at)
    work = Random(str(folder), chosen, plan, config, pad_id=0, folder=folder)
    ways = WAYS | {"deterministic": deterministic, "unsloth": by_unsloth}
    with Peak() if not GPU else Quiet() as peak:
        running = ways[name](work)
        next(running)
        next(running, None)
        running.close()
        most = held(peak)
    useful = sum(len(s.ids) for s in chosen) / shape.steps
    second = a_step(work.ends)
    found = {"what": ways[name].__doc__, "rows": count, "tokens_per_step": useful, "seconds_per_step": second}
    return found | {"tokens_per_second": useful / second, "peak_bytes": most, "losses": work.losses}


def by_unsloth(work: Random) -> Iterator[None]:
    """Unsloth, TRL's SFTTrainer as Unsloth changes it, without checkpointing."""
    from trl import SFTConfig, SFTTrainer

    saved = work.folder / "saved"
    if not saved.exists():
        base = work.load()
        base.model.save_pretrained(saved)
        base.tokenizer.save_pretrained(saved)
        del base
        freed()
    options: dict[str, Any] = {"max_seq_length": 4096, "local_files_only": True, "load_in_4bit": False}
    options |= {"use_gradient_checkpointing": False}
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(str(saved), dtype=torch.bfloat16, **options)
    names = [f"{part}_proj" for part in work.config.at.split(",")]
    options = {"r": 16, "lora_alpha": 32, "lora_dropout": 0, "bias": "none", "use_gradient_checkpointing": False}
    model = unsloth.FastLanguageModel.get_peft_model(model, target_modules=names, **options)
    plain: dict[str, Any] = {"gradient_checkpointing": False, "max_length": None}
    yield from _with_trainer(work, model, SFTTrainer, SFTConfig, plain, processing_class=tokenizer)


def apart(shape: str, folder: Path, real: bool, at: str) -> dict[str, Any]:
    """Train with Unsloth, in a separate process."""
    freed()
    words = [sys.executable, __file__, "--unsloth", json.dumps([shape, str(folder), real, at])]
    path = os.pathsep.join(filter(None, (os.environ.get("UNSLOTH_PYTHONPATH"), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(words, capture_output=True, text=True, timeout=150, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        raise RuntimeError(f"{done.stdout[-300:]} {done.stderr[-1500:]}")
    found: dict[str, Any] = json.loads(done.stdout.rpartition("RESULT")[2])
    return found


class Quiet:
    """Stands where memory is counted by the GPU."""

    most = 0

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *error: object) -> None:
        return None


def family(name: str, shape: Shape, folder: Path, pack: bool) -> dict[str, Any]:
    """Train one family for a while with the lab."""
    freed()
    base = Random(str(folder), [], TrainSpec(), LoRAConfig(), 0, folder=folder, pack=pack).load()
    torch.manual_seed(0)
    injection = inject(base.model, get_adapter(name).config(type=name, **FAMILIES[name]))
    chosen = [row for chunk in rows(shape, real=False)[: shape.family_steps] for row in chunk]
    plan = TrainSpec(batch=shape.rows, max_steps=shape.family_steps, precision="bf16" if GPU else "fp32")
    ends, told, losses = [], [], []
    freed()
    began = now()
    for event in train(base.model, injection, chosen, plan, make_accelerator(plan.precision)):
        if isinstance(event, Step):
            ends.append(now() - began)
            losses.append(event.loss)
        elif isinstance(event, FellBack):
            told.append(event.reason)
    second, tokens = a_step(ends), shape.rows * shape.length
    found = {"trainable": injection.count(), "steps": len(ends), "seconds_per_step": second, "fell_back": told}
    found |= {"peak_bytes": torch.cuda.max_memory_allocated() if GPU else None}
    return found | {"tokens_per_second": tokens / second, "loss_first": losses[0], "loss_last": losses[-1]}


def studied(shape: Shape, folder: Path, count: int = 8) -> dict[str, Any]:
    """Train adapters at once, and one after the other."""
    if not hasattr(llm_adapters_lab, "study"):
        return {"left out": "this version has no llm_adapters_lab.sweeps.studies"}
    freed()
    base = folder / "small"
    torch.manual_seed(0)
    model: Any = Blueprint(str(_written(base, shape.study))).build("cpu")
    model.save_pretrained(base)
    Blueprint("nano").tokenizer.save_pretrained(base)
    plan = {"batch": 16, "max_steps": shape.study_steps, "epochs": 1000.0}
    fields = {"base": str(base), "adapter": {"type": "lora", "rank": 8}, "data": {"task": "mini-math", "rows": 512}}
    specs = [
        RunSpec.parse({**fields, "train": {**plan, "learning_rate": rate}})
        for rate in torch.linspace(1e-4, 8e-4, count).tolist()
    ]
    seconds: dict[str, float] = {}
    runs: dict[str, Callable[[Path], Any]] = {
        "study": lambda root: llm_adapters_lab.study(specs, root=root),  # type: ignore[attr-defined]
        "runs": lambda root: [llm_adapters_lab.run(spec, root=root) for spec in specs],
    }
    runs["study"](folder / "warm")  # kernels are chosen at the first call
    peaks = {}
    for name, do in runs.items():
        freed()
        began = now()
        do(folder / name)
        seconds[name] = now() - began
        peaks[name] = torch.cuda.max_memory_allocated() if GPU else None
    return {"adapters": count, "seconds": seconds, "share": seconds["study"] / seconds["runs"], "peak_bytes": peaks}


def _written(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def parts(shape: Shape, folder: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield what is to be measured, by name, the most telling first."""
    base = _written(folder / "base", shape.config)
    size = "LARGE" if shape == LARGE else "SMALL"
    has = importlib.util.find_spec("unsloth") and GPU
    few = ("trainer", "trl-tuned", "on")
    for group, real, at, some in (
        ("ways/full", False, PAPER, (*few, "trl", "off", "loop")),
        ("ways/packed", True, PAPER, few),
        ("linear/full", False, LINEAR, few),
    ):
        for name in filter(WAYS.__contains__, some):
            yield f"{group}/{name}", partial(way, name, shape, base, real, at)
    yield "ways/packed/deterministic", partial(way, "deterministic", shape, base, True)
    for pack in (False, True):
        for name in FAMILIES:
            yield (
                f"families/{'4-bit' if pack else 'bf16' if GPU else 'fp32'}/{name}",
                partial(family, name, shape, base, pack),
            )
    yield "study", partial(studied, shape, folder)
    if has:
        yield "linear/full/unsloth", partial(apart, size, base, False, LINEAR)
        yield "ways/packed/unsloth", partial(apart, size, base, True, PAPER)


def measure(shape: Shape, seconds: float, wanted: str = "") -> dict[str, Any]:
    """Do all of it, as long as there is time."""
    began = time.monotonic()
    rates = ceiling(shape)
    most = max(rates.values())
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        _written(Path(name) / "base", shape.config)
        outline = Blueprint(str(Path(name) / "base")).skeleton
        active = weights(outline)
        for part, do in parts(shape, Path(name)):
            if not re.search(wanted, part):
                continue
            if time.monotonic() - began > seconds:
                results[part] = {"left out": f"{seconds:g} s were over"}
                continue
            try:
                results[part] = do()
            except Exception as error:  # the others are still measured
                results[part] = {"failed": f"{type(error).__name__}: {error}"[-1500:]}
            results[part]["took"] = time.monotonic() - began
            if speed := results[part].get("tokens_per_second"):
                results[part]["utilisation"] = 4 * active * speed / most
            print(part, json.dumps(results[part]), flush=True)
    return {
        "note": "random weights" if GPU and shape is LARGE else "CPU, small shapes" if not GPU else "GPU, small shapes",
        "shape": shape._asdict(),
        "active_parameters": active,
        "ceiling": rates,
        "parts": results,
        "seconds": time.monotonic() - began,
        "environment": environment(DEVICE, torch.bfloat16 if GPU else torch.float32),
    }


def table(result: dict[str, Any]) -> str:
    """Return a result as markdown."""
    lines = ["# Training on a GPU", "", f"**{result['note']}.** {result['environment']['device']}, torch "]
    lines[-1] += f"{result['environment']['torch']}; ceiling {max(result['ceiling'].values()) / 1e12:.2f} TFLOP/s; "
    lines[-1] += f"{result['active_parameters'] / 1e6:,.0f} M parameters a token; {result['seconds']:.0f} s in all."
    lines += ["", "| part | tokens/s | utilisation | peak, GB | against peft, Trainer | |", "|---|---|---|---|---|---|"]
    for name, found in result["parts"].items():
        group = name.rpartition("/")[0]
        first = result["parts"].get(f"{group}/trainer", {}).get("tokens_per_second")
        speed, peak = found.get("tokens_per_second"), found.get("peak_bytes")
        cells = [f"{speed:,.0f}" if speed else "", f"{found['utilisation']:.0%}" if speed else ""]
        cells += [
            f"{peak / 1e9:.2f}" if isinstance(peak, int) else "",
            f"{speed / first:.2f}" if speed and first else "",
        ]
        note = found.get("left out") or found.get("failed") or "; ".join(found.get("fell_back", ()))
        if "share" in found:
            note = f"{found['adapters']} at once in {found['share']:.2f} of the time of as many runs"
        lines.append(f"| {name} | {' | '.join(cells)} | {note} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--small", action="store_true", help="small shapes, on whatever there is")
    parser.add_argument("--seconds", type=float, default=420, help="start no further part after this many")
    parser.add_argument("--parts", default="", help="a pattern: only parts whose name it is found in")
    parser.add_argument("--unsloth", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=HERE / ("gpu.json" if GPU else "gpu-cpu.json"))
    asked = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if asked.unsloth:
        size, folder, real, at = json.loads(asked.unsloth)
        found = way("unsloth", LARGE if size == "LARGE" else SMALL, Path(folder), real, at)
        print("RESULT", json.dumps(found))
        return
    result = measure(SMALL if asked.small or not GPU else LARGE, asked.seconds, asked.parts)
    asked.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    asked.out.with_suffix(".md").write_text(table(result), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
