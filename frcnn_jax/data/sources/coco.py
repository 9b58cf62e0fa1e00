"""COCO: an instances JSON and a folder of images; and any source written as such JSON.

One deep thing behind `load`: this module finds, checks, reads and writes one format.

Roboflow, CVAT, Label Studio and FiftyOne write it, each with the images in another
folder. If `images` is empty, images are found by name below `root`.

COCO's boxes `(x, y, w, h)` are continuous. Category ids may have gaps: classes 1..C
follow the order of the ids. Crowds are kept as `ignore`, images without annotations are
kept, and masks are not read. The images of LVIS' files have a `coco_url` and no name.
They are read with an empty `images`; folder and file are the end of the address,
`train2017/000000391895.jpg`.
"""

import collections
import math
import os
import pathlib
import posixpath
from collections.abc import Callable
from typing import Any

import numpy as np

from frcnn_jax.data.conventions import from_xyxy, to_xyxy
from frcnn_jax.data.folders import (
    Folder,
    Found,
    Pictures,
    contains,
    few,
    files_of,
    fill,
    folder_of,
    list_folder,
    read_json,
    templates,
    tidy,
)
from frcnn_jax.data.images import image_size
from frcnn_jax.data.source import Example, Size, Source, below, clean_boxes, image_ids


def load(
    *,
    split: str,
    root: str = "",
    annotations: str = "annotations/instances_{split}.json",
    images: str = "{split}",
) -> Source:
    """The images of an instances file, in its order.

    `annotations` and `images` are the file and the folder below `root`; `{split}` in
    them stands for the split's name. If `images` is empty, images are found by name.
    """
    base = pathlib.Path(root)
    file = base / fill(annotations, split)
    found = _read(file)
    entries = _by_id(found["images"], "image", file)
    report: list[str] = []
    if images:
        paths = _below(base / fill(images, split), entries, file)
    else:
        paths = _anywhere(base, fill(annotations, split), split, entries)
    names = _by_id(found["categories"], "category", file)
    group = _roboflow_group(names, found["annotations"])
    if group is not None:
        shown = names.pop(group)["name"]
        report.append(f"{file}: left out category {group} {shown!r}, Roboflow's root")
    names = {i: names[i]["name"] for i in sorted(names)}
    objects, masks = collections.defaultdict(list), 0
    for position, a in enumerate(found["annotations"]):
        _check_types(a, _TYPES["annotation"], "annotation", position, file)
        masks += _fill_box(a)
        _check(a, entries, names, file)
        objects[a["image_id"]].append(a)
    if masks:
        report.append(f"{file}: {masks} annotations have the box of their polygons")
    examples = [
        _example(paths[i], e, objects[i], names, report) for i, e in entries.items()
    ]
    return Source(examples, tuple(names.values()), tuple(names), report)


def recognise(folder: Folder, *, annotations: str = "") -> Found | None:
    """The instances files of a folder: JSON with images, annotations and categories.

    Of several, `annotations` says which are meant.
    """
    files = [f for f in folder.files if f.endswith(".json")]
    if annotations:
        found = files_of(Folder(folder.root, tuple(files)), annotations)
        return Found(dict(images=""), tuple(found), annotations) if found else None
    together = collections.Counter(map(folder_of, files))
    files = [
        f
        for f in files
        if together[folder_of(f)] <= _MANY and contains(folder.root / f, _KEYS)
    ]
    if instances := [f for f in files if "instances" in f]:
        files = instances  # beside captions, keypoints, ...
    sets = templates(files)
    if several := [t for t in sets if len(sets[t]) > 1]:
        sets = {t: sets[t] for t in several}
    if not sets:
        return None
    if len(sets) > 1:
        raise ValueError(
            f"{folder.root} has several COCO files, {', '.join(sorted(sets)[:5])}: "
            "name one, --config.data.annotations=..., with {split} for a split's name"
        )
    ((template, found),) = sets.items()
    why = f"{', '.join(found.values())}: images, annotations and categories"
    return Found(dict(annotations=template, images=""), tuple(found), why)


_KEYS = tuple(
    rb'"%s"\s*:\s*\[' % key for key in (b"images", b"annotations", b"categories")
)
_MANY = 50  # JSON files in one folder: one an image, so none of COCO


def _roboflow_group(categories: dict[Any, dict], annotations: list) -> Any:
    """The id of the category that Roboflow adds; None if there is no such category.

    It is the supercategory of the others, and no object is of it.
    """
    first = categories.get(0, {})
    others = [c for i, c in categories.items() if i != 0]
    if first.get("supercategory") != "none" or not others:
        return None
    if any(c.get("supercategory") != first.get("name") for c in others):
        return None
    used = (isinstance(a, dict) and a.get("category_id") == 0 for a in annotations)
    return None if any(used) else 0


def _below(
    folder: pathlib.Path, entries: dict[Any, dict], file: pathlib.Path
) -> dict[Any, pathlib.Path]:
    """The images of a folder; FileNotFoundError names the file and what is missing."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no image folder {folder}: set data.root or data.images"
        )
    paths = {i: below(folder, e["file_name"], file) for i, e in entries.items()}
    missing = [e["file_name"] for i, e in entries.items() if not paths[i].is_file()]
    if missing:
        raise FileNotFoundError(_missing(missing, entries, file, folder))
    return paths


def _anywhere(
    base: pathlib.Path, annotations: str, split: str, entries: dict[Any, dict]
) -> dict[Any, pathlib.Path]:
    """The images by name: in the folders that tools use, or else below the root."""
    file, beside = base / annotations, folder_of(annotations)
    near = [posixpath.join(beside, f) for f in ("", "data", "images")]
    usual = (split, f"images/{split}", f"{split}/images", "images", "data", "")
    folders = dict.fromkeys([*(f.strip("/") for f in near), *usual])
    if split in beside.split("/"):  # its own images lie there
        folders = dict.fromkeys(
            [*(f for f in folders if split in f.split("/")), *folders]
        )
    order, paths, missing, pictures = list(folders), {}, [], None
    for i, entry in entries.items():
        name = tidy(entry["file_name"])
        place = next((f for f in order if os.path.isfile(base / f / name)), None)
        if place is not None:
            order.sort(key=lambda f: f != place)  # the next is likely to be there, too
            paths[i] = base / place / name
            continue
        pictures = pictures or Pictures(list_folder(base))
        found = pictures.find(entry["file_name"], near=beside, where=file)
        if found is None:
            below(base, entry["file_name"], file)
            missing.append(entry["file_name"])
        else:
            paths[i] = base / found
    if missing:
        raise FileNotFoundError(_missing(missing, entries, file, base))
    return paths


def _missing(
    missing: list[str], entries: dict, file: pathlib.Path, folder: pathlib.Path
) -> str:
    return (
        f"{len(missing)} of {len(entries)} images of {file} are not in {folder}: "
        f"{few(missing, 3)}: set data.root or data.images to the folder that has them"
    )


def to_coco(source: Source) -> dict[str, Any]:
    """The annotations of any source as a COCO dictionary, ready for `json.dump`.

    Image ids are `source.image_ids`. Widths and heights are those of the annotations,
    or of the image if the annotations have none. `iscrowd` is `ignore`. `area` is the
    annotated one, or the box's.
    """
    images, annotations = [], []
    for image_id, example in zip(image_ids(source), source.examples, strict=True):
        h, w = _size(example)
        image = example.image
        name = (
            pathlib.Path(image).name
            if isinstance(image, str)
            else f"{image_id:06d}.png"
        )
        images.append(
            {
                "id": image_id,
                "file_name": name,
                "width": int(w),
                "height": int(h),
            }
        )
        boxes = from_xyxy(example.boxes.astype(np.float64), "xywh")
        for i, box in enumerate(boxes.tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": source.category_ids[int(example.classes[i]) - 1],
                    "bbox": box,
                    "area": box[2] * box[3]
                    if example.area is None
                    else float(example.area[i]),
                    "iscrowd": int(example.ignore[i]),
                }
            )
    categories = [
        {"id": i, "name": name}
        for i, name in zip(source.category_ids, source.classes, strict=True)
    ]
    return {
        "info": {},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _size(example: Example) -> Size:
    if example.size is not None:
        return example.size
    image = example.image
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    return image_size(image, name=str(example.image_id))


def _example(
    path: pathlib.Path,
    entry: dict,
    objects: list[dict],
    names: dict[int, str],
    report: list[str],
) -> Example:
    h, w = entry.get("height") or 0, entry.get("width") or 0
    size = (h, w) if h > 0 and w > 0 else image_size(str(path))
    xywh = np.array([a["bbox"] for a in objects], np.float64).reshape(-1, 4)
    boxes = to_xyxy(xywh, "xywh")
    labels = [
        f"annotation {a.get('id', '?')}, {names[a['category_id']]} {a['bbox']}"
        for a in objects
    ]
    boxes, keep = clean_boxes(boxes, size, labels, entry["file_name"], report)
    boxes, objects = boxes[keep], [a for a, k in zip(objects, keep, strict=True) if k]
    box_areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    given = [a.get("area") for a in objects]
    unknown = [area is not None and area < 0 for area in given]  # -1 is often written
    if any(unknown):
        report.append(
            f"{entry['file_name']}: {sum(unknown)} negative areas, taken as the boxes'"
        )
    areas = [
        own if area is None or area < 0 else area
        for area, own in zip(given, box_areas, strict=True)
    ]
    ignore = [bool(a.get("iscrowd") or a.get("ignore")) for a in objects]
    index = {i: c for c, i in enumerate(names, start=1)}
    return Example(
        image=str(path),
        image_id=entry["id"],
        boxes=boxes,
        classes=np.array([index[a["category_id"]] for a in objects], np.int32),
        ignore=np.array(ignore, bool),
        size=size,
        area=np.array(areas, np.float32),
    )


def _read(file: pathlib.Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(
            f"no annotation file {file}: set data.root or data.annotations"
        )
    found = read_json(file)
    for key in ("images", "annotations", "categories"):
        if not isinstance(found, dict) or not isinstance(found.get(key), list):
            raise ValueError(
                f"{file} has no list {key!r}, which every COCO instances file has: "
                "set data.annotations to such a file"
            )
    for entry in found["images"]:  # LVIS' have no name, but an address
        url = entry.get("coco_url") if isinstance(entry, dict) else None
        if isinstance(url, str) and "file_name" not in entry:
            entry["file_name"] = "/".join(url.split("/")[-2:])
    return found


def _by_id(entries: list, what: str, file: pathlib.Path) -> dict[Any, dict]:
    needed = {"image": ("id", "file_name"), "category": ("id", "name")}[what]
    for position, entry in enumerate(entries):
        _check_types(entry, _TYPES[what], what, position, file)
        for key in needed:
            if key not in entry:
                raise ValueError(
                    f"{file}: {what} number {position + 1} has no {key!r}, but "
                    f"{repr(entry)[:80]}: expected {' and '.join(needed)}; add it"
                )
    ids = [e["id"] for e in entries]
    if len(set(ids)) < len(ids):
        twice = next(i for i, n in collections.Counter(ids).items() if n > 1)
        raise ValueError(
            f"{file}: {what} id {twice!r} occurs more than once: give each {what} an "
            "id of its own"
        )
    return dict(zip(ids, entries, strict=True))


_TYPES = dict(  # what a key holds, if it is there
    image=dict(
        id="an integer or a string",
        file_name="a string",
        width="an integer",
        height="an integer",
    ),
    category=dict(id="an integer", name="a string"),
    annotation=dict(
        category_id="an integer",
        image_id="an integer or a string",
        area="a finite number, or -1 or nothing for the box's",
        iscrowd="0 or 1",
        ignore="0 or 1",
    ),
)
_FITS: dict[str, Callable[[Any], bool]] = {
    "an integer": lambda v: type(v) is int and abs(v) < 2**63,  # no true, no false
    "a finite number, or -1 or nothing for the box's": lambda v: (
        v is None
        or (type(v) is float and math.isfinite(v))
        or (type(v) is int and abs(v) < 2**63)
    ),
    "a string": lambda v: isinstance(v, str),
    "an integer or a string": lambda v: type(v) in (int, str),
    "0 or 1": lambda v: v is None or isinstance(v, int | float) and v in (0, 1),
}


def _check_types(
    entry: Any, types: dict[str, str], what: str, position: int, file: pathlib.Path
) -> None:
    """ValueError names the file, the entry, the key and what it should hold.

    Whole numbers that are written as floats, 1.0, become integers in the entry.
    """
    if not isinstance(entry, dict):
        raise ValueError(
            f"{file}: {what} number {position + 1} is {repr(entry)[:80]}, expected an "
            f"object with {', '.join(types)}: correct it or remove it"
        )
    for key, expected in types.items():
        value = entry.get(key)
        if "integer" in expected and type(value) is float and value.is_integer():
            entry[key] = int(value)
        if key in entry and not _FITS[expected](entry[key]):
            raise ValueError(
                f"{file}: {what} {entry.get('id', f'number {position + 1}')} has "
                f"{key} {repr(entry[key])[:80]}, expected {expected}: correct it"
            )


def _other_form(value: Any, known: dict) -> Any:
    """The known id that is the same but for its type, text or number; or None."""
    if not isinstance(value, str):
        return str(value) if str(value) in known else None
    number = int(value) if value.isascii() and value.isdigit() else None
    return number if number in known else None


def _fill_box(a: dict) -> bool:
    """Gives an annotation without `bbox` the box of its polygons; True if it did."""
    polygons = a.get("segmentation")
    if a.get("bbox") or not isinstance(polygons, list) or not polygons:
        return False
    try:
        points = np.concatenate([np.array(p, float).reshape(-1, 2) for p in polygons])
        low, high = points.min(0), points.max(0)
    except (TypeError, ValueError):
        return False  # `_check` says that the box is missing
    a["bbox"] = [*low.tolist(), *(high - low).tolist()]
    return True


def _check(a: dict, images: dict, names: dict[int, str], file: pathlib.Path) -> None:
    """The annotation has a known category, a known image and a box of four numbers."""
    where = f"{file}: annotation {a.get('id', '?')}"
    if a.get("category_id") not in names:
        raise ValueError(
            f"{where} has category_id {a.get('category_id')!r}, which is not in "
            f"categories ({few(f'{i} {n}' for i, n in names.items())}): "
            "add the category or correct the annotation"
        )
    if a.get("image_id") not in images:
        raise ValueError(
            f"{where} has image_id {a.get('image_id')!r}, which is not in images: "
            + (
                f"they have {twin!r}, so write both as {type(twin).__name__}"
                if (twin := _other_form(a.get("image_id"), images)) is not None
                else "add the image or remove the annotation"
            )
        )
    box = a.get("bbox")
    numbers = isinstance(box, list) and all(
        type(v) is float or type(v) is int and abs(v) < 2**63 for v in box
    )
    if not isinstance(box, list) or not numbers or len(box) != 4:
        raise ValueError(
            f"{where} has bbox {repr(box)[:80]}, expected [x, y, width, height] in "
            "pixels: correct it or remove the annotation"
        )
