# What people type. Each command builds .venv first when it is missing or out of date.
.DEFAULT_GOAL := help
.PHONY: help run test lab docs bench readme clean install
MAKEFLAGS += --no-print-directory

# Only when there is no .venv yet: one line, and nothing else, for a machine without a fit Python.
fit = $(if $(wildcard .venv/.mlnb),,$(if $(filter fit,$(shell PYTHON="$(PYTHON)" bash .ci/python --test)),,$(error $(shell PYTHON="$(PYTHON)" bash .ci/python 2>&1))))

help:  ## print this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1@\2/p' Makefile | awk -F@ '{ printf "  make %-8s %s\n", $$1, $$2 }'

run: install  ## run the reference pipeline: only what changed since the last run (ARGS="--dry-run" and the like)
	@.venv/bin/mlnb run $(ARGS)

test:  ## everything a change must pass: style, types, layers, notebooks, tests
	@$(fit)bash .ci/run

lab: install  ## open the project in JupyterLab
	@.venv/bin/mlnb lab $(ARGS)

docs: install  ## every notebook as an HTML page, in runs/docs
	@.venv/bin/python -m mlnb.readme --pages runs/docs

bench: install  ## measure what we claim, each against a named peer (ARGS="--only NAME")
	@.venv/bin/python benchmarks/run.py $(ARGS)

readme: install  ## write README.md from nbs/index.ipynb
	@.venv/bin/python -m mlnb.readme

clean:  ## remove .venv and caches; your runs stay
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist runs/docs
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

install:  ## build .venv, or bring it up to date; nothing to do otherwise
	@$(fit)bash .ci/install
