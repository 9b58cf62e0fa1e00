# Two commands: `make demo` trains and shows a detector, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-slow test-prepare test-tools test-wheel test-wheel-all lint docs check \
    peer chips clean

$(VENV)/.installed: setup.cfg pyproject.toml
	@echo "installing into $(VENV) (once; a few minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

help:  ## the targets and what they do
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  \1\t\2/' | expand -t 20

demo: $(VENV)/.installed  ## train on generated shapes, evaluate, draw: runs/demo
	rm -rf runs/demo
	$(BIN)/python scripts/train.py --config=experiments/shapes_demo.py --workdir=runs/demo
	$(BIN)/python scripts/evaluate.py --checkpoint=runs/demo --split=test --pictures=12
	@# annotations_test.json, detections_test.json, pictures_test: 200 images never seen

# Tests of one file share their compiled functions: one process for each file. The slow
# suite has few of these, and `worksteal` lets no process wait for the other's last file.
PYTEST := $(BIN)/python -m pytest -n 2 -rs

test: $(VENV)/.installed  ## the tests
	$(PYTEST) --dist loadfile

# With all of XLA's optimisations, as a user has them (tests/conftest.py). Tests of
# COMPILING do little else than compile: many small programs, or the same small
# experiment in many processes. They have the default suite's few optimisations, but for
# the mode `optimised`, which has all. So have those that tests/long.txt lists, which
# were part of it. The longest stand first: a worker that has nothing left takes over
# from the end.
COMPILING := $(addprefix tests/scripts/test_,multihost.py any_data.py readme.py sweep.py) \
    tests/examples/test_notebook.py tests/parity/test_kill_and_resume.py \
    $(addprefix tests/scripts/test_,alternating.py proposals.py bad_images.py \
        report.py output.py publish.py scripts.py verify_zoo.py) \
    $(addprefix tests/scripts/bench/test_,paper.py prediction.py runtimes.py) \
    tests/test_backbone_experiments.py tests/test_experiments.py \
    $(addprefix tests/training/test_,devices.py surroundings.py buckets.py \
        stochastic_depth.py loop.py norms.py validation.py step.py padding.py recipe.py \
        values.py) \
    $(addprefix tests/models/test_,extents.py swin.py convnext.py vit.py) \
    $(addprefix tests/weights/test_,vgg.py zoo_of_a_wheel.py) \
    tests/test_cascade.py tests/ops/test_nms.py \
    $(addprefix tests/examples/test_,own_parts.py jax_programs.py) \
    $(addprefix tests/modes/test_,steps.py modes.py)

test-slow: $(VENV)/.installed  ## the slow tests
	$(PYTEST) --dist worksteal -m "long and not slow"
	$(PYTEST) --dist worksteal -m slow $(COMPILING)
	XLA_FLAGS= $(PYTEST) --dist worksteal -m slow $(COMPILING:%=--ignore=%)

# TensorFlow in an environment of its own, on top of the other: nothing else may need it.
test-prepare: .venv-prepare/.installed  ## the test that needs TensorFlow
	.venv-prepare/bin/python -m pytest -rs -m prepare tests/data/sources/test_tfds.py

# Tools that bring opencv-python, in environments of their own on top of the other.
# FiftyOne and gradio ask for different versions of one package.
test-tools: .venv-tools/.installed .venv-fiftyone/.installed  ## supervision, SAHI, FiftyOne, OpenVINO, gradio's page in Chromium
	.venv-tools/bin/python -m pytest -rs -m tools -W default tests/tools
	.venv-fiftyone/bin/python -m pytest -rs -m tools -W default tests/tools -k fiftyone

.venv-%/.installed: $(VENV)/.installed
	test -x .venv-$*/bin/python || $(BIN)/python -m venv .venv-$*
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
	    "$$(.venv-$*/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/dev.pth"
	.venv-$*/bin/python -m pip install --quiet --no-compile $(PACKAGES_$*) $(OPTIONAL_$*)
	touch $@

PACKAGES_tools := supervision==0.31.2 trackers==2.6.1 sahi==0.12.8 gradio openvino==2026.4.1
PACKAGES_fiftyone := fiftyone
OPTIONAL_fiftyone := || echo "FiftyOne cannot be installed here: its tests are skipped"
PACKAGES_prepare := tensorflow-cpu
# Of the versions that JAX asks for, and alone: nothing of CUDA is run.
PACKAGES_chips = --no-deps --editable . $$($(BIN)/python -c "import importlib.metadata as m; v = m.version('jax'); \
    print(f'jax-cuda12-plugin=={v} jax-cuda12-pjrt=={v}', *(r.split(';')[0] for r in m.requires('jax') if r.startswith('libtpu')))")

# docs/accelerators.md
chips: .venv-chips/.installed  ## the compilers of GPUs and TPUs, for scripts/compile_for.py, in .venv-chips

# The wheel in an environment of its own, the tests in a folder of their own: the pure
# layer with jax and numpy alone, then all that does not concern the repository.
WHEEL := $(CURDIR)/build/wheel
PURE := ops test_losses.py test_targets.py test_proposals.py test_goldens.py test_package.py \
    examples/test_rpn_plain.py

test-wheel: $(VENV)/.installed  ## the wheel outside of the repository: the pure layer
	rm -rf build/lib build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(WHEEL) .
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/python -m pip install --quiet $(WHEEL)/*.whl pytest hypothesis beartype
	away=$$(mktemp -d) && cp -r tests examples experiments pyproject.toml $$away && \
	    cd $$away && $(WHEEL)/venv/bin/python -m pytest $(PURE:%=tests/%) --pyargs frcnn_jax.ops \
	    frcnn_jax.targets frcnn_jax.losses frcnn_jax.proposals

test-wheel-all: test-wheel  ## the wheel outside of the repository: the rest
	$(WHEEL)/venv/bin/python -m pip install --quiet "$$(echo $(WHEEL)/*.whl)[train]" \
	    pytest-xdist pycocotools faster-coco-eval onnx onnxruntime
	away=$$(mktemp -d) && cp -r tests experiments pyproject.toml $$away && cd $$away && \
	    $(WHEEL)/venv/bin/python -m pytest -n 2 tests --ignore=tests/scripts \
	    --ignore=tests/examples --ignore=tests/test_docs.py

lint: $(VENV)/.installed  ## ruff, pyright, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Warnings are errors, links included: build/site/index.html
docs: $(VENV)/.installed  ## the documentation: build/site/index.html
	$(BIN)/python docs/render.py
	$(BIN)/zensical build --strict

check: lint docs test  ## lint, docs and tests

# The peers (several GB): only to remake tests/goldens and to measure against them.
peer: .venv-peer/.installed  ## torch, torchvision and mayaku in .venv-peer, to compare with

.venv-peer/.installed: Makefile
	test -x .venv-peer/bin/python || $(PYTHON) -m venv .venv-peer
	.venv-peer/bin/python -m pip install --quiet torch==2.15.0 torchvision==0.29.2 mayaku==2.0.1 numpy==2.4.6 onnx onnxscript
	.venv-peer/bin/python -c "import torch, torchvision; print(torch.__version__, torchvision.__version__, torchvision.ops.nms(torch.eye(4), torch.ones(4), .5).shape)"
	touch $@

clean:  ## remove environments and runs
	rm -rf $(VENV) .venv-peer .venv-prepare .venv-tools .venv-fiftyone .venv-chips build runs
