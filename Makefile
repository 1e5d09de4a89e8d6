# make demo: the main job on embedded data. make test: all tests. Both set up what they need.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RAPIDS := .venv-rapids
BROWSER := .venv-browser
# One thread: more than there are free cores make small tensors many times slower.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
RUN ?= runs/demo
# Test files that run side by side: one a core of the two that are asked for.
JOBS ?= 2

.PHONY: venv demo test test-rapids test-real test-browser lint audit bench-quick

venv: $(STAMP)

# The stamp comes last: an interrupted installation is taken up again, and a finished one is left alone.
$(STAMP): pyproject.toml constraints.txt requirements-torchrec.txt
	python=$$(command -v python3.11 || command -v python3); \
	"$$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))' \
		|| { echo "Python 3.10 or 3.11 is needed, $$("$$python" --version) is what there is" >&2; exit 1; }; \
	test -x $(BIN)/pip || "$$python" -m venv --clear $(VENV); \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[serve,dev]' -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-torchrec.txt
	touch $(STAMP)

demo: venv
	$(THREADS) $(BIN)/ameir-merlin demo --out $(RUN)

test: venv
	$(THREADS) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ameir_merlin benchmarks workflows
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

# The tests of the data part on the newer generation of the stack, the one that cudf 24.12 belongs to.
test-rapids: $(RAPIDS)/.installed
	$(THREADS) $(RAPIDS)/bin/python -m pytest tests/test_data_*.py

$(RAPIDS)/.installed: requirements-rapids.txt requirements-merlin.txt
	python3.11 -m venv --clear $(RAPIDS)
	$(RAPIDS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-rapids.txt
	$(RAPIDS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-merlin.txt -e .
	touch $@

# On real files: AMEIR_REAL_DATA or ../shared/data. `make test` runs them too, where the files lie there.
test-real: venv
	$(THREADS) AMEIR_REAL_DATA=$${AMEIR_REAL_DATA:-../shared/data} $(BIN)/python -m pytest tests/test_data_real.py

# The report in Chromium, which the wheels of PyQt6-WebEngine bring. They want libraries of the system that a bare server
# may lack (libnss3, libxkbcommon, libGL), so that `make test` leaves these tests out.
test-browser: venv $(BROWSER)/.installed
	$(THREADS) AMEIR_BROWSER=$(BROWSER)/bin/python $(BIN)/python -m pytest tests/test_report_browser.py

$(BROWSER)/.installed: requirements-browser.txt
	python3.11 -m venv --clear $(BROWSER)
	$(BROWSER)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-browser.txt
	touch $@

bench-quick: venv
	$(THREADS) $(BIN)/python -m benchmarks.quick

# Known holes in what is installed: fails for one that docs/security.md does not name, and where nobody could be asked.
audit: venv
	$(BIN)/python -m benchmarks.audit
