r"""Four-step alternating training (Faster R-CNN, Sec 3.2): steps 1 to 4 in one command.

python scripts/train_alternating.py \
    --config=experiments/voc07_vgg16_alternating.py --workdir=runs/alternating \
    --config.data.root=VOCdevkit --config.model.backbone.pretrained=FILE
python scripts/train_alternating.py --config=experiments/voc07_zf.py \
    --workdir=runs/zf --config.data.root=VOCdevkit

The experiment has an argument `step` (`experiments/common/detectors.py: alternating`).
Leaves a run in `step1` to `step4`, of which the last is the network. The same command
again goes on where it stopped, within a step or between two. The last line on stdout is
one JSON object, the metrics of step 4.
"""

import json
import logging
import pathlib

from absl import flags

from frcnn_jax.data import proposal_files
from frcnn_jax.training import checkpoint, cli, devices, propose, troubles
from frcnn_jax.training import config as configs
from frcnn_jax.training.loop import train_and_evaluate
from frcnn_jax.training.metrics import log_to_stderr

log = logging.getLogger("frcnn_jax.train_alternating")
CONFIG = flags.DEFINE_string(
    "config", None, "The experiment, with its arguments after a colon.", required=True
)
flags.DEFINE_alias("experiment", "config")  # as it was called
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder that keeps the four runs.", required=True
)
SET = cli.define_changes()


def get_config(step):
    """The experiment's configuration of one step, with the changes of the command."""
    path, _, arg = CONFIG.value.partition(":")
    arg = ",".join(filter(None, [arg, f"step={step}"]))
    c = cli.experiment(path).get_config(arg)
    configs.change(c, SET.value)
    return c


def make_proposals(c, step1, output):
    """Those of step 1's RPN for both splits, as many as training takes."""
    for split in (c.data.train_split, c.data.eval_split):
        path = pathlib.Path(str(output).replace("{split}", split.split("[")[0]))
        if path.exists():
            continue
        counts = {k: c.proposals.train[k] for k in ("pre_nms", "post_nms")}
        changes = [f"proposals.eval.{k}={v}" for k, v in counts.items()]
        changes += [*SET.value, f"data.eval_split={split}"]
        _, found = propose.rpn_of_checkpoint(step1, changes=changes, best=False)
        proposal_files.write(path, found)


def main(_):
    log_to_stderr()
    devices.keep_compiled()
    troubles.prepare_folder(WORKDIR.value)
    folders = [pathlib.Path(WORKDIR.value) / f"step{i}" for i in (1, 2, 3, 4)]
    proposals = folders[0] / "proposals" / "{split}.npz"
    result = {}
    for step, folder in enumerate(folders, start=1):
        c = get_config(step)
        if step == 2:
            make_proposals(c, folders[0], proposals)
            c.data.proposals = str(proposals)
        if step >= 3:
            c.init_from = str(checkpoint.find(folders[step - 2], best=False))
        log.info("step %d of 4: %s", step, folder)
        changed = [change.partition("=")[0] for change in SET.value]
        result = train_and_evaluate(c, folder, set_by_flag=changed)
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
