"""Hostile files: refused with a clear error, nothing run, no memory taken."""

import io
import itertools
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib

import cv2
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest

from frcnn_jax.data.sources import records, shapes
from frcnn_jax.training import checkpoint
from frcnn_jax.training import config as configs
from tests.data.sources import test_voc
from tests.weights.test_files import Call, with_tensor, write_pth

JPEG = cv2.imencode(".jpg", np.zeros((20, 30, 3), np.uint8))[1].tobytes()
TERA = 1 << 40


def npy(shape, dtype="<f4", data=b"") -> bytes:
    header = repr(dict(descr=dtype, fortran_order=False, shape=shape)).encode()
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)


def png(h, w, pixels=b"") -> bytes:
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def zeros(size: int) -> bytes:
    """That many zeros, as a PNG has them, a thousandth of the size."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20))


def bmp(h, w) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, w, h, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def jpeg_claiming(h, w) -> bytes:
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", h, w) + JPEG[at + 4 :]


def lambs(n=9):
    """A list of lists of lists ... as a pickle or YAML has them: few bytes, 10^n."""
    value: list = ["x"]
    for _ in range(n):
        value = [value] * 10
    return value


def coco_set(path, name="a.jpg", *, text="", **annotation):
    (path / "a").mkdir(parents=True)
    (path / "annotations").mkdir()
    (path / "a" / "a.jpg").write_bytes(JPEG)
    box = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 5, 5], **annotation)
    tree = dict(
        images=[dict(id=1, file_name=name, width=30, height=20)],
        annotations=[box],
        categories=[dict(id=1, name="x")],
    )
    file = path / "annotations" / "instances_a.json"
    file.write_text(text or json.dumps(tree))


def voc_set(path, *, name="a", xml=""):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (path / folder).mkdir(parents=True)
    (path / "ImageSets" / "Main" / "a.txt").write_text(name + "\n")
    (path / "JPEGImages" / "a.jpg").write_bytes(JPEG)
    (path / "Annotations" / "a.xml").write_text(xml or test_voc.xml())


def yolo_set(path, *, yaml="names: [x]", line="0 0.5 0.5 0.1 0.1"):
    for folder in ("images/a", "labels/a"):
        (path / folder).mkdir(parents=True)
    (path / "images" / "a" / "1.jpg").write_bytes(JPEG)
    (path / "labels" / "a" / "1.txt").write_text(line)
    (path / "data.yaml").write_text(yaml)


def csv_set(path, row):
    path.mkdir()
    (path / "a.csv").write_text(f"image,x1,y1,x2,y2,label\n{row}\n")


def make(folder):
    """Every hostile file, by name, and what its error says."""
    said = {}

    def case(name, words):
        said[name] = words
        return folder / name

    # ---- weights and proposals: pickles, archives, headers
    mark = str(folder.parent / "was_run")
    bomb = {"a": Call(os.system, f"touch {mark}")}
    for kind in ("zip", "stream"):
        write_pth(case(f"weights_{kind}.pth", "the pickle asks for"), kind, bomb)
    for reader in ("weights", "proposals"):
        objects = io.BytesIO()
        np.save(objects, np.array([bomb["a"]], object), allow_pickle=True)
        path = case(f"{reader}_object.npz", "pickled objects, which are not read")
        archive(path, {"boxes.npy": objects.getvalue()})
        path = case(f"{reader}_tera.npz", "claims 4,398,046,511,104 bytes")
        archive(path, {"boxes.npy": npy((TERA,))})
        path = case(f"{reader}_text.npz", "not a readable .npz")
        archive(path, {"boxes.npy": b"\x93NUMPY\x01\x00" + b"\xff" * 40})
    path = case("weights_bomb.npz", "and would unpack to 1,153,433,600: refused")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("boxes.npy", "w") as member:
            for _ in range(1100):
                member.write(bytes(1 << 20))
    for name, raw in dict(
        memo=b"\x80\x02}r\xff\xff\xff\x7f.",
        long=b"\x80\x04\x8e" + struct.pack("<Q", TERA) + b"x.",
        deep=b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
        number=b"\x80\x02K\x07.",
    ).items():
        path = case(f"weights_{name}.pth", "is not a readable .pth")
        archive(path, {"x/data.pkl": raw})
    path = case("weights_key.pth", "expected a dict of tensors, found ['tuple']")
    write_pth(path, "zip", {tuple([("x",) * 9] * 9): 1})
    with_tensor(case("weights_wide.pth", "would unpack to"), 0, (TERA,), (0,))
    header = json.dumps({"a": dict(dtype="F32", shape=[TERA], data_offsets=[0, 4])})
    for name, size, text in (
        ("header", 1 << 62, "{}"),
        ("shape", len(header), header),
        ("deep", 200_000, "[" * 200_000),
        (
            "spans",
            1 << 18,
            json.dumps(
                {
                    str(i): dict(dtype="U8", shape=[1], data_offsets=[0, 1 << 28])
                    for i in range(1000)
                }
            ).ljust(1 << 18),
        ),
    ):
        path = case(f"weights_{name}.safetensors", "is not a readable .safetensors")
        path.write_bytes(struct.pack("<Q", size) + text.encode() + bytes(4))

    # ---- pictures
    cannot = "cannot decode the image"
    claims = "claims 100000x100000 pixels, more than"
    case("image_claims.png", claims).write_bytes(png(100_000, 100_000))
    bomb_png = png(30_000, 30_000)
    at = bomb_png.index(b"IDAT") - 4
    pixels = zeros(1 << 25)
    bomb_png = bomb_png[:at] + struct.pack(">I", len(pixels)) + b"IDAT" + pixels
    case("image_bomb.png", "claims 30000x30000 pixels").write_bytes(bomb_png)
    side = 20_000
    case("image_400mp.png", "claims 20000x20000 pixels").write_bytes(png(side, side))
    gif = b"GIF89a" + struct.pack("<HH", side, side) + bytes(20)
    case("image_claims.gif", "claims 20000x20000 pixels").write_bytes(gif)
    path = case("image_claims.jpg", "claims 65000x65000 pixels")
    path.write_bytes(jpeg_claiming(65_000, 65_000))
    case("image_claims.bmp", cannot).write_bytes(bmp(30_000, 30_000))
    case("size_claims.bmp", cannot).write_bytes(bmp(30_000, 30_000))
    case("image_empty.jpg", cannot).write_bytes(b"")
    os.mkfifo(case("image_pipe.jpg", "no image file"))
    os.mkfifo(case("size_pipe.jpg", "no image file"))
    os.symlink("/dev/zero", case("image_zero.jpg", "no image file"))
    os.symlink("/etc/passwd", case("image_link.jpg", cannot))

    # ---- data sets
    for i, name in enumerate(("../../etc/passwd", "/etc/passwd", "a/../../b.jpg")):
        coco_set(case(f"coco_leads{i}", "leads out of"), name)
    (folder / "coco_leads0" / "etc").mkdir()
    coco_set(case("coco_deep", "is not JSON"), text="[" * 200_000)
    big = int("9" * 1000)
    coco_set(case("coco_area", "expected a finite number"), area=big)
    text = '{"images": [], "categories": [], "annotations": [%s]}'
    coco_set(case("coco_digits", "is not JSON"), text=text % ("9" * 10_000))
    voc_set(case("voc_leads", "leads out of"), name="../../../etc/passwd")
    voc_set(case("voc_root", "leads out of"), name="/etc/passwd")
    entities = ['<!DOCTYPE a [<!ENTITY a "lol">']
    for a, b in itertools.pairwise("abcdefghi"):
        entities.append(f'<!ENTITY {b} "{f"&{a};" * 10}">')
    refused = "document type or entities, which are refused"
    laughs = "".join(entities) + "]><annotation><x>&i;</x></annotation>"
    voc_set(case("voc_laughs", refused), xml=laughs)
    outside = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><a>&a;</a>'
    voc_set(case("voc_external", refused), xml=outside)
    huge = (
        "<annotation><size><width>1e999</width><height>9</height></size></annotation>"
    )
    voc_set(case("voc_huge", "cannot read the annotation"), xml=huge)
    laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n"
    for a, b in itertools.pairwise("abcdefghij"):
        laughs += f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n"
    yolo_set(case("yolo_laughs", "expected a list of names"), yaml=laughs + "names: *j")
    code = f"names: !!python/object/apply:os.system ['touch {mark}']"
    yolo_set(case("yolo_code", "is not YAML"), yaml=code)
    yolo_set(case("yolo_deep", "is not YAML"), yaml="[" * 100_000)
    path = case("yolo_pipe", "no image file")
    yolo_set(path)
    os.mkfifo(path / "images" / "a" / "2.jpg")
    csv_set(case("csv_leads", "leads out of"), "../../etc/passwd,1,1,2,2,x")
    csv_set(case("csv_root", "leads out of"), "/etc/passwd,1,1,2,2,x")
    csv_set(
        case("csv_wide", "field larger than field limit"), "x" * 200_000 + ",1,1,2,2,x"
    )

    # ---- TFDS
    picture = {"a": shapes.load(split="val", num_images=1, size=64)}
    path = case("tfds_class", "which is no feature of TFDS and would be imported")
    file = records.write(picture, path) / "features.json"
    file.write_text(file.read_text().replace("tensorflow_datasets.core", "my_evil", 1))
    path = case("records_noise", "")
    (file,) = records.write(picture, path).glob("*.array_record*")
    data = bytearray(file.read_bytes())
    data[:] = b"\xff" * len(data)
    file.write_bytes(bytes(data))
    return said


def test_a_checkpoint_holds_what_it_claims(tmp_path):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as writer:
        tree = dict(params=dict(a=np.ones(4, np.float32)), model_state={})
        writer.save(tmp_path / "model", args=ocp.args.PyTreeSave(tree))
    assert checkpoint.read_variables(tmp_path)["params"]["a"].sum() == 4
    (file,) = tmp_path.rglob(".zarray")
    claims = json.loads(file.read_text()) | dict(shape=[TERA], chunks=[1 << 30])
    file.write_text(json.dumps(claims))
    with pytest.raises(ValueError, match="would unpack to 4,398,046,511,104: refused"):
        checkpoint.read_variables(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        dict(name="dicts:os.system"),
        dict(name="dicts", dataset="os.system"),
        dict(name="my_lab.data"),
        dict(name="mix", datasets=dict(a=dict(name="voc"), b=dict(name="lab.x"))),
    ],
)
def test_a_checkpoint_does_not_choose_what_is_called(data):
    c = ml_collections.ConfigDict(dict(data=data))
    with pytest.raises(ValueError, match="would be imported and called.*--set=data"):
        configs.check_code(c, ["data.root=x"])
    for name in ("os.system", "my_lab.data", "lab.x"):
        if name in str(data):
            configs.check_code(c, [f"data.name={name}"])  # the user's word


def test_a_checkpoint_of_a_format_needs_no_word():
    for name in ("voc", "coco", "tfds:voc/2007", "tfds:my.set"):
        configs.check_code(ml_collections.ConfigDict(dict(data=dict(name=name))), [])


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """What reading each of them comes to, in a process of its own."""
    folder = tmp_path_factory.mktemp("security") / "files"
    folder.mkdir()
    said = make(folder)
    # 64 readers of ArrayRecord with a heap each reserve 64 MB each: over the limit, a
    # thread is refused, and array_record waits for ever for those it has
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile", str(folder)],
        env=os.environ | dict(MALLOC_ARENA_MAX="2"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(said), done.stderr[-2000:]
    return folder, said, {f["name"]: f for f in found}


def test_hostile_files_are_refused_in_words(findings):
    _, said, found = findings
    for name, words in said.items():
        assert found[name]["error"], f"{name} was read"
        kind, message = found[name]["error"]
        assert words in message, (name, kind, message[:300])
        assert len(message) < 2000, (name, message[:300])


def test_hostile_files_take_no_memory(findings):
    _, _, found = findings
    grown = {name: f["grown"] >> 20 for name, f in found.items()}
    assert max(grown.values()) < 100, sorted(grown.items(), key=lambda g: -g[1])[:5]


def test_hostile_files_run_nothing(findings):
    folder, _, _ = findings
    assert not (folder.parent / "was_run").exists()
