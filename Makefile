# Everything runs from .venv, which the first target that needs it builds from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint docs clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --dynamo_backend no \
		train_unconditional.py --overwrite_output_dir

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:
	rm -rf .venv
