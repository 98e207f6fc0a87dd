"""What is done for a GPU, without one: on fake tensors (see `fake_gpu`), and with a GPU that is pretended."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_gpu
import pytest
import torch

from llm_adapters_lab.core import quantized
from llm_adapters_lab.errors import NotEnoughMemory
from llm_adapters_lab.models.loading import pick_dtype
from llm_adapters_lab.runs.environment import cpu_contention
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.forecast import fits, machine
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.training import checkpoints

HELPERS = Path(fake_gpu.__file__).parent
CPU_ONLY = torch.version.cuda is None and torch.version.hip is None


@pytest.fixture(scope="module")
def raised(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run all programs of `fake_gpu`, and return what each has raised."""
    compiler = shutil.which("g++")
    if not (CPU_ONLY and compiler and sys.platform == "linux"):
        pytest.skip("needs Linux, g++ and a torch without CUDA")
    driver, torch_folder = tmp_path_factory.mktemp("driver") / "driver.so", Path(torch.__file__).parent
    words = [
        compiler,
        "-std=c++17",
        "-shared",
        "-fPIC",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    ]
    words += [f"-I{torch_folder / 'include'}", str(HELPERS / "fake_gpu.cpp"), "-o", str(driver)]
    words += [
        f"-L{torch_folder / 'lib'}",
        f"-Wl,-rpath,{torch_folder / 'lib'}",
        "-Wl,--no-as-needed",
        "-lc10",
        "-ltorch_cpu",
    ]
    subprocess.run(words, check=True, timeout=120)
    environment = {**os.environ, "LD_PRELOAD": str(driver), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, HELPERS / "fake_gpu.py"], env=environment, timeout=600, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", fake_gpu.PROGRAMS)
def test_it_runs_on_a_fake_gpu(raised: dict[str, str], name: str) -> None:
    assert raised[name] == ""


class Pretended:
    """A GPU of 1 GB that `torch.cuda` tells of; what is computed, is computed on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state, self.resets, self.bf16 = torch.arange(8, dtype=torch.uint8), 0, True
        told: dict[str, Any] = {
            "is_available": lambda: True,
            "device_count": lambda: 2,
            "current_device": lambda: 0,
            "get_device_name": lambda *_: "Pretended",
            "is_bf16_supported": lambda *_, **__: self.bf16,
            "get_device_properties": lambda _: SimpleNamespace(total_memory=10**9),
            "max_memory_allocated": lambda *_: 12345,
            "reset_peak_memory_stats": self.reset,
            "get_rng_state": lambda *_: self.state.clone(),
            "set_rng_state": self.set_state,
            "empty_cache": lambda: None,
        }
        for name, function in told.items():
            monkeypatch.setattr(torch.cuda, name, function)

    def reset(self, *_: Any) -> None:
        self.resets += 1

    def set_state(self, state: torch.Tensor, *_: Any) -> None:
        self.state = state


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    """Pretend that there is a GPU."""
    return Pretended(monkeypatch)


FIELDS: dict[str, Any] = {
    "base": "nano",
    "dtype": "fp32",
    "adapter": "lora",
    "data": {"task": "mini-math", "rows": 16},
    "train": {"batch": 4, "max_steps": 3, "precision": "fp32", "checkpoint_every": 1},
    "eval": {"tasks": ["mini-bool"], "rows": 4, "batch": 4, "max_new_tokens": 4},
}


def losses(record: Run) -> list[float]:
    return [event["loss"] for event in record.events("Step")]


def test_a_run_beside_a_gpu_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    spec = RunSpec.parse(FIELDS)
    alone = run(spec, root=tmp_path / "alone")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    gpu = request.getfixturevalue("gpu")
    beside = run(spec, root=tmp_path / "beside")
    assert losses(beside) == losses(alone)
    assert list(beside.predictions()) == list(alone.predictions())
    assert gpu.resets == 1 and beside.summary["train"]["peak_memory_bytes"] == 12345


def test_the_random_state_of_the_gpu_is_restored(gpu: Pretended) -> None:
    states = checkpoints.random_states()
    before, gpu.state = gpu.state, torch.zeros(8, dtype=torch.uint8)
    checkpoints.set_random_states(states)
    assert torch.equal(gpu.state, before)


@pytest.mark.parametrize(("able", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bf16_is_chosen_where_the_gpu_has_it(gpu: Pretended, able: bool, dtype: torch.dtype) -> None:
    gpu.bf16 = able
    assert pick_dtype("auto") == dtype
    chosen = {choice.what: choice for choice in machine.choices()}
    assert chosen["device"].chosen == "Pretended" and chosen["precision"].chosen == ("bf16" if able else "fp32")
    assert cpu_contention() == ""  # the processors wait for the GPU


def test_the_memory_is_that_of_the_gpu(gpu: Pretended) -> None:
    assert fits.memory_of_machine() == 10**9 and fits.memory_of_machine(every_gpu=True) == 2 * 10**9
    spec = RunSpec.parse(FIELDS | {"train": {"batch": 8, "micro_batch": 4, "micro_tokens": 64}})
    smallest = fits._smallest(spec).train
    assert (smallest.micro_batch, smallest.micro_tokens) == (1, None)


def test_a_base_larger_than_the_gpu_is_refused(gpu: Pretended, tmp_path: Path) -> None:
    config = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5504}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 8, "num_attention_heads": 16}))
    with pytest.raises(NotEnoughMemory, match="the GPU has 1.0 GB"):
        fits.require_memory(RunSpec.parse(FIELDS | {"base": str(tmp_path)}), fits.Rows())


def test_a_quantised_checkpoint_is_loaded_onto_the_gpu(gpu: Pretended) -> None:
    config = SimpleNamespace(quantization_config={"quant_method": "gptq", "bits": 4})
    assert quantized.prepare_config(config) == {"device_map": {"": 0}}
