# Everything happens in .venv and .cache; `make clean` removes both.
PYTHON ?= python3
KEY = $(shell cksum < pyproject.toml | cut -d' ' -f1)
INSTALLED = .venv/.installed-$(KEY)
TESTABLE = .venv/.testable-$(KEY)
RELEASABLE = .venv/.releasable-$(KEY)

# Without compiled modules every process that the tests start compiles fledge again.
unexport PYTHONDONTWRITEBYTECODE

PREFIX ?= $(HOME)/.local

.PHONY: hello build zipapp deb release install fmt vet docs test test-fast lint bench bench-compare clean

hello: $(INSTALLED)
	@scripts/hello

# A wheel and an sdist in dist/.
build: $(RELEASABLE)
	@.venv/bin/python scripts/release --only wheel

# dist/fledge-MACHINE.pyz, one file with all libraries for every supported Python.
zipapp: $(RELEASABLE)
	@.venv/bin/python scripts/release --only zipapp

# dist/fledge_VERSION_ARCHITECTURE.deb
deb: $(RELEASABLE)
	@.venv/bin/python scripts/release --only deb

# All of these, twice and compared, with checksums and provenance, signed by the key SIGN.
release: $(RELEASABLE)
	@.venv/bin/python scripts/release $(if $(SIGN),--key $(SIGN))

# The command fledge, in an environment of its own.
install: build
	$(PYTHON) -m venv --clear $(PREFIX)/share/fledge
	$(PREFIX)/share/fledge/bin/python -m pip install --quiet dist/*.whl
	mkdir -p $(PREFIX)/bin
	ln -sfn ../share/fledge/bin/fledge $(PREFIX)/bin/fledge
	@$(PREFIX)/bin/fledge version

fmt: $(TESTABLE)
	.venv/bin/ruff format

vet: $(TESTABLE)
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache --no-logo

# Where tests skip there is less coverage, so only .ci/run, where none may, asks for all of it.
test: $(TESTABLE)
	scripts/test-tools
	.venv/bin/python -m pytest -n 2 --cov=fledge --cov-fail-under=0

test-fast: $(TESTABLE)
	.venv/bin/python -m pytest -n 2 -m "not real and not slow"

# The documentation, as a site in build/site. What is wrong with a link is an error.
docs: $(TESTABLE)
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict

lint: vet
	.venv/bin/ruff format --check

bench: $(TESTABLE)
	scripts/test-tools
	.venv/bin/python bench/initramfs.py

# Is what is here slower than the commit BASE? Needs root, for the images.
BASE ?= main
bench-compare: $(TESTABLE)
	scripts/test-tools
	.venv/bin/python bench/compare.py $(BASE) .

$(INSTALLED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fledge needs Python 3.10 or later; try: make PYTHON=python3.12")'
	@$(PYTHON) -m venv .venv || { echo "On Debian: apt-get install python3-venv"; exit 1; }
	@.venv/bin/python -m pip install --quiet --editable .
	@touch $@

$(RELEASABLE): $(INSTALLED)
	@.venv/bin/python -m pip install --quiet --editable '.[release]'
	@touch $@

$(TESTABLE): $(INSTALLED)
	@.venv/bin/python -m pip install --quiet --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv .cache build dist
