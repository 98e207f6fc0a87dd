"""What only a GPU can show; skipped without one."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llm_adapters_lab.events import Event, FellBack, Step
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
FIELDS: dict[str, Any] = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 4},
    "data": {"task": "mini-math", "rows": 64},
    "train": {"batch": 8, "max_steps": 12, "epochs": 9.0, "learning_rate": 1e-2, "checkpoint_every": 1}
    | {"deterministic": True},
    "eval": {"tasks": ["mini-bool"], "rows": 8, "batch": 4, "max_new_tokens": 4},
}
FAMILIES = [
    {"type": "lora", "rank": 4},
    {"type": "dora", "rank": 4},
    {"type": "series"},
    {"type": "parallel"},
    {"type": "prefix", "virtual_tokens": 4},
    {"type": "conv"},
    {"type": "full-fine-tuning"},
]


def spec(**changes: Any) -> RunSpec:
    return RunSpec.parse({**FIELDS, **changes})


def losses(record: Run) -> list[float]:
    return [event["loss"] for event in record.events("Step")]


def tensors(record: Run) -> dict[str, torch.Tensor]:
    return load_file(record.folder / "adapter" / "adapter.safetensors")


@pytest.mark.parametrize("adapter", FAMILIES, ids=lambda a: str(a["type"]))
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_stopped_run_resumes_to_the_bit(tmp_path: Path, adapter: dict[str, Any], precision: str) -> None:
    asked = spec(adapter=adapter, train={**FIELDS["train"], "precision": precision})
    whole = run(asked, root=tmp_path / "whole")
    stop, seen = threading.Event(), []

    def listen(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Step) and event.step == 5:
            stop.set()

    parted = run(asked, root=tmp_path / "parted", stop=stop, on_event=listen)
    assert not parted.done
    parted = run(asked, root=tmp_path / "parted")
    assert list(parted.events("Resumed"))
    if adapter["type"] == "lora":
        assert not [e for e in seen if isinstance(e, FellBack)]
    assert losses(whole)[-1] < losses(whole)[0]
    assert losses(parted) == losses(whole)
    assert all(torch.equal(a, b) for a, b in zip(tensors(parted).values(), tensors(whole).values(), strict=True))
    assert list(parted.predictions()) == list(whole.predictions())


def test_a_gpu_computes_what_the_cpu_does(tmp_path: Path) -> None:
    asked = spec(dtype="fp32", train={**FIELDS["train"], "precision": "fp32"})
    here = run(asked, root=tmp_path / "gpu")
    program = "import sys; from llm_adapters_lab.cli.app import main; main()"
    path = tmp_path / "spec.json"
    path.write_text(asked.model_dump_json(), encoding="utf-8")
    words = [sys.executable, "-c", program, "run", str(path), "--root", str(tmp_path / "cpu")]
    subprocess.run(words, check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, timeout=300)
    there = Run(tmp_path / "cpu" / here.id)
    assert losses(here) == pytest.approx(losses(there), rel=2e-3)
    assert here.summary["scores"]["mini-bool"]["n"] == there.summary["scores"]["mini-bool"]["n"]


def test_fp16_scales_its_loss(tmp_path: Path) -> None:
    done = run(spec(train={**FIELDS["train"], "precision": "fp16", "max_steps": 30}), root=tmp_path)
    assert losses(done)[-1] < 0.8 * losses(done)[0]


@pytest.mark.parametrize("variables", [{}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}], ids=["dp", "fsdp"])
def test_a_launcher_with_one_process_does_the_same_by_nccl(tmp_path: Path, variables: dict[str, str]) -> None:
    asked = spec(train={**FIELDS["train"], "precision": "fp32"})
    alone = run(asked, root=tmp_path / "alone")
    path = tmp_path / "spec.json"
    path.write_text(asked.model_dump_json(), encoding="utf-8")
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1", "--standalone"]
    words += ["-m", "llm_adapters_lab", "run", str(path), "--root", str(tmp_path / "one")]
    done = subprocess.run(words, env={**os.environ, **variables}, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert losses(Run(tmp_path / "one" / alone.id)) == losses(alone)


def test_short_memory_halves_micro_batches(tmp_path: Path) -> None:
    asked = spec(train={**FIELDS["train"], "batch": 64, "max_steps": 3})
    plain = run(asked, root=tmp_path / "plain")
    peak = max(torch.cuda.max_memory_allocated(), 1)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    try:
        # The cache grows by blocks of 2 MiB and more, so the limit lies well under the peak.
        torch.cuda.set_per_process_memory_fraction(0.6 * peak / total)
        short = run(asked, root=tmp_path / "short")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert list(short.events("FellBack")), f"peak {peak}"
    assert losses(short) == pytest.approx(losses(plain), rel=1e-2)


def test_a_fault_of_the_device_is_recorded(tmp_path: Path) -> None:
    program = """
import sys
import torch
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.events import Step
from llm_adapters_lab.runs.spec import RunSpec
def fault(event):
    if isinstance(event, Step) and event.step == 3:
        torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")]
run(RunSpec.load(sys.argv[1]), root=sys.argv[2], on_event=fault)
"""
    path = tmp_path / "spec.json"
    path.write_text(spec().model_dump_json(), encoding="utf-8")
    words = [sys.executable, "-c", program, str(path), str(tmp_path / "runs")]
    done = subprocess.run(words, timeout=300, capture_output=True, text=True)
    assert done.returncode != 0
    record = Run(tmp_path / "runs" / spec().id)
    assert record.summary["status"] == "failed"
    assert "device" in record.summary["error"].lower() or "cuda" in record.summary["error"].lower()
    assert run(spec(), root=tmp_path / "runs").done  # in a process whose device works


def test_the_estimate_is_what_the_gpu_allocates(tmp_path: Path) -> None:
    config = {"model_type": "llama", "vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 2816}
    config |= {"num_hidden_layers": 6, "num_attention_heads": 8}
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model: Any = Blueprint(str(base)).build("cpu")
    model.save_pretrained(base)
    Blueprint("nano").tokenizer.save_pretrained(base)
    torch.cuda.empty_cache()
    done = run(spec(base=str(base), train={**FIELDS["train"], "batch": 64, "max_steps": 3}), root=tmp_path / "runs")
    (told,) = done.events("Estimated")
    assert not list(done.events("FellBack"))
    assert done.summary["train"]["peak_memory_bytes"] == pytest.approx(told["total"], rel=0.25)
