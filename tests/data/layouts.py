"""Small sets in the layouts that tools write, each by a function of a folder.

One deep thing: the same truth in every layout.

A layout's function writes the images and annotations of `TRUTH`, and returns the source
that should be recognised and what its two splits should hold.
"""

import json
import math
import pathlib
from typing import NamedTuple

import cv2
import numpy as np

W, H = 60, 40
CLASSES = ("cat", "dög")
# Corners are continuous: (label, x1, y1, x2, y2). An image without objects, too.
TRUTH = {
    f"img {i}": [
        (CLASSES[i % 2], 2 + i, 4.0, 22.0 + i, 24.0),
        *([("cat", 30.0, 10.0, 50.0, 40.0)] if i % 3 == 0 else []),
    ]
    for i in range(9)
} | {"none": []}
NAMES = list(TRUTH)
TRAIN, VAL, TEST = NAMES[:6], NAMES[6:8], NAMES[8:]


class Expected(NamedTuple):
    """The source, the names of its splits, and the images of the two."""

    name: str
    train_split: str
    eval_split: str
    train: list[str] | None = None  # None: a share of all by a hash
    eval: list[str] | None = None


OWN = dict(train=TRAIN, eval=VAL)
HASHED = ("all[:80%]", "all[80%:]")


def image(path: pathlib.Path) -> pathlib.Path:
    """Writes a picture of W x H pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(path.name.encode()))
    pixels = rng.integers(0, 255, (H, W, 3))
    path.write_bytes(cv2.imencode(path.suffix, pixels.astype(np.uint8))[1].tobytes())
    return path


def text(path: pathlib.Path, content: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))


def splits():
    return dict(train=TRAIN, valid=VAL, test=TEST)


# ------------------------------------------------------------------------------- COCO


def coco(names, prefix="", suffix=".png", roboflow=False):
    first = [dict(id=0, name="pets", supercategory="none")] if roboflow else []
    categories = [
        dict(id=i, name=n, supercategory="pets" if roboflow else "")
        for i, n in enumerate(CLASSES, start=1)
    ]
    images = [
        dict(id=i, file_name=f"{prefix}{n}{suffix}", width=W, height=H)
        for i, n in enumerate(names)
    ]
    annotations = [
        dict(image_id=i, category_id=CLASSES.index(c) + 1, iscrowd=0)
        | dict(bbox=[x, y, x2 - x, y2 - y], area=(x2 - x) * (y2 - y), segmentation=[])
        for i, n in enumerate(names)
        for c, x, y, x2, y2 in TRUTH[n]
    ]
    annotations = [dict(a, id=k) for k, a in enumerate(annotations)]
    found = dict(info={}, licenses=[], categories=first + categories)
    return json.dumps(found | dict(images=images, annotations=annotations))


def coco_roboflow(root):
    """train/_annotations.coco.json beside its images, and a category of no object."""
    end = "_png.rf.0123456789abcdef.png"
    for split, names in splits().items():
        text(root / split / "_annotations.coco.json", coco(names, "", end, True))
        for n in names:
            image(root / split / f"{n}{end}")
    text(root / "README.roboflow.txt", "pets")
    return Expected("coco", "train", "valid", **OWN)


def coco_cvat(root):
    text(root / "annotations" / "instances_default.json", coco(NAMES))
    for n in NAMES:
        image(root / "images" / "default" / f"{n}.png")
    return Expected("coco", *HASHED)


def coco_label_studio(root):
    r"""result.json, whose names were written on Windows."""
    text(root / "result.json", coco(NAMES, "images\\"))
    for n in NAMES:
        image(root / "images" / f"{n}.png")
    return Expected("coco", *HASHED)


def coco_classical(root):
    for split, names in (("train2017", TRAIN), ("val2017", VAL)):
        text(root / "annotations" / f"instances_{split}.json", coco(names))
        text(root / "annotations" / f"captions_{split}.json", coco(names))
        for n in names:
            image(root / split / f"{n}.png")
    return Expected("coco", "train2017", "val2017", **OWN)


def coco_fiftyone(root):
    text(root / "labels.json", coco(NAMES))
    for n in NAMES:
        image(root / "data" / f"{n}.png")
    return Expected("coco", *HASHED)


def coco_of_another_machine(root):
    """Paths of another machine, two splits of one name each."""
    for split, names in (("train", TRAIN), ("test", VAL)):
        text(root / f"{split}.json", coco(names, f"/home/me/set/{split}/"))
        for n in names:
            image(root / "pictures" / split / f"{n}.png")
    return Expected("coco", "train", "test", **OWN)


def coco_polygons(root):
    """Polygons alone, as tools for masks write them; no sizes, no areas, no ids."""
    found = json.loads(coco(NAMES))
    for a in found["annotations"]:
        x, y, w, h = a.pop("bbox")
        a["segmentation"] = [[x, y, x + w, y, x + w, y + h], [x, y, x, y + h]]
        del a["area"], a["id"], a["iscrowd"]
    for entry in found["images"]:
        del entry["width"], entry["height"]
    text(root / "masks.json", json.dumps(found))
    for n in NAMES:
        image(root / "images" / f"{n}.png")
    return Expected("coco", *HASHED)


def coco_addresses(root):
    """Names as addresses, which Label Studio writes for local files."""
    found = json.loads(coco(NAMES))
    for entry in found["images"]:
        name = entry["file_name"].replace(" ", "%20")
        entry["file_name"] = f"/data/local-files/?d=pets%5C{name}"
    text(root / "result.json", json.dumps(found))
    for n in NAMES:
        image(root / "photos" / f"{n}.png")
    return Expected("coco", *HASHED)


# -------------------------------------------------------------------------------- VOC


def xml(name, filename):
    objects = "".join(
        f"<object><name>{c}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for c, x, y, x2, y2 in TRUTH[name]
    )
    return (
        f"<annotation><folder>x</folder><filename>{filename}</filename>"
        f"<path>/etc/passwd</path><size><width>{W}</width><height>{H}</height>"
        f"<depth>3</depth></size>{objects}</annotation>"
    )


def voc_devkit(root):
    for n in NAMES:
        text(root / "Annotations" / f"{n}.xml", xml(n, f"{n}.png"))
        image(root / "JPEGImages" / f"{n}.png")
    for split, names in (("train", TRAIN), ("val", VAL), ("trainval", TRAIN + VAL)):
        text(root / "ImageSets" / "Main" / f"{split}.txt", "\n".join(names) + "\n")
        lines = "".join(f"{n}  1\n" for n in names)
        text(root / "ImageSets" / "Main" / f"cat_{split}.txt", lines)
    return Expected("voc", "train", "val", **OWN)


def voc_tool(root):
    """LabelImg's: XML in one folder, images in another, a suffix the XML lacks."""
    for n in NAMES:
        text(root / "labels_voc" / f"{n}.xml", xml(n, n))
        image(root / "photos" / f"{n}.bmp")
    return Expected("voc", *HASHED)


def voc_beside(root):
    """XML beside the images, which have other names than their XML."""
    for n in NAMES:
        text(root / f"{n}.xml", xml(n, f"{n} (1).png"))
        image(root / f"{n} (1).png")
    return Expected("voc", *HASHED)


def voc_roboflow(root):
    for split, names in splits().items():
        for n in names:
            text(root / split / f"{n}_jpg.rf.ab12.xml", xml(n, f"{n}_jpg.rf.ab12.png"))
            image(root / split / f"{n}_jpg.rf.ab12.png")
    return Expected("voc", "train", "valid", **OWN)


def voc_lists(root):
    for n in NAMES:
        text(root / "annotations" / f"{n}.xml", xml(n, f"{n}.png"))
        image(root / "images" / f"{n}.png")
    for split, names in (("train", TRAIN), ("val", VAL)):
        text(root / f"{split}.txt", "".join(f"images/{n}.png\n" for n in names))
    return Expected("voc", "train", "val", **OWN)


def voc_latin(root):
    """XML in the encoding that it declares."""
    for n in NAMES:
        head = '<?xml version="1.0" encoding="ISO-8859-1"?>\n'
        text(root / f"{n}.xml", head + xml(n, f"{n}.png"), "latin-1")
        image(root / f"{n}.png")
    return Expected("voc", *HASHED)


def voc_unpacked(root):
    """The devkit below the folders of its archive."""
    base = root / "VOC2012_train_val" / "VOC2012_train_val"
    for n in NAMES:
        text(base / "Annotations" / f"{n}.xml", xml(n, f"{n}.png"))
        image(base / "JPEGImages" / f"{n}.png")
    for split, names in (("train", TRAIN), ("val", VAL)):
        text(base / "ImageSets" / "Main" / f"{split}.txt", "\n".join(names) + "\n")
    return Expected("voc", "train", "val", **OWN)


def voc_shapes(root):
    """roLabelImg's rotated boxes, here by a quarter, and LabelMe's polygons."""
    for i, n in enumerate(NAMES):
        objects = ""
        for c, x, y, x2, y2 in TRUTH[n]:
            points = ((x, y), (x2, y), (x2, y2))
            shape = "".join(f"<pt><x>{a}</x><y>{b}</y></pt>" for a, b in points)
            shape = f"<polygon><username>me</username>{shape}</polygon>"
            if i % 2:
                numbers = dict(cx=(x + x2) / 2, cy=(y + y2) / 2, w=y2 - y, h=x2 - x)
                numbers["angle"] = math.pi / 2
                shape = "".join(f"<{k}>{v}</{k}>" for k, v in numbers.items())
                shape = f"<type>robndbox</type><robndbox>{shape}</robndbox>"
            objects += f"<object><name>\n{c}\n</name>{shape}</object>"
        text(root / f"{n}.xml", f"<annotation>{objects}</annotation>")
        image(root / f"{n}.png")
    return Expected("voc", *HASHED)


# ------------------------------------------------------------------------------- YOLO


def yolo(name):
    return "".join(
        f"{CLASSES.index(c)} {(x + x2) / 2 / W} {(y + y2) / 2 / H} {(x2 - x) / W} "
        f"{(y2 - y) / H}\n"
        for c, x, y, x2, y2 in TRUTH[name]
    )


def yolo_ultralytics(root):
    """images/train, labels/train, a path of another machine, names by number."""
    for split, names in (("train", TRAIN), ("val", VAL)):
        for n in names:
            text(root / "labels" / split / f"{n}.txt", yolo(n))
            image(root / "images" / split / f"{n}.png")
    names = "".join(f"  {i}: {n}\n" for i, n in enumerate(CLASSES))
    paths = "path: ../datasets/pets\ntrain: images/train\nval: images/val\ntest:\n"
    text(root / "pets.yaml", f"{paths}names:\n{names}")
    return Expected("yolo", "train", "val", **OWN)


def yolo_roboflow(root):
    """train/images, ../train/images in data.yaml, and an nc that is wrong."""
    for split, names in splits().items():
        for n in names:
            text(root / split / "labels" / f"{n}.txt", yolo(n))
            image(root / split / "images" / f"{n}.png")
    paths = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    names = ", ".join(f"'{n}'" for n in CLASSES)
    text(root / "data.yaml", f"{paths}\nnc: 3\nnames: [{names}]\n")
    return Expected("yolo", "train", "val", **OWN)


def yolo_lists(root):
    """Text files of paths, one a split, and a list of them."""
    for n in NAMES:
        text(root / "labels" / f"{n}.txt", yolo(n))
        image(root / "images" / f"{n}.png")
    text(root / "a.txt", "".join(f"./images/{n}.png\n" for n in TRAIN[:3]))
    text(root / "b.txt", "".join(f"/content/pets/images/{n}.png\n" for n in TRAIN[3:]))
    text(root / "val.txt", "".join(f"images/{n}.png\n" for n in VAL))
    names = json.dumps(CLASSES, ensure_ascii=False)
    content = "path: /content/pets\ntrain: [a.txt, b.txt]\nval: val.txt\n"
    text(root / "data.yml", f"{content}names: {names}")
    return Expected("yolo", "train", "val", **OWN)


def yolo_label_studio(root):
    for n in NAMES:
        text(root / "labels" / f"{n}.txt", yolo(n))
        image(root / "images" / f"{n}.png")
    text(root / "classes.txt", "\n".join(CLASSES))
    text(root / "notes.json", json.dumps(dict(categories=[], info={})))
    return Expected("yolo", *HASHED)


def yolo_darknet(root):
    """CVAT's YOLO 1.1: the text files beside the images."""
    for n in NAMES:
        text(root / "obj_train_data" / f"{n}.txt", yolo(n))
        image(root / "obj_train_data" / f"{n}.png")
    text(root / "obj.names", "\n".join(CLASSES) + "\n")
    text(root / "obj.data", "classes = 2\ntrain = data/train.txt\n")
    lines = "".join(f"data/obj_train_data/{n}.png\n" for n in NAMES)
    text(root / "train.txt", lines)
    return Expected("yolo", "train[:80%]", "train[80%:]")


def yolo_obj(root):
    """Darknet's: one folder, and a list for each split."""
    for n in NAMES:
        text(root / "data" / "obj" / f"{n}.txt", yolo(n))
        image(root / "data" / "obj" / f"{n}.png")
    for split, names in (("train", TRAIN), ("test", VAL)):
        text(
            root / "data" / f"{split}.txt",
            "".join(f"data/obj/{n}.png\n" for n in names),
        )
    text(root / "data" / "pets.names", "\n".join(CLASSES) + "\n")
    text(root / "data" / "obj.data", "classes = 2\ntrain = data/train.txt\n")
    return Expected("yolo", "train", "test", **OWN)


def yolo_darknet_roboflow(root):
    for split, names in splits().items():
        for n in names:
            text(root / split / f"{n}.txt", yolo(n))
            image(root / split / f"{n}.png")
        text(root / split / "_darknet.labels", "\n".join(CLASSES) + "\n")
    return Expected("yolo", "train", "valid", **OWN)


# ----------------------------------------------------------------------------- tables


def table(names, delimiter=",", split=None):
    header = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]
    rows = [header + (["split"] if split else [])]
    for n in names:
        for c, *box in TRUTH[n] or [("", "", "", "", "")]:
            row = [f"{n}.png", W, H, c, *box]
            rows.append(row + ([split(n)] if split else []))
    return "".join(delimiter.join(map(str, row)) + "\n" for row in rows)


def csv_tensorflow(root):
    """data/train_labels.csv and test_labels.csv, and one of all; images elsewhere."""
    for n in NAMES:
        image(root / "images" / f"{n}.png")
    for split, names in (("train", TRAIN), ("test", VAL), ("pets", NAMES)):
        text(root / "data" / f"{split}_labels.csv", table(names))
    return Expected("csv", "train", "test", **OWN)


def csv_roboflow(root):
    for split, names in splits().items():
        text(root / split / "_annotations.csv", table(names))
        for n in names:
            image(root / split / f"{n}.png")
    return Expected("csv", "train", "valid", **OWN)


def csv_semicolon(root):
    """Excel's: semicolons, cp1252, a column of splits."""
    for n in NAMES:
        image(root / f"{n}.png")
    rows = table(NAMES, ";", lambda n: "train" if n in TRAIN else "val")
    text(root / "boxes.csv", rows, "cp1252")
    return Expected("csv", "train", "val", TRAIN, NAMES[6:])


def csv_tabs(root):
    for n in NAMES:
        image(root / "pictures" / f"{n}.png")
    text(root / "boxes.tsv", table(NAMES, "\t"))
    return Expected("csv", *HASHED)


def rows(names, header, line, delimiter=","):
    """A table of every object by `line(name, class, x1, y1, x2, y2)`."""
    lines = [line(n, *row) for n in names for row in TRUTH[n]]
    return "".join(delimiter.join(map(str, row)) + "\n" for row in [header, *lines])


def csv_make_sense(root):
    header = "label_name bbox_x bbox_y bbox_width bbox_height image_name".split()

    def line(n, c, x, y, x2, y2):
        return c, x, y, x2 - x, y2 - y, f"{n}.png"

    for split, names in (("train", TRAIN), ("val", VAL)):
        text(root / f"labels_{split}.csv", rows(names, header, line))
        for n in names:
            image(root / split / f"{n}.png")
    return Expected("csv", "train", "val", **OWN)


def csv_open_images(root):
    """Names without suffix, shares of the sides."""
    header = "ImageID Source LabelName XMin XMax YMin YMax IsGroupOf".split()

    def line(n, c, x, y, x2, y2):
        return n, "xclick", c, x / W, x2 / W, y / H, y2 / H, 0

    for split, names in (("train", TRAIN), ("validation", VAL)):
        text(root / f"{split}-annotations-bbox.csv", rows(names, header, line))
        for n in names:
            image(root / split / f"{n}.png")
    return Expected("csv", "train", "validation", **OWN)


def csv_sides(root):
    """Corner and sides, for Excel: decimal commas, and utf-8 with its mark."""
    header = "\ufefffile x y w h class".split(" ")

    def line(n, c, x, y, x2, y2):
        numbers = (f"{v:.1f}".replace(".", ",") for v in (x, y, x2 - x, y2 - y))
        return f"{n}.PNG", *numbers, c

    for split, names in (("train", TRAIN), ("val", VAL)):
        text(root / f"{split}.csv", rows(names, header, line, ";"))
        for n in names:
            image(root / "images" / f"{n}.png")
    return Expected("csv", "train", "val", **OWN)


def csv_excel(root):
    """Excel's text in Unicode, with bars."""
    header = "file_name category xmin ymin xmax ymax".split()
    for split, names in (("train", TRAIN), ("val", VAL)):
        table_ = rows(names, header, lambda n, *row: (f"{n}.png", *row), "|")
        text(root / f"{split}.csv", table_, "utf-16")
        for n in names:
            image(root / "images" / f"{n}.png")
    return Expected("csv", "train", "val", **OWN)


def csv_one_column(root):
    """The whole box in one column, as competitions have it; an image without a row."""
    header = "image_id width height bbox class_name".split()

    def line(n, c, x, y, x2, y2):
        return n, W, H, f'"[{x}, {y}, {x2 - x}, {y2 - y}]"', c

    for split, names in (("train", TRAIN), ("val", VAL)):
        text(root / f"{split}.csv", rows(names, header, line))
        for n in names:
            image(root / split / f"{n}.png")
    text(root / "sample_submission.csv", "image_id,PredictionString\na,0.9 1 2 3 4\n")
    return Expected("csv", "train", "val", **OWN)


def csv_boxes_of_an_image(root):
    """All boxes of an image in one line, as corners, and lists of their labels."""
    lines = ["image_name,BoxesString,labels"]
    for n in NAMES:
        boxes = ";".join(" ".join(map(str, box)) for _, *box in TRUTH[n])
        labels = [c for c, *_ in TRUTH[n]]
        lines.append(f'{n}.png,{boxes or "no_box"},"{labels}"')
        image(root / "images" / f"{n}.png")
    text(root / "boxes.csv", "\n".join(lines) + "\n")
    return Expected("csv", *HASHED)


def csv_no_finding(root):
    """A label that says that there is nothing, and no numbers."""
    lines = ["image_id,class_name,rad_id,x_min,y_min,x_max,y_max"]
    for n in NAMES:
        for c, *box in TRUTH[n] or [("No finding", "", "", "", "")]:
            lines.append(",".join(map(str, (n, c, "R1", *box))))
        image(root / "pictures" / f"{n}.png")
    text(root / "boxes.csv", "\n".join(lines) + "\n")
    return Expected("csv", *HASHED)


def yolo_capitals(root):
    for split, names in (("Train", TRAIN), ("Valid", VAL)):
        for n in names:
            text(root / split / "Labels" / f"{n}.txt", yolo(n))
            image(root / split / "Images" / f"{n}.png")
    text(root / "classes.txt", "\n".join(CLASSES))
    return Expected("yolo", "Train", "Valid", **OWN)


# ----------------------------------------------------------------------------- others


def supervisely(root):
    classes = [dict(title=c, shape="rectangle", color="#FF0000") for c in CLASSES]
    text(root / "meta.json", json.dumps(dict(classes=classes, tags=[])))
    for split, names in (("train", TRAIN), ("val", VAL)):
        for n in names:
            objects = [
                dict(classTitle=c, geometryType="rectangle", tags=[])
                | dict(points=dict(exterior=[[x, y], [x2 - 1, y2 - 1]], interior=[]))
                for c, x, y, x2, y2 in TRUTH[n]
            ]
            found = dict(description="", tags=[], size=dict(height=H, width=W))
            path = root / split / "ann" / f"{n}.png.json"
            text(path, json.dumps(found | dict(objects=objects)))
            image(root / split / "img" / f"{n}.png")
    return Expected("supervisely", "train", "val", **OWN)


def labelme(root):
    """Rectangles drawn from any corner, and polygons."""
    for i, n in enumerate(NAMES):
        shapes = []
        for c, x, y, x2, y2 in TRUTH[n]:
            points = [[x2, y2], [x, y]] if i % 2 else [[x, y], [x2, y], [x, y2]]
            kind = "rectangle" if i % 2 else "polygon"
            shapes.append(dict(label=c, points=points, shape_type=kind, flags={}))
        found = dict(version="5.5.0", flags={}, shapes=shapes, imageData=None)
        found |= dict(imagePath=f"..\\photos\\{n}.png", imageHeight=H, imageWidth=W)
        text(root / "labels" / f"{n}.json", json.dumps(found))
        image(root / "photos" / f"{n}.png")
    return Expected("labelme", *HASHED)


def hf_objects(n, key):
    boxes = [[x, y, x2 - x, y2 - y] for _, x, y, x2, y2 in TRUTH[n]]
    return {"bbox": boxes, key: [c for c, *_ in TRUTH[n]]}


def hf_folder(root):
    for split, names in (("train", TRAIN), ("validation", VAL)):
        lines = ""
        for n in names:
            objects = hf_objects(n, "categories")
            lines += json.dumps(dict(file_name=f"{n}.png", objects=objects)) + "\n"
            image(root / split / f"{n}.png")
        text(root / split / "metadata.jsonl", lines)
    return Expected("hf", "train", "validation", **OWN)


def hf_table(root):
    """metadata.csv with the objects as JSON, or as pandas prints a dict."""
    for split, names in (("train", TRAIN), ("validation", VAL)):
        lines = "file_name,objects\n"
        for n in names:
            objects = hf_objects(n, "category")
            cell = str(objects) if split == "train" else json.dumps(objects)
            cell = cell.replace('"', '""')
            lines += f'{n}.png,"{cell}"\n'
            image(root / split / f"{n}.png")
        text(root / split / "metadata.csv", lines)
    return Expected("hf", "train", "validation", **OWN)


LAYOUTS = (
    *(coco_roboflow, coco_cvat, coco_label_studio, coco_classical, coco_fiftyone),
    *(coco_polygons, coco_addresses, voc_latin),
    *(csv_make_sense, csv_open_images, csv_sides, csv_excel, yolo_capitals),
    *(coco_of_another_machine, voc_devkit, voc_tool, voc_beside, voc_roboflow),
    *(voc_lists, yolo_ultralytics, yolo_roboflow, yolo_lists, yolo_label_studio),
    *(yolo_darknet, csv_tensorflow, csv_roboflow, csv_semicolon, csv_tabs),
    *(supervisely, labelme, hf_folder, hf_table, voc_unpacked, voc_shapes, yolo_obj),
    *(yolo_darknet_roboflow, csv_one_column, csv_boxes_of_an_image, csv_no_finding),
)
