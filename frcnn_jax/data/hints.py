"""What a folder without a recognised format seems to hold, and what to do about it."""

import csv
import pathlib
import posixpath
import re

from frcnn_jax.data.folders import Folder, contains, few, is_image, stem

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
LOOK = 20  # files of a kind that are looked at
# Formats of tools that are not read, by what their files hold.
TOOLS = (
    ("Label Studio's own kind", (rb'"rectanglelabels"',)),
    ("Labelbox", (rb'"data_row"',)),
    ("CVAT's own kind", (rb"<image [^>]*name=", rb"<(box|polygon) [^>]*label=")),
    ("VGG Image Annotator", (rb'"shape_attributes"', rb'"region_attributes"')),
    ("Create ML", (rb'"annotations"', rb'"coordinates"', rb'"image(filename)?"')),
    ("Datumaro", (rb'"items"\s*:', rb'"categories"\s*:', rb'"label_id"')),
    ("V7 Darwin", (rb'"bounding_box"', rb'"(item|dataset)"\s*:')),
    ("SuperAnnotate", (rb'"instances"\s*:', rb'"className"')),
    ("Ultralytics' NDJSON", (rb'"type"\s*:\s*"dataset"', rb'"class_names"')),
    ("SageMaker Ground Truth", (rb'"source-ref"',)),
    ("Google's Vertex AI", (rb'"(boundingBoxAnnotations|bounding_box_annotations)"',)),
    ("Azure Machine Learning", (rb'"topX"', rb'"bottomX"')),
    ("PaliGemma", (rb'"suffix"\s*:', rb"<loc\d+>")),
    ("BDD100K and Scalabel", (rb'"box2d"',)),
    ("Cityscapes", (rb'"imgHeight"', rb'"polygon"')),
    ("CrowdHuman", (rb'"gtboxes"',)),
    ("a detector's results", (rb'"image_id"', rb'"bbox"', rb'"score"')),
)
NO_EXPORT = (
    *("BDD100K and Scalabel", "Cityscapes", "CrowdHuman", "PaliGemma"),
    *("SageMaker Ground Truth", "Google's Vertex AI"),
)
TEXTS = (".json", ".ndjson", ".jsonl", ".odgt", ".manifest", ".xml")
PACKED = {  # data in files that hold images, too, or that other programs write
    ".parquet": "Parquet",
    ".arrow": "Arrow",
    ".tfrecord": "TFRecord",
    ".record": "TFRecord",
    ".mat": "MATLAB",
    ".h5": "HDF5",
    ".hdf5": "HDF5",
    ".pkl": "pickle",
}
CONVERT = "convert it to COCO JSON, or write a source of your own " + (
    "(docs/howto/own-data.md)"
)


def hint(folder: Folder) -> str:
    """One sentence with the cure; empty where nothing is known."""
    for look in (_archive, _tool, _table, _texts, _packed, _no_suffix, _other, _images):
        if said := look(folder):
            return said
    return ""


def _archive(folder: Folder) -> str:
    archives = [f for f in folder.files if f.lower().endswith(ARCHIVES)]
    if not archives or any(map(is_image, folder.files)):
        return ""
    return f"unpack {few(archives, 3)}"


def _tool(folder: Folder) -> str:
    for file in [f for f in folder.files if f.lower().endswith(TEXTS)][:LOOK]:
        for name, patterns in TOOLS:
            if contains(folder.root / file, patterns, 1 << 20):
                return _unread(file, name)
    return ""


def _packed(folder: Folder) -> str:
    """Files of a kind that is read through the hub, or not at all."""
    for file in folder.files:
        kind = PACKED.get(posixpath.splitext(file)[1].lower())
        if kind in ("Parquet", "Arrow"):
            return (
                f"{file} is {kind}, which is not read from a folder: read the set from "
                "the hub, --config.data.name=hf:OWNER/NAME, or " + CONVERT
            )
        if kind:
            return f"{file} is {kind}, which is not read: {CONVERT}"
    return ""


def _no_suffix(folder: Folder) -> str:
    """XML files without a suffix, as Stanford Dogs has them."""
    files = [f for f in folder.files if "." not in posixpath.basename(f)]
    for file in files[:LOOK]:
        if contains(folder.root / file, (rb"<annotation[\s>]", rb"<object>"), 1 << 16):
            return (
                f"{file} and its like are VOC's XML without a suffix: rename them to "
                ".xml"
            )
    return ""


def _other(folder: Folder) -> str:
    """A text file with a line of four numbers or more."""
    for file in [f for f in folder.files if f.lower().endswith(".txt")][:LOOK]:
        with (folder.root / file).open("rb") as handle:
            lines = [handle.readline(1 << 12) for _ in range(5)]
        for line in (part.decode("utf-8-sig", "replace").strip() for part in lines):
            if len(re.findall(r"(?<![\w.])-?\d+(?:\.\d*)?(?![\w.])", line)) >= 4:
                return f"{file} ({line[:60]!r}) is of no format that is read: {CONVERT}"
    return ""


def _unread(file: str, tool: str) -> str:
    cure = "export it as COCO JSON"
    if tool in NO_EXPORT:
        cure = CONVERT
    if tool == "a detector's results":
        cure = "give the annotations, which have images and categories"
    return f"{file} is of {tool}, which is not read: {cure}"


def _table(folder: Folder) -> str:
    tables = [f for f in folder.files if f.lower().endswith((".csv", ".tsv"))]
    few_columns = []
    for file in tables[:LOOK]:
        with (folder.root / file).open("rb") as handle:
            line = handle.readline(1 << 16).decode("utf-8-sig", "replace").strip()
        if "region_shape_attributes" in line:
            return _unread(file, "VGG Image Annotator")
        if contains(folder.root / file, (rb"rectanglelabels",), 1 << 16):
            return _unread(file, "Label Studio's own kind")
        header = next(csv.reader([line], delimiter=max(",;\t", key=line.count)), [])
        numbers = sum(bool(re.fullmatch(r"-?\d+(\.\d*)?", cell)) for cell in header)
        if numbers == 0 and (len(header) < 5 or _classifies(folder.root / file)):
            few_columns.append((file, header))
            continue
        if numbers >= 4:
            return (
                f"{file} has no line with the names of its columns: write one, such as "
                "image,x1,y1,x2,y2,label"
            )
        return (
            f"{file} has the columns {few(header, 12)}: say what they are, "
            f"--config.data.name=csv --config.data.annotations={file} "
            "--config.data.columns=\"{'image': ..., 'x1': ..., 'y1': ..., 'x2': ..., "
            "'y2': ..., 'label': ...}\", and the numbers by "
            "--config.data.convention=xywh or another (docs/data.md)"
        )
    for file, header in few_columns:
        if len(header) > 1:
            return (
                f"{file} has the columns {few(header, 12)}, none of them for a box: a "
                "detector needs x1, y1, x2, y2, or one column bbox (docs/data.md): add "
                "them; classes of whole images are not enough"
            )
    return ""


def _classifies(file: pathlib.Path) -> bool:
    """Whether a table has a column for each class with 0 or 1, and no boxes."""
    with file.open("rb") as handle:
        handle.readline(1 << 16)
        line = handle.readline(1 << 16).decode("utf-8-sig", "replace")
    cells = [cell.strip() for cell in re.split("[,;\t]", line)]
    return len(cells) > 1 and all(cell in ("0", "1") for cell in cells[1:])


def _texts(folder: Folder) -> str:
    """Text files that have the names of the images."""
    images = {stem(f) for f in folder.files if is_image(f)}
    lists = [f for f in folder.files if f.endswith((".names", "classes.txt", ".yaml"))]
    texts = [f for f in folder.files if f.endswith(".txt") and stem(f) in images]
    for file in texts[:LOOK]:
        with (folder.root / file).open("rb") as handle:
            line = handle.readline(1 << 12).decode("utf-8-sig", "replace").strip()
        if not line:
            continue
        if re.fullmatch(r"\d+(\s+[01]?\.?\d*(e-?\d+)?){4,}", line):
            if lists:
                return (
                    f"{file} and its like are YOLO's: name the folders, "
                    "--config.data.name=yolo --config.data.images=... "
                    "--config.data.labels=..., with {split} for a split's name"
                )
            return (
                f"{file} and its like are YOLO's, but there are no class names: write "
                f"them into {folder.root / 'classes.txt'}, one a line"
            )
        return (
            f"{file} and its like ({line[:60]!r}) are of no format that is read: "
            "convert them to YOLO, VOC or COCO, or write a source of your own "
            "(docs/howto/own-data.md)"
        )
    return ""


def _images(folder: Folder) -> str:
    if folder.files and all(map(is_image, folder.files)):
        return "there are images but no annotations: add the files with the boxes"
    return ""
