r"""Writes an experiment's data as a TFDS data set of sequential files (array_record).

python scripts/make_records.py --config=experiments/bccd_r50_fpn.py \
    --config.data.root=DIR --output=prepared
python scripts/make_records.py --config=experiments/shapes_demo.py --splits=test

Any source will do. Afterwards `--config.data.name=tfds --config.data.root=prepared`
trains from it (remove what only the other source takes, as `annotations`), and so does
plain TFDS. TensorFlow is not needed. The last line on stdout is one JSON object.
"""

import json
import sys

from absl import flags

from frcnn_jax.data import pipeline
from frcnn_jax.data.sources import records
from frcnn_jax.training import cli, troubles
from frcnn_jax.training import config as configs

CONFIG = cli.define_config(
    "The experiment, e.g. experiments/bccd_r50_fpn.py.", required=True
)
OUTPUT = flags.DEFINE_string(
    "output", "prepared", "The folder in which the data set is written."
)
SPLITS = flags.DEFINE_list(
    "splits", None, "Splits to write; default the experiment's two."
)


def main(_):
    troubles.prepare_folder(OUTPUT.value)
    data = configs.resolve(CONFIG.value).to_dict()["data"]
    names = SPLITS.value or dict.fromkeys((data["train_split"], data["eval_split"]))
    sources = {name: pipeline.split_of(data, name) for name in names}
    for source in sources.values():
        for line in source.report:
            print(line, file=sys.stderr)
    folder = records.write(sources, OUTPUT.value)
    sizes = {name: len(source) for name, source in sources.items()}
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{folder}: {sizes}, {size / 1e6:.1f} MB")
    print(json.dumps(dict(folder=str(folder), images=sizes, bytes=size)))


if __name__ == "__main__":
    cli.run(main)
