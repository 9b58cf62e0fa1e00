"""A folder that holds one detector for others: arrays, configuration, classes, a card.

    model.safetensors   params and statistics, by their paths
    frcnn_jax.json      format, configuration, class names and ids, step, metrics
    README.md           the card, for people

`scripts/publish.py` writes it, `load` reads it, here or from a hub. Arrays are stored
without pickles, and `frcnn_jax.json` has the SHA-256 of their file.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from frcnn_jax import models
from frcnn_jax.data.images import canvases
from frcnn_jax.training import checkpoint
from frcnn_jax.training.config import from_json
from frcnn_jax.weights import files, hub
from frcnn_jax.weights.tree import unflatten

FORMAT = 1
ARRAYS, ABOUT, CARD = "model.safetensors", "frcnn_jax.json", "README.md"


def is_published(path: str | pathlib.Path) -> bool:
    """Whether a folder is one of these."""
    return (pathlib.Path(path) / ABOUT).is_file()


def fetch(name: str) -> pathlib.Path:
    """The folder of `hf:OWNER/REPOSITORY`, downloaded to the hub's cache.

    Raises as `hub.fetch` does.
    """
    about = hub.fetch(f"{name}/{ABOUT}")
    hub.fetch(f"{name}/{ARRAYS}")
    return about.parent


def write(
    folder: str | pathlib.Path,
    variables: Mapping[str, PyTree],
    meta: checkpoint.Meta,
    **more: Any,
) -> dict[str, Any]:
    """Write arrays and `frcnn_jax.json`, and return what stands in the latter."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = checkpoint.named_leaves(dict(variables))
    files.write_safetensors(folder / ARRAYS, arrays)
    about = dict(
        format=FORMAT,
        classes=list(meta.classes),
        category_ids=list(meta.category_ids),
        step=meta.step,
        metrics=dict(meta.metrics),
        sha256=_digest(folder / ARRAYS),
        **more,
        config=_without_paths(json.loads(meta.config.to_json())),
    )
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
    return about


def load(
    folder: str | pathlib.Path,
) -> tuple[Any, dict[str, PyTree], checkpoint.Meta]:
    """The model of such a folder, its variables and what it says of itself.

    ValueError for a file that is damaged, of another format, or that does not fit.
    """
    folder = pathlib.Path(folder)
    try:
        about = json.loads((folder / ABOUT).read_text())
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']}, this version reads {FORMAT}")
        meta = checkpoint.Meta(
            from_json(about["config"]),
            tuple(map(str, about["classes"])),
            tuple(map(int, about["category_ids"])),
            int(about["step"]),
            dict(about["metrics"]),
            None,
        )
        expected = str(about["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{folder / ABOUT} is damaged ({type(error).__name__}: {error}): publish "
            "the run again, or download the folder again"
        ) from None
    arrays = files.read_arrays(folder / ARRAYS)
    if (found := _digest(folder / ARRAYS)) != expected:
        raise ValueError(
            f"{folder / ARRAYS} is not the file that was published: its SHA-256 is "
            f"{found}, expected {expected}; download the folder again"
        )
    variables = unflatten({tuple(name.split("/")): x for name, x in arrays.items()})
    c = meta.config.to_dict()
    model = models.build_detector(num_classes=len(meta.classes), **c["model"])
    canvas, *_ = canvases(c["data"]["canvas"])
    image = jax.ShapeDtypeStruct((1, *canvas, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    checkpoint.check_same_arrays(shapes, variables, folder)
    checkpoint.check_finite(variables, folder)
    return model, variables, meta


def _without_paths(value: Any) -> Any:
    """A configuration whose absolute paths, which mean nothing elsewhere, are names."""
    if isinstance(value, Mapping):
        return {k: _without_paths(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_paths(v) for v in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        return pathlib.PurePath(value).name
    return value


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
