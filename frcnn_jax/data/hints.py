"""What a folder without a recognised format seems to hold, and what to do about it."""

import csv
import re

from frcnn_jax.data.folders import Folder, contains, few, is_image, stem

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
LOOK = 20  # files of a kind that are looked at
# Formats of tools that are not read, by what their JSON files hold.
TOOLS = (
    ("Label Studio's own kind", (rb'"rectanglelabels"', rb'"result"')),
    ("Labelbox", (rb'"data_row"',)),
    ("CVAT's own kind", (rb"<image [^>]*name=", rb"<(box|polygon) [^>]*label=")),
    ("VGG Image Annotator", (rb'"shape_attributes"', rb'"region_attributes"')),
    ("Create ML", (rb'"annotations"', rb'"coordinates"', rb'"image(filename)?"')),
)


def hint(folder: Folder) -> str:
    """One sentence with the cure; empty where nothing is known."""
    for look in (_archive, _tool, _table, _texts, _images):
        if said := look(folder):
            return said
    return ""


def _archive(folder: Folder) -> str:
    archives = [f for f in folder.files if f.lower().endswith(ARCHIVES)]
    if not archives or any(map(is_image, folder.files)):
        return ""
    return f"unpack {few(archives, 3)}"


def _tool(folder: Folder) -> str:
    ends = (".json", ".ndjson", ".xml")
    for file in [f for f in folder.files if f.lower().endswith(ends)][:LOOK]:
        for name, patterns in TOOLS:
            if contains(folder.root / file, patterns, 1 << 20):
                return _unread(file, name)
    return ""


def _unread(file: str, tool: str) -> str:
    return f"{file} is of {tool}, which is not read: export it as COCO JSON"


def _table(folder: Folder) -> str:
    tables = [f for f in folder.files if f.lower().endswith((".csv", ".tsv"))]
    for file in tables[:LOOK]:
        with (folder.root / file).open("rb") as handle:
            line = handle.readline(1 << 16).decode("utf-8-sig", "replace").strip()
        if "region_shape_attributes" in line:
            return _unread(file, "VGG Image Annotator")
        header = next(csv.reader([line], delimiter=max(",;\t", key=line.count)), [])
        numbers = sum(bool(re.fullmatch(r"-?\d+(\.\d*)?", cell)) for cell in header)
        if len(header) < 5 and numbers == 0:
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
    return ""


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
