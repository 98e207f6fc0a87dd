"""Train an injected adapter: loss, batches, steps, checkpoints, processes."""

from llm_adapters_lab._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "loop": "train",
        "optimizer": "learning_rate",
        "spec": "TrainSpec",
        "batches": "step_count",
    },
)
