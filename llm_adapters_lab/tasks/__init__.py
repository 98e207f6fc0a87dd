"""Tasks: where the rows come from, how a question is asked, how an answer is read and judged.

To add a task, put a module into this package that calls ``register_task(Task(...))`` with

1. a name and a one-line summary,
2. ``read(split, root)``, which returns the rows as a list of `Example`,
3. ``**answer_form("number")`` (or letter, label, text): how an answer is read from generated text and judged.

Specs, command line and panels find it by its name. `llm_adapters_lab.tasks.base` is the page to read.
"""

from llm_adapters_lab._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "base": "Task Example register_task",
        "answers": "answer_form",
        "registry": "get_task all_tasks",
        "tokens": "Sample",
        "encoding": "encode",
        "formats": "get_format",
        ".": "prompts extraction contamination",
    },
)
