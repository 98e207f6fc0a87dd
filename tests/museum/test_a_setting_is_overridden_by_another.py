"""A setting that was given is overridden by another one, and the run is not the one that was asked for.

Area: training
Elsewhere: found here
Before: `--set adapter.rank=4 --set adapter=lora` ran with rank 8; a sweep over ranks ignored `--set adapter.rank=4`,
    and a file `own:x.jsonl?train=foo` the keys of hub data sets.
Here: a group is set before its fields; the other two are refused.
Verdict: silent → refused
"""

import json
from pathlib import Path

import pytest

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.sweeps.spec import Sweep
from llm_adapters_lab.tasks.registry import get_task


def test_a_setting_is_overridden_by_another(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({"adapter": {"type": "lora", "rank": 2}}))
    spec = RunSpec.load(tmp_path / "spec.json", {"adapter.rank": 4, "adapter": "lora"})
    assert spec.adapter and spec.adapter.model_dump()["rank"] == 4
    path = tmp_path / "sweep.json"
    for part, name in (
        ({"grid": {"adapter.rank": [1, 2]}}, "adapter.rank"),
        ({"list": [{"adapter": "lora"}, {"seed": 1}]}, "adapter.rank"),
        ({"random": {"count": 1, "seed": 0, "fields": {"data.rows": {"choice": [8]}}}}, "data.rows"),
        ({"seeds": [1, 2]}, "seed"),
    ):
        path.write_text(json.dumps({"spec": {"adapter": "lora"}, **part}))
        with pytest.raises(BadSpec, match=rf"{name} cannot be set: [\w.]+ is varied by {next(iter(part))}"):
            Sweep.load(path, {name: 4})
        assert Sweep.load(path, {"train.batch": 4}).specs()[0].train.batch == 4
    for key in ("config", "train", "test"):
        with pytest.raises(BadSpec, match=f"{key}: a file has no such parts"):
            get_task(f"own:x.jsonl?form=number&{key}=foo")
