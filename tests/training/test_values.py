"""Nonsense in the leaves of every shipped experiment is refused before anything runs.

What is nonsense is written down here, by hand, and not asked of the code: a number is
negative, zero, not a number, infinite or beyond float32; a tuple is empty or holds such
a number; a text is a number; nothing is there at all. The sets below say where such a
value makes sense.
"""

import inspect
import math

import numpy as np
import pytest

from frcnn_jax import ranges
from frcnn_jax.data import named, pipeline, recognise
from frcnn_jax.data.sources import shapes
from frcnn_jax.training import config as configs
from frcnn_jax.training import recipe, rehearsal
from tests.data import layouts
from tests.test_experiments import FILES, FOLDER
from tests.training.test_recipe import CPU, facts

ZERO = {  # 0 turns something off, or is an end of the range
    *("seed", "ema_decay", "rpn_cls", "rpn_box", "roi_cls", "roi_box"),
    *("momentum", "weight_decay", "clip_norm", "bias_rate", "decay", "warmup_steps"),
    *("warmup_factor", "reference_batch", "fg_iou", "bg_iou", "bg_lo", "fg_fraction"),
    *("straddle", "beta", "score", "min_size", "workers", "offset", "pool_levels"),
    *("min_visible", "brightness", "contrast", "saturation", "hue", "dropout"),
    *("pixel_mean", "canonical_level", "norm_eps", "sampling_ratio"),
    "stochastic_depth",
}
ZERO |= {f"roi_{kind}_{i}" for kind in ("cls", "box") for i in (1, 2, 3)}
ZERO |= {"feature_gradient"}
ZERO |= {"window", "positions", "relative", "global_blocks"}  # ViT: none; block 0
NEGATIVE = {"offset"}
INFINITE = {"straddle"}  # all anchors
EMPTY = {"frozen", "boundaries", "short_sides", "jitter", "levels", "convs"}
EMPTY |= {"pixel_range", "out_strides"}  # tiny: all there are
EMPTY |= {"global_blocks"}  # ViT: all blocks attend within windows
EMPTY |= {"layers"}  # of the optimizer: no rates by layer
EMPTY |= {"widths"}  # a box head without a hidden layer; see BACKBONE
TEXT = {"init_from", "proposals", "pretrained", "eval_split"}  # "" is none
SOURCE = {"root", "classes", "annotations", "images", "datasets", "group", "dataset"}
SOURCE |= {"minutes"}  # the recipe's: see test_recipe.py
ZERO |= {"num_images", "threshold"}  # all there are; no image more often
NOTHING = {"box_normalizer"}  # None is that of the other loss
NAMES = {"name", "dtype", "norm", "rounding", "objectness", "parallel", "schedule"}
NAMES |= {"algorithm"}
NAMES |= {"on_overflow", "on_bad_image", "cut_short"}  # one of a few words


def nonsense(name, value):
    """Values that this leaf must not have."""
    leaf = name.rpartition(".")[2]
    if isinstance(value, bool):
        return [2, "x", None]
    if isinstance(value, str):
        if name == "data.name":  # looked for when the data are read
            return ["", 3]
        if name in ("roi_cls_loss.name", "roi_box_loss.name"):
            return ["nonsense", 3, None]  # "": that of detector_loss
        if leaf in NAMES:
            return ["", "nonsense", 3, None]
        return [3] if leaf in TEXT else ["", 3]
    if isinstance(value, tuple):
        bad = [3, "x", None]
        if leaf not in EMPTY or name.startswith("model.backbone.widths"):
            bad.append(())
        if value and not isinstance(value[0], str):
            inner = value[0] if not isinstance(value[0], tuple) else value[0][0]
            for one in nonsense(name.replace("boundaries", "sizes"), inner):
                if not isinstance(value[0], tuple):
                    bad.append((one, *value[1:]))
                elif one not in ((), None):
                    bad.append(((one, *value[0][1:]), *value[1:]))
        return bad
    whole = isinstance(value, int)
    bad = [math.nan, 10**30 if whole else 1e300, -math.inf, "x", ()]
    if leaf not in NOTHING:
        bad.append(None)
    if leaf not in INFINITE:
        bad.append(math.inf)
    if leaf not in NEGATIVE:
        bad.append(-1 if whole else -1.0)
    if leaf not in ZERO:
        bad.append(0 if whole else 0.0)
    return bad


def look(c, group):
    """What is asked of this group before anything runs."""
    c = configs.check(c)
    if group == "data":
        rules = {**c["data"], "batch_size": 1, "eval_batch_size": 1, "seed": 0}
        pipeline.check_ranges(DEFAULTS | rules)
        if c["data"]["name"] == "shapes":  # the source's own
            own = {k: v for k, v in c["data"].items() if k in ("size", "num_images")}
            shapes.load(split="train", **own)
    elif group in (found := rehearsal.looks(c)):
        found[group]()


DEFAULTS = (
    dict(
        max_boxes=100,
        on_overflow="error",
        flip=True,
        augment=None,
        on_bad_image="error",
    )
    | dict(merge_duplicates=False, cut_short="error", pixel_range=())
    | dict(
        cache=False, reduced=True, proposals="", max_proposals=9, threads=1, workers=0
    )
)


def shipped(name, arg):
    """An experiment's values; what finetune.py leaves open as the recipe fills it."""
    config = configs.load_experiment(FOLDER / name).get_config(arg)
    if name == "finetune.py":
        values, _ = recipe.choose(config.to_dict(), facts(), CPU)
        recipe.fill(config, values)
    return config


def accepted(name, arg):
    """Nonsense that an experiment takes without a word; the leaves that were tried."""
    wrong: list[str] = []
    config = shipped(name, arg)
    plain = configs.leaves(config.to_dict())
    tried = [n for n in plain if n.rpartition(".")[2] not in SOURCE]
    for leaf in tried:
        parts = leaf.split(".")
        group = parts[0] if parts[0] != "proposals" else ".".join(parts[:2])
        for value in nonsense(leaf, plain[leaf]):
            c = config.copy_and_resolve_references()
            with c.ignore_type():
                c.update_from_flattened_dict({leaf: value})
            try:
                look(c, group)
                wrong.append(f"{leaf}={value!r}")
            except (ValueError, TypeError) as error:
                if parts[-1] not in str(error):
                    wrong.append(f"{leaf}={value!r} is not named: {error}")
    return wrong, tried


def test_nonsense_in_the_demo_is_refused_and_named():
    wrong, tried = accepted("shapes_demo.py", None)
    assert not wrong and len(tried) > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_nonsense_in_every_experiment_is_refused_and_named(name):
    wrong, _ = accepted(name, None)
    assert not wrong


ANYTHING = [3, None, ["x"]]
NO_FILE = [*ANYTHING, "no/such/place"]
NO_NAMES = [3, None, "cat", (3,), ("",)]
SOURCES = {  # a layout, and what its leaves must not be
    layouts.coco_polygons: dict(annotations=NO_FILE, images=NO_FILE),
    layouts.voc_lists: dict(
        annotations=NO_FILE, images=NO_FILE, lists=NO_FILE, classes=NO_NAMES
    ),
    layouts.voc_devkit: dict(root=NO_FILE, classes=NO_NAMES),
    layouts.yolo_lists: dict(yaml=NO_FILE, classes=[3, None, (3,), "no/such/file"]),
    layouts.yolo_darknet: dict(images=NO_FILE, labels=NO_FILE, classes=[3, None]),
    layouts.yolo_obj: dict(lists=NO_FILE),
    layouts.csv_make_sense: dict(
        annotations=NO_FILE,
        images=NO_FILE,
        classes=NO_NAMES,
        convention=[*ANYTHING, "nonsense"],
        columns=[3, "x", {"image": 3}, {"nonsense": "x"}, {"image": "nonsense"}],
        delimiter=[*ANYTHING, "::"],
    ),
    layouts.supervisely: dict(
        annotations=NO_FILE, classes=NO_NAMES, convention=[*ANYTHING, "nonsense"]
    ),
    layouts.labelme: dict(annotations=NO_FILE, images=NO_FILE, classes=NO_NAMES),
    layouts.hf_folder: dict(
        annotations=NO_FILE, classes=NO_NAMES, convention=[*ANYTHING, "nonsense"]
    ),
}


@pytest.mark.parametrize("layout", SOURCES, ids=lambda f: f.__name__)
def test_nonsense_in_the_leaves_of_a_source_is_refused_and_named(layout, tmp_path):
    layout(tmp_path)
    data = dict(name="auto", root=str(tmp_path), train_split="auto", eval_split="auto")
    data, _ = recognise.resolve(data)
    known = recognise.leaves(data["name"])
    own = {k: v for k, v in data.items() if k in known and not k.endswith("_split")}
    own = {k: v for k, v in own.items() if k not in ("name", "group")}
    split, wrong = data["train_split"], []
    assert len(named.load_source(data["name"], split=split, **own))
    for leaf, values in SOURCES[layout].items():
        for value in values:
            try:
                named.load_source(data["name"], split=split, **(own | {leaf: value}))
                wrong.append(f"{leaf}={value!r}")
            except (ValueError, FileNotFoundError) as error:
                if leaf not in str(error):
                    wrong.append(f"{leaf}={value!r} is not named: {error}")
    assert not wrong


def test_every_leaf_of_every_source_with_files_is_tried():
    tried: dict[str, set[str]] = {}
    for layout, leaves in SOURCES.items():
        tried.setdefault(layout.__name__.partition("_")[0], set()).update(leaves)
    for name in named.source_names("recognise"):
        taken = inspect.signature(named.find_source(name).load).parameters
        assert set(taken) - {"split", "root", "dataset", "config"} <= tried[name]


def test_a_group_that_is_no_expression_is_refused(tmp_path):
    layouts.voc_beside(tmp_path)
    given = dict(root=str(tmp_path), annotations=".", group="(")
    with pytest.raises(ValueError, match="data.group"):
        named.load_source("voc", split="all[:80%]", **given)


@pytest.mark.parametrize("name", FILES)
def test_what_is_shipped_is_no_nonsense(name):
    for arg in (None, "runlocal"):
        c = configs.check(shipped(name, arg))
        for see in rehearsal.looks(c).values():
            see()


@pytest.mark.parametrize(
    "value, rule, good",
    [
        (0.5, ranges.SHARE, True),
        (np.float32(1), ranges.SHARE, True),
        (1.0001, ranges.SHARE, False),
        (math.nan, ranges.FINITE, False),
        (True, ranges.COUNT, False),
        (2.0, ranges.COUNT, False),
        (np.int64(2), ranges.COUNT, True),
        (2**31, ranges.COUNT, False),
        (0.0, ranges.OVERLAP, False),
        (math.inf, ranges.number(0, infinite=True), True),
        ((1.0, 2.0), ranges.several(ranges.POSITIVE, 2), True),
        ("12", ranges.several(ranges.TEXT, 2), False),
        (1, ranges.TRUTH, False),
    ],
)
def test_rules(value, rule, good):
    assert rule.holds(value) is good


def test_the_message_says_what_was_expected():
    with pytest.raises(ValueError, match="^a.b=-1: expected a number from 0 to 1$"):
        ranges.check("a", b=(-1, ranges.SHARE))
    with pytest.raises(ValueError, match="b=0: expected a whole number of at least 1$"):
        ranges.check("a", b=(0, ranges.COUNT))
    with pytest.raises(
        ValueError, match="expected a tuple of 4, each a number above 0"
    ):
        ranges.check("a", b=((1,), ranges.STDS))
