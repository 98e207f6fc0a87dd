"""Tasks: where the rows come from, how a question is asked, how an answer is read and judged.

Every module of this folder registers its tasks with `register`; the folder imports itself, so a new file is a new task
and nothing else changes.
"""

from llm_adapters_lab._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "base": "Task Example register_task",
        "registry": "get_task all_tasks",
        "tokens": "Sample encode",
        ".": "prompts extraction contamination",
    },
)
