"""A small sweep for tests."""

from typing import Any

from llm_adapters_lab.sweeps.spec import Sweep

SMALL: dict[str, Any] = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 2},
    "data": {"task": "mini-math", "rows": 8},
    "train": {"batch": 4, "max_steps": 2, "learning_rate": 1e-3},
    "eval": {"tasks": ["mini-bool"], "rows": 2, "batch": 2, "max_new_tokens": 2, "likelihood": False},
}


def parsed(**parts: Any) -> Sweep:
    return Sweep.parse({"spec": SMALL, **parts})
