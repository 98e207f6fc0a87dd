"""Several processes that do not fit into the memory they share are refused, all of them, before a weight is read."""

import json
from pathlib import Path
from typing import Any

import pytest
from fault_lab import Lab
from nursery import FIELDS
from teams import FSDP, two

from llm_adapters_lab.errors import NotEnoughMemory
from llm_adapters_lab.models import random_models
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.forecast.fits import memory_of_host, require_memory
from llm_adapters_lab.runs.rows import read_rows
from llm_adapters_lab.runs.spec import RunSpec

WIDTH = 4096


def base_of(size: float, folder: Path) -> str:
    """Write a base of so many bytes in fp32: its configuration and a tokenizer, but no weights."""
    layer = 4 * (4 * WIDTH**2 + 3 * WIDTH * 4 * WIDTH)
    config = random_models.tiny_config("tiny:llama").to_dict() | {"num_hidden_layers": max(1, round(size / layer))}
    config |= {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "head_dim": WIDTH // 16}
    config |= {"num_attention_heads": 16, "num_key_value_heads": 16}
    folder.mkdir()
    Blueprint("nano").tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


@pytest.fixture
def fields(tmp_path: Path) -> dict[str, Any]:
    """A run that one process has room for on this computer, and two have not."""
    return {**FIELDS, "base": base_of(0.7 * memory_of_host(), tmp_path / "base"), "dtype": "fp32"}


@pytest.mark.parametrize("variables", [{}, FSDP], ids=["data parallel", "fsdp"])
def test_two_processes_have_no_room_where_one_has(
    lab: Lab, tmp_path: Path, fields: dict[str, Any], variables: dict[str, str]
) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(fields), encoding="utf-8")
    for child in two(lab, "run", path, "--root", tmp_path / "runs", CUDA_VISIBLE_DEVICES="", **variables):
        assert child.wait() == 2, child.said
        said = " ".join(child.said.split())
        assert "in each of its 2 processes here, and this computer has" in said
        assert "What would help: fewer processes on a computer;" in said
        assert "quantization: nf4" in said
    assert not (tmp_path / "runs").exists()


def test_what_is_counted(tmp_path: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    spec = RunSpec.parse(fields)
    rows = read_rows(spec)
    require_memory(spec, rows)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for local, fits in (("1", True), ("2", False)):  # on two computers, or on one
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        if fits:
            require_memory(spec, rows)
        else:
            with pytest.raises(NotEnoughMemory, match="in each of its 2 processes here"):
                require_memory(spec, rows)
    small = RunSpec.parse({**fields, "base": base_of(0.3 * memory_of_host(), tmp_path / "small")})
    require_memory(small, rows)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(NotEnoughMemory, match="in each of its 4 processes here"):
        require_memory(small, rows)
