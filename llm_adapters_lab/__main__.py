"""Run the command line: python -m llm_adapters_lab."""

from __future__ import annotations

from llm_adapters_lab.cli.app import main

if __name__ == "__main__":
    main()
