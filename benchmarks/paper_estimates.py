"""What the paper's runs need: memory by the lab's own estimate, and time by arithmetic. No weight is loaded.

    python benchmarks/paper_estimates.py [--only llama-7b] [--out docs/gpu.md]

The bases' configurations stand here, so that nothing is fetched. Memory is that of the largest micro-batch, of rows
as long as data.max_tokens allows, run on tensors without content. Writes the table between the two marks of the page,
and all numbers to paper-estimates.json.

Time is counted, not measured. Training: 4 FLOPs for each weight of a projection or the head and token (forward, and
backward to the activations; a frozen weight has no gradient), 6 for each of the adapter's, at the share UTILISATION of
the published dense 16-bit rate. Scoring: one step for each new token of a batch, as long as reading the weights takes
at half the published bandwidth, or computing 2 FLOPs for each weight and sequence at that share, or LAUNCH seconds for
each layer, because it begins some twenty kernels: whichever is longest. Its memory: weights, and keys and values of all
sequences (eval.batch times four beams), PROMPT and max_new_tokens long.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from llm_adapters_lab.core.weights import dims
from llm_adapters_lab.models.blueprint import blueprint
from llm_adapters_lab.runs.forecast.memory import estimate
from llm_adapters_lab.runs.forecast.size import size
from llm_adapters_lab.runs.presets import spec_presets
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.batches import step_count

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "gpu.md"
MARKS = "<!-- begin of what benchmarks/paper_estimates.py writes -->", "<!-- end -->"
UTILISATION, LAUNCH = 0.4, 0.001
ROWS, TOKENS = 10_000, 200  # of Math10K: "about 10K"; a GSM8K row with its solution has 185 tokens of SmolLM2's
TESTS, NEW_TOKENS = 600 + 1319 + 395 + 254 + 508 + 1000, 200  # the paper's six sets; the longest answer of a batch
BEAMS, PROMPT, MAX_NEW_TOKENS = 4, 100, 256
GIB = 2**30


class Gpu(NamedTuple):
    """A GPU, as its data sheet has it: GiB, dense bf16 FLOPs and bytes in a second."""

    name: str
    memory: int
    flops: float
    bandwidth: float


GPUS = (
    Gpu("RTX 4090", 24, 165e12, 1.01e12),
    Gpu("A100 80GB", 80, 312e12, 2.04e12),
    Gpu("H100 SXM", 80, 989e12, 3.35e12),
)
_LLAMA = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
CONFIGS: dict[str, dict[str, Any]] = {
    "huggyllama/llama-7b": _LLAMA
    | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "huggyllama/llama-13b": _LLAMA
    | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "EleutherAI/gpt-j-6b": {
        **{"model_type": "gptj", "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "n_positions": 2048},
        **{"vocab_size": 50400, "tie_word_embeddings": False},
    },
    "bigscience/bloomz-7b1": {
        **{"model_type": "bloom", "hidden_size": 4096, "n_layer": 30, "n_head": 32, "vocab_size": 250880},
    },
}
KINDS = {"bf16": {}, "bf16, checkpointing": {"gradient_checkpointing": True}, "4-bit": {"quantization": "nf4-double"}}


def needs(spec: RunSpec) -> int:
    """Return the bytes that the training of a spec needs at its peak."""
    # Rows that begin with different tokens: nothing that they share can be computed once.
    rows = [tuple(range(i, i + spec.data.max_tokens)) for i in range(spec.train.batch)]
    found = estimate(spec, [Sample(str(row[0]), row, row) for row in rows])
    assert found is not None
    return found.total


def changed(spec: RunSpec, base: str, kind: dict[str, Any]) -> RunSpec:
    """Return a spec on another base, computed in bf16, with what a kind of run changes."""
    fields = spec.model_dump(mode="json")
    train = fields["train"] | {"precision": "bf16"}
    train |= {key: value for key, value in kind.items() if key in train}
    rest = {key: value for key, value in kind.items() if key not in train}
    return RunSpec.parse(fields | {"base": base, "dtype": "bf16", "train": train} | rest)


def hours(spec: RunSpec, weights: int, gpu: Gpu) -> tuple[float, float]:
    """Return the hours of training and of scoring; `weights`: parameters of projections and head."""
    sizes = size(spec.base, spec.adapter, "bf16")
    steps = step_count(spec.train, ROWS - spec.data.validation)
    flops = steps * spec.train.batch * TOKENS * (4 * weights + 6 * sizes.trainable)
    batches, layers = math.ceil(TESTS / spec.eval.batch), len(blueprint(spec.base).anatomy.layers)
    compute = 2 * sizes.base * spec.eval.batch * BEAMS / (UTILISATION * gpu.flops)
    a_token = max(2 * sizes.base / (gpu.bandwidth / 2), compute, LAUNCH * layers)
    return flops / (UTILISATION * gpu.flops) / 3600, batches * NEW_TOKENS * a_token / 3600


def scoring(spec: RunSpec) -> int:
    """Return the bytes of weights, keys and values when the paper's protocol scores a batch."""
    base = blueprint(spec.base)
    held = 2 * 2 * len(base.anatomy.layers) * base.config.hidden_size  # bytes of a token
    return 2 * size(spec.base, None).base + held * spec.eval.batch * BEAMS * (PROMPT + MAX_NEW_TOKENS)


def examine(name: str, spec: RunSpec, folder: Path) -> dict[str, Any]:
    """Return what one preset needs."""
    base = folder / spec.base.replace("/", "--")
    base.mkdir(exist_ok=True)
    (base / "config.json").write_text(json.dumps(CONFIGS[spec.base]), encoding="utf-8")
    plain = changed(spec, str(base), {})
    model = blueprint(plain.base).skeleton
    weights = sum(m.weight.numel() for m in model.modules() if dims(m))
    found: dict[str, Any] = {"preset": name, "base": spec.base, "adapter": spec.adapter and spec.adapter.type}
    sizes = size(plain.base, plain.adapter, "bf16")
    found |= {"parameters": sizes.base, "trainable": sizes.trainable, "bytes": {}, "refused": {}}
    for kind, changes in KINDS.items():
        if not set(changes) <= {*RunSpec.model_fields, *type(spec.train).model_fields}:
            continue  # quantised bases are not in this version
        try:
            found["bytes"][kind] = needs(changed(spec, str(base), changes))
        except Exception as error:
            found["refused"][kind] = str(error).partition("\n")[0]
    found["scoring_bytes"] = scoring(plain)
    found["hours"] = {gpu.name: hours(plain, weights, gpu) for gpu in GPUS}
    print(json.dumps(found), flush=True)
    return found


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as markdown."""
    kinds = [kind for kind in KINDS if any(kind in r["bytes"] for r in results)]
    heads = [
        "preset",
        "trainable",
        *(f"{kind}, GiB" for kind in kinds),
        "scoring, GiB",
        *(f"{gpu.name}, hours" for gpu in GPUS),
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for r in results:
        cells = [f"`{r['preset']}`", f"{r['trainable'] / 1e6:.1f} M"]
        cells += [f"{r['bytes'][kind] / GIB:.1f}" if kind in r["bytes"] else "–" for kind in kinds]
        cells.append(f"{r['scoring_bytes'] / GIB:.0f}")
        for gpu in GPUS:
            fits = min(r["bytes"].values()) / GIB < 0.95 * gpu.memory
            cells.append(" + ".join(f"{x:.1f}" for x in r["hours"][gpu.name]) if fits else "does not fit")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="presets whose name holds this")
    parser.add_argument("--out", type=Path, default=PAGE)
    asked = parser.parse_args()
    chosen = {name: preset for name, preset in spec_presets().items() if name.startswith("paper/")}
    with tempfile.TemporaryDirectory() as folder:
        results = [
            examine(name, RunSpec.parse(preset.fields), Path(folder))
            for name, preset in chosen.items()
            if asked.only in name
        ]
    print(table(results))
    if not asked.only:
        before, _, rest = asked.out.read_text(encoding="utf-8").partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        text = f"{before}{MARKS[0]}\n\n{table(results)}\n\n{MARKS[1]}{after}"
        asked.out.write_text(text, encoding="utf-8")
        (HERE / "paper-estimates.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
