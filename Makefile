# make tune   tune this machine, write the registry and the report
# make test   run all tests
# make quick  what a change can be told in a minute: see tests/quick.py
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: tune test quick soak benchmark report lint static clean
.DELETE_ON_ERROR:

$(BIN)/python:
	@echo "creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# a stamp is made only after the whole install, so an interrupted one is done again
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing griffin-kernels into $(VENV) (once; torch is the large part)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/installed
	@echo "installing the test tools into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/installed

tune: $(VENV)/installed
	@$(BIN)/griffin tune --resume $(ARGS)

report: $(VENV)/installed
	@$(BIN)/griffin report $(ARGS)

test: $(VENV)/installed-dev
	@sh scripts/ensure_chromium.sh
	@echo "running all tests"
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

quick: $(VENV)/installed-dev
	@$(BIN)/python -m tests.quick

# what CI runs in a short form: 200 kills of a tune run instead of 20, the recorded table compiled for every target,
# ranks on every GPU, every configuration compiled for every target, 10,000 mutated registry files instead of 300, NaN
# and inf planted in every input of every Triton variant, the oldest and the newest Triton that is allowed, what runs untuned on every target
soak: $(VENV)/installed-dev
	@GRIFFIN_TEST_TARGETS=all $(BIN)/python -m pytest -q -s tests/tuning/test_triton_compile.py tests/tuning/test_rank.py $(ARGS)
	@GRIFFIN_TEST_KILLS=200 $(BIN)/python -m pytest -q -s tests/tuning/test_tune_killed.py -k kill_minus_nine $(ARGS)
	@GRIFFIN_TEST_FUZZ=10000 $(BIN)/python -m pytest -q -s tests/griffin_kernels/test_registry_fuzz.py $(ARGS)
	@GRIFFIN_TEST_PLANTS=all $(BIN)/python -m pytest -q tests/griffin_kernels/ops/test_planted.py $(ARGS)
	@sh scripts/triton_ends.sh $(BIN)/python
	@$(BIN)/python -m tuning.static --all-configs

benchmark: $(VENV)/installed-dev
	@$(BIN)/python -m pytest tests/benchmarks -s $(ARGS)

static: $(VENV)/installed
	@$(BIN)/python -m tuning.static --save $(ARGS)

lint: $(VENV)/installed-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .benchmarks
