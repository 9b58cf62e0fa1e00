# Two commands: `make demo` trains and shows a detector, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint docs check peer clean

$(VENV)/.installed: setup.cfg pyproject.toml
	@echo "installing into $(VENV) (once; a few minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	rm -rf runs/demo
	$(BIN)/python scripts/train.py --config=experiments/shapes_demo.py --workdir=runs/demo
	$(BIN)/python scripts/evaluate.py --checkpoint=runs/demo --split=test --pictures=12
	@# annotations.json, detections.json and pictures/ of 200 images never seen: runs/demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Warnings are errors, links included: build/site/index.html
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: lint docs test

# The peers (several GB): only to remake tests/goldens and to measure against them.
peer: .venv-peer/.installed

.venv-peer/.installed: Makefile
	test -x .venv-peer/bin/python || $(PYTHON) -m venv .venv-peer
	.venv-peer/bin/python -m pip install --quiet torch==2.15.0 torchvision==0.29.2 numpy==2.4.6
	.venv-peer/bin/python -c "import torch, torchvision; print(torch.__version__, torchvision.__version__, torchvision.ops.nms(torch.eye(4), torch.ones(4), .5).shape)"
	touch $@

clean:
	rm -rf $(VENV) .venv-peer runs
