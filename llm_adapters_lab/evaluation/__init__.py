"""Ask a model questions and score its answers."""

from llm_adapters_lab._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "predictions": "evaluate",
        "scoring": "score",
        "decoding": "context",
        ".": "statistics",
    },
)
