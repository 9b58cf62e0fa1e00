"""A trained detector from wherever it is: a run, a name, a file, a URL, a hub.

| `source` | what it is |
| --- | --- |
| `runs/mine`, `runs/mine/last` | a run's folder or a checkpoint (`checkpoint.find`) |
| a folder of `scripts/publish.py` | arrays, configuration and classes (`published`) |
| `detectron2/faster_rcnn_R_50_FPN_3x` | a name of `weights.zoo`, downloaded once |
| `mine.pth`, `model_final.pkl` | a file of torchvision, Detectron2 or MMDetection |
| `https://HOST/PATH/FILE` | the same, downloaded once |
| `hf:OWNER/REPOSITORY/FILE` | the same, from the hub |
| `hf:OWNER/REPOSITORY` | a published folder on the hub |

What exists as a path is that path, whatever its name is like.
"""

import logging
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from frcnn_jax import models
from frcnn_jax.training import checkpoint, pretrained, published
from frcnn_jax.training import config as configs
from frcnn_jax.weights import coco, download, families, files, hub, torchvision, zoo
from frcnn_jax.weights.mmdetection import classes as classes_in

log = logging.getLogger(__name__)
FILES = (".pth", ".pt", ".pkl", ".safetensors", ".npz")


class Trained(NamedTuple):
    """A model, its variables, what its checkpoint says, and where it was found."""

    model: Any
    variables: dict[str, PyTree]
    meta: checkpoint.Meta
    where: pathlib.Path


def load(source: str | pathlib.Path, *, classes: Sequence[str] = ()) -> Trained:
    """The detector that `source` means, downloaded if need be.

    `classes` are the names of a file's classes 1..C, where it is not COCO's and does
    not carry them. Raises FileNotFoundError that says what was looked for, ValueError
    for a file that does not fit or whose family is not known.
    """
    text = str(source)
    entry = None if pathlib.Path(text).exists() else zoo.find(text)
    if entry is not None:
        path = download.fetch(entry.url, digest=entry.digest, mib=entry.mib)
        return _of_file(path, zoo.settings(entry.settings), entry=entry)
    path = _local(text)
    if path.is_file():
        return _of_file(path, settings_of(path), classes=classes)
    if classes:
        raise ValueError(f"{text} has its own classes; leave out classes={classes}")
    if published.is_published(path):
        return Trained(*published.load(path), path)
    path = checkpoint.find(path)
    return Trained(*checkpoint.load_model(path), path)


def folder_of(source: str | pathlib.Path) -> pathlib.Path:
    """Where results of a source go by default: its run, or `runs/NAME`.

    >>> folder_of("torchvision/fasterrcnn_resnet50_fpn").as_posix()
    'runs/torchvision_fasterrcnn_resnet50_fpn'
    """
    path = pathlib.Path(source)
    if path.is_dir():
        return path
    text = re.sub(r"^(hf:|https?://)", "", str(source))
    stem = text.removesuffix(path.suffix) if path.suffix in FILES else text
    name = pathlib.Path(stem).name if path.is_file() else stem
    return pathlib.Path("runs") / re.sub(r"[^\w.-]+", "_", name)


def is_run(source: str | pathlib.Path) -> bool:
    """Whether a source is a run or a checkpoint, and neither a file nor a name."""
    text = str(source)
    if pathlib.Path(text).exists():
        return pathlib.Path(text).is_dir() and not published.is_published(text)
    return not (zoo.find(text) or _WEB.match(text) or text.endswith(FILES))


_WEB = re.compile(r"hf:|https?://")


def _local(text: str) -> pathlib.Path:
    """The folder or the file that is no name of the table."""
    if text.startswith(hub.PREFIX):
        return published.fetch(text) if hub.is_repository(text) else hub.fetch(text)
    if _WEB.match(text):
        return download.fetch(text)
    path = pathlib.Path(text)
    if path.exists() or path.name in ("best", "last"):
        return path
    near = zoo.similar(text)
    if path.suffix in FILES or near or text.partition("/")[0] in FAMILIES:
        wanted = f"; did you mean {' or '.join(near)}?" if near else ""
        raise FileNotFoundError(
            f"{text}: no such file, run or name{wanted} `python -m frcnn_jax.weights` "
            "lists the names"
        )
    return path


FAMILIES = {entry.family for entry in zoo.TABLE}


def settings_of(path: str | pathlib.Path) -> dict[str, Any]:
    """The shipped configuration that fits a peer's file, found by its arrays.

    ValueError for a file of no known family, or of one without a configuration here.
    """
    found = families.families(path)
    names = [family.settings for family in found if family.settings]
    if not names:
        if not found:
            raise ValueError(torchvision.unknown(path, torchvision.read_source(path)))
        raise ValueError(
            f"{path} is of the family {found[0].name}, for whose network the package "
            "has no configuration: write a checkpoint with scripts/convert_weights.py "
            f"--config={found[0].experiment} --weights={path} --output=runs/mine"
        )
    settings = zoo.settings(names[0])
    for leaf in ("pixel_mean", "pixel_std"):  # which a file may state itself
        if fitting := found[0].fixed.get(f"model.{leaf}"):
            settings["model"][leaf] = list(fitting[0])
    return settings


def rows_and_classes(
    path: str | pathlib.Path, classes: Sequence[str] = ()
) -> tuple[tuple[int, ...], tuple[str, ...], tuple[int, ...]]:
    """The rows of a peer's file that become classes 1..C, their names and ids.

    Names are those given, those that the file carries, or COCO's for 80 and 90 rows.
    """
    count = torchvision.count_classes(path)
    rows = tuple(range(1, count + 1))
    names = tuple(classes) or classes_in(files.read_notes(path))
    if names and len(names) != count:
        raise ValueError(
            f"{path} has {count} classes, found {len(names)} names: {names}"
        )
    if not names and count == 90:
        return coco.IDS, coco.CLASSES, coco.IDS
    if not names and count != len(coco.CLASSES):
        raise ValueError(
            f"{path} has {count} classes, whose names it does not say and which are "
            "not COCO's 80: load(path, classes=[...]), or write a checkpoint with "
            f"scripts/convert_weights.py --weights={path} --classes=A,B,... "
            "--output=runs/mine and use that"
        )
    names = names or coco.CLASSES
    return rows, names, coco.IDS if names == coco.CLASSES else rows


def _of_file(
    path: pathlib.Path,
    settings: dict[str, Any],
    *,
    entry: zoo.Entry | None = None,
    classes: Sequence[str] = (),
) -> Trained:
    config: Any = configs.from_json(settings)
    if entry is not None and len(entry.classes) == 1:
        config.data.annotations = "annotations/person_keypoints_{split}.json"
    if entry is None:
        rows, names, ids = rows_and_classes(path, classes)
    else:
        pretrained.check_detector(path, config.to_dict(), set_by_flag=())
        names, ids = entry.classes, entry.category_ids
        count = torchvision.count_classes(path)
        rows = ids if count == 90 else tuple(range(1, len(names) + 1))
    model, variables, report = read_peer(path, config, rows)
    log.info("%s: %d arrays of %s", path.name, len(report), config_name(path, entry))
    meta = checkpoint.Meta(config, names, ids, 0, {}, None)
    return Trained(model, variables, meta, path)


def config_name(path: pathlib.Path, entry: zoo.Entry | None) -> str:
    """What to call the family of a file."""
    return entry.name if entry else families.families(path)[0].name


def read_peer(
    path: str | pathlib.Path, config: Any, rows: Sequence[int]
) -> tuple[Any, dict[str, PyTree], list[str]]:
    """Our model of a configuration with a peer's arrays, and a line for each of these.

    What the file holds beside them, such as a mask branch, is named in the log. Raises
    as `torchvision.load_detector` does.
    """
    model = models.build_detector(num_classes=len(rows), **config.to_dict()["model"])
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    variables, report = torchvision.load_detector(path, variables, classes=rows)
    left = [line.removeprefix("ignored ") for line in report if line[:8] == "ignored "]
    left = [name for name in left if not name.endswith("num_batches_tracked")]
    if left:
        log.info(
            "%s: left out are %d arrays that are no part of the box branch: %s",
            *(path, len(left), files.shorten(left, 20)),
        )
    checkpoint.check_finite(variables, path)
    return model, variables, report
