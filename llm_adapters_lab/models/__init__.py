"""A base model: find it, describe it, load it, quantise it."""

from llm_adapters_lab._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "loading": "load_base Base",
        "blueprint": "Blueprint",
        "spec": "PACKAGED",
        "random_models": "tiny tiny_config TINY",
    },
)
