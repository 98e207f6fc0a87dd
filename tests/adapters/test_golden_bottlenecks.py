"""Series and parallel bottlenecks agree with outputs of the `adapters` package."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.registry import get_adapter

# Written by `make_bottlenecks.py`, which explains which of the package's adapters have no counterpart in the lab.
FILE = Path(__file__).parent / "golden" / "bottlenecks.safetensors"
with safe_open(FILE, "pt") as opened:
    METADATA = json.loads(opened.metadata()["golden"])
    TENSORS = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 it is not a dict
FAMILIES = pytest.mark.parametrize("family", METADATA["models"])
CASES = pytest.mark.parametrize("case", METADATA["cases"])


def part(prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in TENSORS.items() if key.startswith(prefix)}


def base(family: str) -> Any:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **METADATA["models"][family]))
    saved, own = part(f"{family}/base/"), dict(model.named_parameters())
    assert saved.keys() == own.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=TENSORS["input_ids"]).logits
        return result


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def config(theirs: dict[str, Any]) -> Any:
    """Return the lab's config for a config of the package."""
    kind = "parallel" if theirs["is_parallel"] else "series"
    return get_adapter(kind).config(
        at="+".join(role for role, key in (("attn", "mh_adapter"), ("mlp", "output_adapter")) if theirs[key]),
        nonlinearity={"swish": "silu"}.get(theirs["non_linearity"], theirs["non_linearity"]),
        scaling=theirs["scaling"],
        bottleneck=8,
        bias=True,
    )


@FAMILIES
def test_the_bare_bases_agree(family: str) -> None:
    same(logits(base(family)), TENSORS[f"{family}/base-logits"])


@CASES
@FAMILIES
def test_the_lab_computes_what_the_package_does(family: str, case: str) -> None:
    model, saved = base(family), part(f"{family}/{case}/")
    expected = saved.pop("logits")
    assert (expected - TENSORS[f"{family}/base-logits"]).abs().max() > 0.1

    injection = inject(model, config(METADATA["cases"][case]))
    # model.layers.0.mlp.down_proj:mlp/bottleneck.up.weight is 0/mlp/up.weight in the file.
    names = {key: re.sub(r".*?\.(\d+)\..*:(\w+)/bottleneck\.", r"\1/\2/", key) for key in injection.state_dict()}
    assert set(names.values()) == set(saved)
    injection.load_state_dict({key: saved[name] for key, name in names.items()})
    same(logits(model), expected)
