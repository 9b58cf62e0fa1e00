"""Algorithms: what is learnt and what is detected, one module each, found by name.

`config.algorithm` is the name of a module here, or the dotted path of your own. The
training step, the evaluation, the export and `Detector` call these of it:

| name | what it is |
| --- | --- |
| `PROPOSES` | whether the network proposes RoIs; else they come with the batch |
| `GROUPS` | its own groups of the configuration, `{name: function that owns it}` |
| `check(config)` | ValueError where groups do not fit together |
| `loss_names(config)` | the keys of `config.loss_weights`, a tuple |
| `first_stage(model, batch, keys)` | what the images give, once; keys in training |
| `propose(stage, batch, **kwargs)` | `Proposals`; `kwargs` as `config.proposals.eval` |
| `image_losses(model, stage, batch, keys, config, *, dropout)` | losses and counts |
| `detect(model, stage, props, batch, config)` | `Detections` in network pixels |

`model` is a bound Flax module, `keys` are those of `step.image_keys` or None. What two
algorithms share, the one takes from the other: `faster_rcnn` has the second stage of
`fast_rcnn`.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from frcnn_jax import ranges


def of(config: Mapping[str, Any]) -> ModuleType:
    """The module of a configuration's algorithm."""
    return find(name_in(config))


def name_in(config: Mapping[str, Any]) -> str:
    """`config.algorithm`; without that leaf, as older checkpoints are, what it was."""
    external = config.get("model", {}).get("external_proposals", False)
    return config.get("algorithm", "fast_rcnn" if external else "faster_rcnn")


def find(name: str) -> ModuleType:
    """The module `frcnn_jax.training.algorithms.<name>`, or that of a dotted path.

    Raises ValueError for an unknown name, with those that there are.
    """
    ranges.check("config", algorithm=(name, ranges.WORDS))
    path = name if "." in name else f"{__name__}.{name}"
    try:
        found = importlib.util.find_spec(path)
    except (ImportError, ValueError):
        found = None
    if found is not None:
        module = importlib.import_module(path)
        if hasattr(module, "image_losses"):
            return module
    raise ValueError(
        f"config.algorithm={name!r}: no module of that name with image_losses; "
        f"available are {[m.name for m in pkgutil.iter_modules(__path__)]}, or the "
        "dotted path of your own module"
    )
