"""One run: from a spec to its record on disk."""

from llm_adapters_lab._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "execution": "run",
        "preview": "dry_run",
        "spec": "RunSpec",
        "record": "Run list_runs find_run",
        "restoring": "restore",
        "presets": "spec_presets adapter_presets is_spec",
        "reproduce": "rerun",
        "notebook_parameters": "given papermill_line FAST",
        "forecast.size": "size",
    },
)
