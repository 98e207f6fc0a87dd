"""DeepSpeed: a base that ZeRO 3 has spread gives what one that is whole gives, and is no longer whole anywhere."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fault_lab import Lab, until
from nursery import ROOT, Child
from teams import (
    FIELDS,
    ZERO,
    assert_all_same,
    assert_same,
    done,
    free_port,
    longer,
    losses,
    programs,
    refused,
    spec,
    team,
    two,
)

from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec

installed = importlib.util.find_spec("deepspeed") is not None
needed = pytest.mark.skipif(not installed, reason="deepspeed is not installed; `make cluster-test` does it")


@pytest.fixture
def small(tmp_path: Path) -> dict[str, str]:
    """The variables for a configuration that spreads the smallest weights too, and leaves the rest open."""
    path = tmp_path / "zero.json"
    settings = {"stage": 3, "stage3_param_persistence_threshold": 0, "reduce_bucket_size": "auto"}
    settings["offload_param"] = {"device": "cpu"}  # type: ignore[assignment]
    batch = {"train_batch_size": "auto", "gradient_accumulation_steps": 8, "optimizer": {"type": "AdamW"}}
    path.write_text(json.dumps({"zero_optimization": settings, "bf16": {"enabled": "auto"}, **batch}))
    return ZERO | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}


@needed
def test_two_processes_do_what_one_does(lab: Lab, tmp_path: Path, alone: Run, small: dict[str, str]) -> None:
    children = team(lab, spec(tmp_path), tmp_path / "runs", **small)
    record = done(children, Run(tmp_path / "runs" / alone.id))
    assert_same(record, alone)
    assert not list(record.events("FellBack", "Noticed"))
    begun, whole = (next(run.events("Started")) for run in (record, alone))
    assert begun == whole


@needed
def test_other_adapters_and_shortcuts_do_the_same(lab: Lab, tmp_path: Path, small: dict[str, str]) -> None:
    specs, program = programs()
    starts = [[lab.nursery.start("-c", program(tmp_path / "alone"))]]
    starts += [two(lab, "-c", program(tmp_path / "small"), **small), two(lab, "-c", program(tmp_path / "zero"), **ZERO)]
    for child in [child for children in starts for child in children]:
        assert child.wait() == 0, child.said
    assert_all_same(specs, *(tmp_path / name for name in ("alone", "small", "zero")))


@needed
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_packed_weights_are_spread_too(lab: Lab, tmp_path: Path, small: dict[str, str], quantization: str) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    fields = {**FIELDS, **longer(max_steps=2), "quantization": quantization, "eval": {"tasks": []}}
    path, identity = spec(tmp_path, **fields), RunSpec.parse(fields).id
    whole = done([lab.nursery.start("run", path, "--root", tmp_path / "one")], Run(tmp_path / "one" / identity))
    record = done(team(lab, path, tmp_path / "two", **small), Run(tmp_path / "two" / identity))
    # Two processes unpack batches of other shapes, whose activations int8 rounds otherwise.
    assert losses(record) == pytest.approx(losses(whole), abs=1e-5 if quantization == "nf4" else 1e-2)


HELD = """
import torch
from llm_adapters_lab.core import weights
from llm_adapters_lab.models.loading import load_base
from llm_adapters_lab.training.distributed import ProcessGroup
from llm_adapters_lab.training.device import make_accelerator, place
with ProcessGroup():
    model = load_base("nano").model.eval()
    whole = sum(p.numel() for p in model.parameters())
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        before = model(ids).logits
        place(model, None, make_accelerator("fp32"))
        after = model(ids).logits
    held = sum(p.ds_tensor.numel() + p.numel() for p in model.parameters())
    print("found", held / whole, float((after - before).abs().max()))
    assert sum(map(weights.numel, model.parameters())) == whole
"""


@needed
def test_each_holds_its_share(lab: Lab, small: dict[str, str]) -> None:
    for child in two(lab, "-c", HELD, **small):
        assert child.wait() == 0, child.said
        share, far = map(float, child.said.partition("found")[2].split()[:2])
        assert 0.5 <= share < 0.51
        assert far < 1e-5


@needed
@pytest.mark.parametrize("stage", ["1", "2"])
def test_lower_stages_are_data_parallel_and_say_so(lab: Lab, tmp_path: Path, alone: Run, stage: str) -> None:
    variables = ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}
    children = team(lab, spec(tmp_path), tmp_path / "runs", **variables)
    assert_same(done(children, Run(tmp_path / "runs" / alone.id)), alone)
    assert f"Stage {stage} of ZeRO shards the gradients and moments" in children[0].said
    assert "of ZeRO shards" not in children[1].said


@needed
def test_what_was_killed_under_zero_goes_on_without(lab: Lab, tmp_path: Path) -> None:
    changes = longer(max_steps=24, checkpoint_every=2, learning_rate=1e-3)
    path, root = spec(tmp_path, **changes), tmp_path / "runs"
    record = Run(root / RunSpec.parse({**FIELDS, **changes}).id)
    children = team(lab, path, root, **ZERO)
    until(lambda: sum(1 for _ in record.events("Step")) >= 5, children[0])
    children[1].send(signal.SIGKILL)
    assert children[0].wait(30.0) in (1, 2), children[0].said
    (failure,) = record.events("Failed")
    assert "ProcessLost" in failure["error"]
    done([lab.nursery.start("run", path, "--root", root)], record)
    whole = lab.nursery.start("run", path, "--root", tmp_path / "whole")
    assert_same(record, done([whole], Run(tmp_path / "whole" / record.id)))


@needed
@pytest.mark.parametrize("count", [1, 2])
def test_accelerate_launch(tmp_path: Path, alone: Run, count: int) -> None:
    """The launcher itself, with the configuration of the documentation."""
    command = ["accelerate.commands.launch", "--config_file", ROOT / "docs" / "zero.yaml", "--num_processes", count]
    command += ["--main_process_port", free_port(), "-m", "llm_adapters_lab", "run", spec(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", *map(str, command), "--root", str(tmp_path / "runs")]
    subprocess.run(command, env=environment, check=True, timeout=150, cwd=tmp_path)
    assert_same(Run(tmp_path / "runs" / alone.id), alone)


UNKNOWN = '{"zero_optimization": {"stage": 3, "offload_parameters": "cpu"}}'


def refused_by_all(children: list[Child], root: Path, expected: str) -> None:
    for said in refused(children, root):
        assert expected in said


ROUNDED = '{"zero_optimization": {"stage": 3, "zero_quantized_weights": true}}'
ON_DISK = '{"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}'


@pytest.mark.skipif(installed, reason="deepspeed is installed")
def test_deepspeed_must_be_there(lab: Lab, tmp_path: Path) -> None:
    refused_by_all(team(lab, spec(tmp_path), tmp_path / "runs", **ZERO), tmp_path, "pip install deepspeed")


@needed
@pytest.mark.parametrize("content", [None, "{", '{"bf16": {}}', '{"zero_optimization": 3}', UNKNOWN])
def test_a_configuration_that_cannot_be_used(lab: Lab, tmp_path: Path, content: Any) -> None:
    path = tmp_path / "zero.json"
    if content is not None:
        path.write_text(content)
    variables = ZERO | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}
    children = team(lab, spec(tmp_path), tmp_path / "runs", **variables)
    refused_by_all(children, tmp_path, "The configuration of DeepSpeed cannot be used")


@needed
@pytest.mark.parametrize(("content", "expected"), [(ROUNDED, "rounds the weights"), (ON_DISK, "needs its nvme_path")])
def test_what_would_be_another_run_or_fail_later_is_refused(
    lab: Lab, tmp_path: Path, content: str, expected: str
) -> None:
    (tmp_path / "zero.json").write_text(content)
    variables = ZERO | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "zero.json")}
    refused_by_all(team(lab, spec(tmp_path), tmp_path / "runs", **variables), tmp_path, expected)


@needed
def test_stage_0_spreads_nothing_and_nothing_is_said_of_it(lab: Lab) -> None:
    variables = ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}
    said = (
        "from llm_adapters_lab.training import deepspeed_zero as zero; "
        "print('found', zero.stage(), repr(zero.ignored_settings()))"
    )
    child = lab.nursery.start("-c", said, variables=variables)
    assert child.wait() == 0 and "found 0 ''" in child.said
