"""The benchmarks are commands that work, at their smallest; what they measure in earnest is kept beside them."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_training_is_measured_beside_its_peers(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "training.py", "--steps", "1", "--rounds", "1", "--batch", "4"]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(
        [*command, "--out", tmp_path], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    ways = json.loads((tmp_path / "training-nano-mini-math-4.json").read_text(encoding="utf-8"))["ways"]
    flops, losses = ({name: way[key] for name, way in ways.items()} for key in ("flops_per_token", "losses"))
    assert flops["trainer"] == flops["loop"] == flops["off"] > flops["on"]
    assert all(abs(found[0] - losses["trainer"][0]) < 1e-5 for found in losses.values())
    assert "lab, as it comes." in (tmp_path / "training.md").read_text(encoding="utf-8")
