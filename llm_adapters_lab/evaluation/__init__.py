"""Evaluate a model: generate answers, score them, quantify the uncertainty."""

from llm_adapters_lab._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "predictions": "evaluate",
        "scoring": "score",
        "decoding": "context_length",
        ".": "statistics",
    },
)
