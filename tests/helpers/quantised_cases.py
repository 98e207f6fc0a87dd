"""A small run for tests of quantised bases."""

from typing import Any

SMALL: dict[str, Any] = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 4, "at": "attn+mlp"},
    "data": {"task": "mini-math", "rows": 24, "validation": 8},
    "train": {"batch": 8, "max_steps": 2, "learning_rate": 1e-2},
    "eval": {"tasks": ["mini-addsub"], "rows": 3, "max_new_tokens": 4},
}
