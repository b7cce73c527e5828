# make demo: the main job on real data. make test: every check. Both make .venv themselves and reuse it.
PYTHON ?= python3
# A CPU-only machine that would otherwise fetch CUDA packages can name a package index that holds CPU builds of torch.
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_FLAGS := --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: help demo test test-all bench clinic lint types clean
.DELETE_ON_ERROR:

help:
	@echo "make demo      three networks that do not learn: diagnosed, cured, proved; writes demo/report.html"
	@echo "make test      every check: ruff, mypy, pytest with doctests"
	@echo "make test-all  the same and the slow tests"
	@echo "make bench     every benchmark, one after the other, about an hour; writes bench/*.json"
	@echo "make clinic    faulty, fixed and healthy trainings: what is said of them, what cures them, beside others; two hours"
	@echo "make clean     remove .venv, caches and demo/"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$$($(PYTHON) --version) found; evengrad wants Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/evengrad demo -o demo

BENCHMARKS := norm_error apply_cost guard_cost probe_cost checkup_cost run_log import_time spikes regret default_policy thresholds treatments
bench: $(STAMP)
	mkdir -p bench
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py -o bench/$$name.json || exit 1; done

clinic: $(STAMP)
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[clinic]"
	mkdir -p bench
	$(BIN)/python benchmarks/clinic -o bench/clinic.json --page bench/clinic.md
	$(BIN)/python benchmarks/cures.py -o bench/cures.json --page bench/cures.md
	$(BIN)/python benchmarks/rivals.py -o bench/rivals.json --page bench/rivals.md

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# A worker for each processor, and one thread in each: on networks this small more threads only wait for each other.
# A file stays with one worker, so what its tests share is made once. Many start a Python of their own, which finds the
# package compiled.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

test: lint types
	$(BIN)/python -m compileall -q src
	$(PYTEST) -m "not slow"

test-all: lint types
	$(BIN)/python -m compileall -q src
	$(PYTEST)

clean:
	rm -rf $(VENV) demo bench .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
