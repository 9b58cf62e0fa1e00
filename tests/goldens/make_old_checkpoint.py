"""Makes tests/goldens/old_run: a run of two steps, written by the code of before.

Run by hand in a checkout of commit 1ab75cd, before files moved to other folders:

    git worktree add /tmp/before 1ab75cd
    cd /tmp/before
    python HERE/tests/goldens/make_old_checkpoint.py HERE/tests/goldens/old_run

The configuration names modules by their names of that time. `expected.json` holds what
that code detects in the run's evaluation images, on two CPU devices.
"""

import json
import pathlib
import shutil
import sys
import tempfile

sys.path.insert(0, ".")


def main(output: str) -> None:
    import jax

    jax.config.update("jax_num_cpu_devices", 2)
    from frcnn_jax.training import evaluate, loop
    from tests.training import small

    config = small.config(total_steps=2, eval_every=2, checkpoint_every=2)
    config.data.name = "frcnn_jax.data.shapes"
    config.model.box_head.name = "faster_rcnn"
    target = pathlib.Path(output)
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        if not (target / "checkpoints").exists():
            loop.train_and_evaluate(config, run)
            shutil.copytree(run / "checkpoints", target / "checkpoints")
        # Code that a checkpoint names is imported only if the caller names it too.
        _, found = evaluate.evaluate_checkpoint(
            target, run, changes=["data.name=frcnn_jax.data.shapes"]
        )
    (target / "expected.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
