# make test      install what the tests need, check style and types, run every test
# make test-pure the tests that need no real programs and no patience, in less than a minute
# make lint      style, types, shell
# make demo      from nothing to a job in a published image; IMAGE=… takes any registry image
# make bench     measure what the README claims
# make fuzz      ten minutes of strange bytes for each reader of foreign ones (SECONDS=600)
# make venv      the environment alone; make clean removes what all of these made here

BIN := .venv/bin
IMAGE ?=
SECONDS ?= 600
PYTEST_ARGS ?=
# whoever is done takes from the others: a few tests take half a minute
SPREAD := --numprocesses auto --dist worksteal

# What Python compiled is kept: without, workers and the programs they start do it again each time
unexport PYTHONDONTWRITEBYTECODE

.PHONY: test test-pure lint parts venv demo bench fuzz clean
.NOTPARALLEL:

test: parts lint
	@$(BIN)/python -m pytest $(SPREAD) $(PYTEST_ARGS)

test-pure: venv
	@$(BIN)/python -m pytest $(SPREAD) -m "not parts and not slow" $(PYTEST_ARGS)

parts:
	@tools/install-parts

lint: venv
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@tools/lint-shell & shell=$$!; \
	  $(BIN)/mypy cvmfs_publish tests benchmarks tools; types=$$?; \
	  wait $$shell && exit $$types

venv: .venv/complete

.venv/complete: pyproject.toml tools/make-venv
	@tools/make-venv

demo: venv
	@$(BIN)/python -m tools.demo $(if $(IMAGE),'$(IMAGE)')

bench: venv
	@$(BIN)/python -m benchmarks

fuzz: venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@for target in $$($(BIN)/python -m tests.fuzz --list); do \
	  $(BIN)/python -m tests.fuzz $$target --seconds $(SECONDS) || exit 1; done

clean:
	rm -rf .venv .parts .demo .benchmarks .screenshots .hypothesis .mypy_cache .pytest_cache .ruff_cache
