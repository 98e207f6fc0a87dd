"""Run the command line: python -m llm_adapters_lab."""

from llm_adapters_lab.cli import main

if __name__ == "__main__":
    main()
