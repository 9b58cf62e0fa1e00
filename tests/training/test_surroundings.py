"""What the machine does to a run, provoked for real; afterwards the run goes on."""

import logging
import os
import pathlib
import shutil
import subprocess
import time

import pytest

from examples.finetune_coco import make_folder
from experiments import common
from frcnn_jax.training import lock, loop, surroundings, troubles
from tests import disks
from tests.training import small


def test_a_second_process_is_refused_before_anything_is_read(tmp_path):
    config = small.config()
    config.data.train_split = "no_such_split"  # never looked for
    with lock.held(tmp_path, "trained"):
        with pytest.raises(lock.Held, match=f"trained by process {os.getpid()} on"):
            loop.train_and_evaluate(config, tmp_path)


def test_nonsense_is_found_before_the_run_begins(tmp_path):
    config = small.config()
    config.postprocess.nms_iou = -1.0  # of the first evaluation
    with pytest.raises(ValueError, match="config.postprocess.nms_iou=-1.0: expected"):
        loop.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_checkpoints_that_will_not_fit_are_said_before_the_first_step(
    tmp_path, monkeypatch, caplog
):
    state = {"w": small.batch().gt_boxes}
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1)
    )
    with caplog.at_level(logging.WARNING):
        surroundings.warn_of_room(tmp_path, state)
    assert "1 bytes free, but the checkpoints to be kept need up to 512 bytes" in (
        caplog.text
    )
    with pytest.raises(troubles.Later, match="there is no checkpoint yet; the same"):
        surroundings.check_room(tmp_path, state)


def test_a_full_disk_behind_other_errors_is_found(tmp_path):
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise RuntimeError("of a library, 575 lines") from error
    except RuntimeError as error:
        said = surroundings.say(error, tmp_path, {})
    assert "it is full: make room; there is no checkpoint yet" in said
    assert surroundings.say(ValueError("other"), tmp_path, {"root": str(tmp_path)}) is (
        None
    )


@pytest.fixture
def disk(tmp_path):
    """A file system of 200 kB."""
    with disks.mounted(tmp_path / "disk", "size=200k") as folder:
        yield folder
        closed(folder)


def closed(folder: pathlib.Path, seconds: float = 20.0) -> None:
    """Waits until this process has no file open below the folder."""
    end = time.monotonic() + seconds  # threads of a save that failed end a bit later
    while found := [f for f in map(target, FILES.iterdir()) if str(folder) in f]:
        assert time.monotonic() < end, found
        time.sleep(0.1)


FILES = pathlib.Path("/proc/self/fd")


def target(link: pathlib.Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # the listing's own
        return ""


@pytest.mark.slow
# Orbax's threads and tasks of the save that failed end with errors of their own.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_one_line_and_the_run_goes_on_with_more_room(disk):
    config = small.config(total_steps=3, eval_every=3, checkpoint_every=1)
    with pytest.raises(troubles.Later) as error:
        loop.train_and_evaluate(config, disk)
    said = str(error.value)
    assert f"file system {disk}: " in said and "make room" in said
    assert "\n" not in said and troubles.explain(error.value)[1] == troubles.LATER
    closed(disk)
    grow = ["mount", "-o", "remount,size=64m", str(disk)]
    subprocess.run(grow, check=True)
    assert "AP" in loop.train_and_evaluate(config, disk)


@pytest.mark.slow
def test_a_data_folder_that_vanishes_is_named_and_the_run_goes_on(tmp_path):
    root, gone = tmp_path / "set", tmp_path / "away"
    make_folder(str(root), train=6, val=2, size=64)
    config = small.config(total_steps=60, eval_every=60, checkpoint_every=2)
    shape = {k: config.data[k] for k in ("short_side", "max_side", "canvas")}
    config.data = common.data(
        "coco", root=str(root), train_split="train", eval_split="val", **shape
    )

    class Remount(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("step 3/") and root.exists():
                root.rename(gone)

    log, handler = logging.getLogger("frcnn_jax"), Remount()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with pytest.raises(troubles.Later, match="the data folder .*set is gone") as e:
            loop.train_and_evaluate(config, tmp_path / "run")
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    last = pathlib.Path(str(e.value).split("checkpoint is ")[1].split(";")[0])
    assert last.is_dir()
    gone.rename(root)
    assert "AP" in loop.train_and_evaluate(config, tmp_path / "run")
