"""Finished runs of the packaged model, a few steps each, for tests of what looks into them."""

import json
from pathlib import Path
from typing import Any

from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.spec import RunSpec

HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script> &'
KINDS = {
    "lora": {"type": "lora", "rank": 4, "at": "q,v,down"},
    "prefix": {"type": "prefix", "virtual_tokens": 4, "init_std": 2.0},
}


def small(kind: str, **changes: Any) -> RunSpec:
    fields: dict[str, Any] = {
        "base": "nano",
        "adapter": KINDS[kind],
        "data": {"task": "mini-math", "rows": 32},
        "train": {"batch": 8, "max_steps": 8, "learning_rate": 0.03},
        "eval": {"tasks": ["mini-addsub", "mini-bool"], "rows": 4, "batch": 4},
    }
    return RunSpec.parse({**fields, **changes})


def make(root: Path) -> tuple[Path, dict[str, str]]:
    """Do the runs; return their folder and their ids: "lora", "prefix", and "own" on a file of hostile rows."""
    rows = [{"instruction": HOSTILE, "input": HOSTILE, "answer": str(n)} for n in range(8)]
    own = root / "own.jsonl"
    own.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = f"own:{own}?answer=answer"
    short = {"batch": 4, "max_steps": 2, "learning_rate": 0.01}
    hostile = {"data": {"task": task, "template": "qa"}, "train": short, "eval": {"tasks": [task], "rows": 2}}
    specs = {"own": small("lora", **hostile), **{kind: small(kind) for kind in KINDS}}
    return root / "runs", {name: run(spec, root=root / "runs").id for name, spec in specs.items()}
