"""Programs compiled for chips that are not here, in the environment of `make chips`."""

import importlib.util
import json
import os
import subprocess

import jax
import pytest

from frcnn_jax.chips import count, hlo, programs, targets
from frcnn_jax.training import config as configs
from tests.scripts import many
from tests.scripts.test_scripts import ROOT

CHIPS = ROOT / ".venv-chips"
CONFIG = "--config=experiments/shapes_demo.py"
SMALL = ("--dtype=bfloat16", "--classes=3", "--size=64x96")


def test_wrong_calls_end_in_one_line():
    calls = [("compile_for", CONFIG, f"--{flag}") for flag in ("part=neck", "size=big")]
    for code, out, err in many.run(calls):
        assert code == 2 and not out and err.count("\n") == 1 and "expected" in err


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed"
)
def test_a_missing_compiler_is_named_with_its_cure():
    ((code, out, err),) = many.run([("compile_for", CONFIG, "--chip=v5e")])
    assert code == 2 and not out and err.count("\n") == 1
    assert "libtpu" in err and "make chips" in err


@pytest.mark.parametrize(("chip", "devices"), [("h100", 12), ("v5e", 6), ("v5p", 0)])
def test_numbers_of_devices_that_there_are_not(chip, devices):
    with pytest.raises(ValueError, match=f"devices={devices} for {chip}: expected 1"):
        targets.devices(chip, devices)


def test_chips_have_peaks_with_a_source():
    for chip in targets.CHIPS.values():
        assert chip.bfloat16 >= chip.float32 > chip.bandwidth > chip.memory > 1e10
        assert "NVIDIA" in chip.source or "Cloud TPU" in chip.source


def small(name):
    config = configs.load_experiment(ROOT / "experiments/shapes_demo.py").get_config()
    config.model.dtype = "bfloat16"
    c = configs.check(config)
    return programs.build(name, c, num_classes=3, batch=2, canvas=(64, 96))


@pytest.mark.slow
def test_a_training_step_has_no_float64_no_callback_and_writes_over_its_state():
    """Compiled for this CPU; two devices, as they are in every test."""
    program = small("train")
    lowered = programs.lower(program, jax.devices("cpu")[:2])
    # Few optimisations: they cost a minute and change nothing that is asserted.
    fast = dict(xla_backend_optimization_level=0, xla_cpu_use_fusion_emitters=False)
    text = lowered.compile(compiler_options=fast).as_text()
    found = count.count(hlo.parse(text))
    assert "f64[" not in text and found.host == 0
    assert found.aliases == len(jax.tree.leaves(program.arguments[0]))
    assert "all-reduce" in found.collectives
    assert not {"f64", "f16"} & set(found.types)


def compile_for(*arguments):
    if not (CHIPS / ".installed").exists():
        pytest.skip(f"needs the compilers of `make chips`: {CHIPS} is not there")
    python = CHIPS / "bin" / "python"
    done = subprocess.run(
        [python, "scripts/compile_for.py", CONFIG, *SMALL, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | dict(XLA_FLAGS="", PYTHONPATH=str(ROOT)),
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])["programs"]


@pytest.mark.slow
def test_a_small_detector_is_compiled_for_eight_gpus():
    found = compile_for("--chip=h100", "--devices=8")
    step, prediction = found["train"], found["prediction"]
    state = jax.tree.leaves(small("train").arguments[0])
    assert step["aliases"] == len(state) and step["host"] == prediction["host"] == 0
    # The gradients, and a handful of metrics: 4 bytes a parameter.
    params = jax.tree.leaves(small("train").arguments[0].params)
    _, sent = step["collectives"]["all-reduce"]
    weights = 4 * sum(x.size for x in params)
    assert weights <= sent < 1.01 * weights + 1000
    assert not prediction["collectives"]
    # What convolutions multiply is bfloat16.
    assert set(prediction["types"]) == {"bf16"}
    assert {row[0] for row in prediction["loops"]} == {"NMS"}


@pytest.mark.slow
def test_parts_are_compiled_for_a_tpu():
    found = compile_for("--chip=v5e", "--part=roi_align,rpn_targets")
    for part in found.values():
        assert part["cycles"] and part["bytes"] > 0 and part["host"] == 0
    assert found["roi_align"]["gathers"] >= 16 and not found["roi_align"]["sorts"]
