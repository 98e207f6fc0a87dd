"""Read finished runs: compare, test, plot, report, publish."""

from llm_adapters_lab._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "comparison": "compare mean_accuracy task_names",
        "paired_tests": "pairs disagreements",
        "seed_groups": "groups seeds",
        "published_results": "published tables names",
        "reports": "report",
        "appearance": "colour",
        ".": "plots",
    },
)
