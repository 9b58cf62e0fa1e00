"""Flags and configurations as people mistype them: one line, a cure, an exit code."""

import errno
import subprocess
import sys

import pytest

from frcnn_jax.training import config as configs
from frcnn_jax.training import describe, troubles
from tests.scripts import many
from tests.scripts.test_scripts import ROOT

DEMO = "--config=experiments/shapes_demo.py"


MISTAKES = [
    (("train",), "give --config=FILE: there are experiments/{bccd_cascade, "),
    (("train", DEMO), "give --workdir: The folder"),
    (
        ("train", "--config=experiments/shape_demo.py", "--workdir=x"),
        "no experiment 'experiments/shape_demo.py': is it experiments/shapes_demo.py?",
    ),
    (
        ("train", f"{DEMO}:runlokal", "--workdir=x"),
        "'runlokal' is unknown: expected one of ['runlocal']",
    ),
    (
        ("train", DEMO, "--workdir=x", "--config.optimizer.learning_rat=1"),
        "has no leaf --config.optimizer.learning_rat: is it "
        "--config.optimizer.learning_rate?",
    ),
    (
        ("train", DEMO, "--workdir=x", "--set=optimiser.name=sgd"),
        "no leaf --config.optimiser.name: is it --config.optimizer.name?",
    ),
    (("train", DEMO, "--workdir=x", "--set=batch_size=many"), "batch_size=many"),
    (("train", DEMO, "--workdir=x", "batch_size=4"), "is it --config.batch_size=4"),
    (("train", DEMO, "--wokdir=x"), "no flag --wokdir: is it --workdir?"),
    (("evaluate",), "give --checkpoint, --weights and --config, or --detections"),
    (("evaluate", "--checkpoint=nowhere"), "no checkpoint at "),
    (("evaluate", "--checkpoint=x", "--set=score"), "'score': expected --config."),
    (
        ("predict", "--checkpoint=nowhere", "--images=README.md", "--output=x"),
        "no checkpoint at ",
    ),
    (("export", "--checkpoint=nowhere", "--output=x"), "no checkpoint at "),
    (("evaluate_sweep", "--sweep=rpn", "--checkpoint=x"), "give --config: there"),
    (("sweep", DEMO, "--sweep=rat", "--workdir=/tmp/x/y"), "it has search_optim"),
    (("check_dataset", "--config=a.py"), "no experiment 'a.py': there are experi"),
    (("replay", "--batch=none.npz"), "none.npz"),
    (("report", "nowhere"), "nowhere has no metrics.jsonl"),
]


def test_a_mistake_is_one_line_and_exit_code_two():
    debug = ("evaluate", "--checkpoint=nowhere", "--debug")
    *ends, shown = many.run([*(call for call, _ in MISTAKES), debug])
    for (call, said), (code, _, err) in zip(MISTAKES, ends, strict=True):
        assert said in err
        assert len(err.splitlines()) == 1, err
        assert err.startswith(f"{call[0]}.py: ")
        assert code == troubles.WRONG, err
    code, _, err = shown
    assert code == troubles.WRONG
    assert "Traceback" in err and "checkpoint.py" in err


def test_the_leaves_of_an_experiment_are_listed_with_what_they_mean():
    path = ROOT / "experiments" / "shapes_demo.py"
    config = configs.load_experiment(path).get_config().to_dict()
    lines = describe.leaves(config, path).splitlines()
    assert "--config.optimizer.learning_rate=0.002" in lines
    ema = "--config.ema_decay=0.0  # e.g. 0.999: evaluate and keep the parameters' "
    assert any(line.startswith(ema) for line in lines)
    assert any(
        line.startswith("--config.data.max_boxes=8  # slots for ground")
        for line in lines
    )


def test_comments_of_other_functions_are_not_taken():
    source = (
        "def f():\n    dict(a=1,  # of f\n    )\ndef g():\n    dict(a=2,  # of g\n)\n"
    )
    assert describe.comments(source, only={"g"}) == {"a": "of g"}
    assert describe.called("common.run(x) + common.coco(y)") == {"run", "coco"}


@pytest.mark.parametrize(
    "error, code, said",
    [
        (OSError(errno.ENOSPC, "No space left on device", "/"), 75, "system /: "),
        (OSError(errno.ESTALE, "Stale file handle", "/data"), 75, "/data: Stale"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "may write"),
        (FileNotFoundError("no image file a.jpg"), 2, "no image file a.jpg"),
        (FloatingPointError("not finite at step 3"), 1, "not finite at step 3"),
        (MemoryError(), 2, "not enough memory (MemoryError): in training lower batch"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
    ],
)
def test_what_the_surroundings_do_has_a_line_and_a_code(error, code, said):
    line, found = troubles.explain(error)
    assert found == code and said in line and "\n" not in line


def test_what_grain_adds_to_an_error_is_left_out():
    error = FileNotFoundError("no image file a.jpg")
    error.add_note("or go on without it: data.on_bad_image='skip'")
    error.add_note("-----\nFor simplicity, Grain has removed its internal frames")
    line, _ = troubles.explain(error)
    assert line == "no image file a.jpg; or go on without it: data.on_bad_image='skip'"


def test_what_nobody_foresaw_is_not_hidden():
    def bug():
        raise ValueError("of this test, no message of the package")

    with pytest.raises(ValueError) as error:
        bug()
    assert troubles.explain(error.value) is None


def test_a_part_that_needs_an_extra_names_it():
    code = (
        "import sys; sys.modules['flax'] = sys.modules['cv2'] = None\n"
        "from frcnn_jax.detector import load"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    last = done.stderr.splitlines()[-1]
    assert "frcnn_jax needs cv2: run pip install '.[train]'" in last
