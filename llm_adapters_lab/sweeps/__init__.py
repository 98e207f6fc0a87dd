"""Many runs: sweep files, their executors, and studies that share one base."""

from llm_adapters_lab._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "spec": "Sweep",
        "sweeping": "sweep records progress_printer",
        "executors": "Local Processes Studies",
        "studies": "study",
        "benchmarks": "Benchmark benchmark",
    },
)
