"""One image: decode, resize by the short side, place on a canvas of static size.

Nothing here depends on a data set: prediction prepares its images with the same two
functions, `load_image` and `prepare`.
"""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

Size = tuple[int, int]  # (h, w) in pixels
MAX_PIXELS = int(os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", 1 << 28))
Canvas = Size | Sequence[Size]  # one static shape, or several to choose from


def load_image(
    path: str | bytes, *, orient: bool = True, part: int = 1, name: str = ""
) -> UInt8[np.ndarray, "h w 3"]:
    """The image in a file, or in a file's bytes called `name`, as RGB.

    Grayscale is repeated, transparency dropped, 16 bits scaled to 8, and the picture
    turned upright as its EXIF tag says (not with `orient=False`). With `part` 2, 4 or
    8 that part of each side, rounded up; a JPEG is then not decoded any finer.
    FileNotFoundError or, when it cannot be decoded to its end, ValueError, both naming
    the file.
    """
    shown = name if isinstance(path, bytes) else path
    if not isinstance(path, bytes) and not os.path.isfile(path):  # a pipe never ends
        raise FileNotFoundError(f"no image file {path}")
    data = np.frombuffer(path, np.uint8) if isinstance(path, bytes) else _read(path)
    h, w = _header_size(data[:_HEADER].tobytes()) or (0, 0)
    if h * w > MAX_PIXELS:
        raise ValueError(
            f"the image {shown} claims {w}x{h} pixels, more than the {MAX_PIXELS:,} "
            "that are decoded: cut it into parts, or set the environment variable "
            "OPENCV_IO_MAX_IMAGE_PIXELS"
        )
    flags = _PARTS[part] if orient else _AS_STORED
    try:
        image = None if _cut_short(data) else cv2.imdecode(data, flags)
    except cv2.error:
        image = None
    if image is None:
        raise ValueError(
            f"cannot decode the image {shown} ({data.size} bytes): the file is "
            "corrupt, cut short or no image; replace it"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _read(path: str) -> UInt8[np.ndarray, "n"]:
    try:
        return np.fromfile(path, np.uint8)
    except FileNotFoundError:  # only now
        raise FileNotFoundError(f"no image file {path}") from None


_PARTS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_AS_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


def _cut_short(data: UInt8[np.ndarray, "n"]) -> bool:
    """Empty, or a JPEG whose picture has no end (some decoders fill it with gray).

    Markers before the first scan lie in segments that say how long they are (a
    thumbnail has its own); from there on FFD9 is the end, whatever may follow it.
    """
    raw = data.tobytes()
    if raw[:2] != b"\xff\xd8":
        return not raw
    at = 2
    while (at := raw.find(b"\xff", at)) >= 0 and (marker := raw[at + 1 : at + 2]):
        if marker == b"\xda":
            return raw.find(b"\xff\xd9", at) < 0
        alone = marker < b"\xc0" or b"\xd0" <= marker <= b"\xd9" or marker == b"\xff"
        at += 1 if alone else 2 + int.from_bytes(raw[at + 2 : at + 4])
    return True


def image_size(image: str | bytes, *, name: str = "") -> Size:
    """(h, w) of an upright image, from the header of a JPEG or PNG that is not turned.

    Anything else is decoded; raises what `load_image` does.
    """
    head = _head(image)
    png = head[:8] == _PNG and b"eXIf" not in head
    found = _header_size(head) if png else _jpeg_size(head)
    h, w = found or load_image(image, name=name).shape[:2]
    return h, w


def _header_size(head: bytes) -> Size | None:
    """The size that the header of a PNG or JPEG states, as stored; else None."""
    if head[:8] == _PNG and len(head) >= 24:
        return int.from_bytes(head[20:24]), int.from_bytes(head[16:20])
    return _jpeg_size(head, turned=True)


_PNG = b"\x89PNG\r\n\x1a\n"


def _head(image: str | bytes) -> bytes:
    if isinstance(image, bytes):
        return image[:_HEADER]
    if not os.path.isfile(image):
        raise FileNotFoundError(f"no image file {image}")
    with open(image, "rb") as file:
        return file.read(_HEADER)


_HEADER = 1 << 18  # bytes that hold everything in front of a picture's pixels


def _jpeg_size(head: bytes, *, turned: bool = False) -> Size | None:
    """The size in a JPEG's frame header; None for anything odd.

    And for one that its EXIF tag turns, unless `turned`: then as it is stored.
    """
    if head[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4])
        if marker == 0xE1 and head[at + 4 : at + 8] == b"Exif":
            if not turned and _orientation(head[at + 10 : at + 2 + length]) != 1:
                return None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            h, w = (int.from_bytes(head[at + k : at + k + 2]) for k in (5, 7))
            return (h, w) if h and w else None
        at += 2 + length
    return None


def _orientation(tiff: bytes) -> int:
    """The orientation tag of an EXIF block's first directory: 1 where it has none."""
    order = "little" if tiff[:2] == b"II" else "big"
    start = int.from_bytes(tiff[4:8], order)
    count = int.from_bytes(tiff[start : start + 2], order)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        if int.from_bytes(tiff[at : at + 2], order) == 0x0112:
            return int.from_bytes(tiff[at + 8 : at + 10], order)
    return 1


def canvases(canvas: Canvas) -> tuple[Size, ...]:
    """The one canvas (h, w), or the several, as a tuple of them.

    >>> canvases((8, 9)), canvases([(8, 9), (9, 8)])
    (((8, 9),), ((8, 9), (9, 8)))
    """
    several: Any = canvas if isinstance(canvas[0], Sequence) else (canvas,)
    return tuple((int(h), int(w)) for h, w in several)


def check_canvas(short_side: int, max_side: int, canvas: Canvas) -> None:
    """ValueError unless a canvas holds the largest image of at least one orientation.

    Of several canvases one must; the others may be for other aspect ratios, but none
    less than `short_side`.

    >>> check_canvas(800, 1333, (800, 1344))
    """
    options = canvases(canvas)
    if not 0 < short_side <= max_side:
        raise ValueError(
            f"short_side={short_side} must be positive and at most max_side={max_side}"
        )
    small = [c for c in options if min(c) < short_side]
    if not small and max(map(max, options)) < max_side:
        small = options
    if small:
        raise ValueError(
            f"canvas={small[0]} cannot hold images of short_side={short_side} and "
            f"max_side={max_side}: make it at least {(short_side, max_side)} or "
            f"{(max_side, short_side)}, or lower short_side or max_side"
        )


def choose_canvas(
    size: Size, short_side: int, max_side: int, options: Sequence[Size]
) -> int:
    """The position of the canvas that shrinks an image least, and then of the smallest.

    >>> choose_canvas((480, 640), 300, 400, [(400, 304), (304, 400), (400, 400)])
    1
    """

    def badness(i):
        h, w = fit(size, short_side, max_side, options[i])
        return -h * w, options[i][0] * options[i][1]

    return min(range(len(options)), key=badness)


def fit(size: Size, short_side: int, max_side: int, canvas: Size) -> Size:
    """(h, w) after resizing: `short_side`, unless `max_side` or the canvas are smaller.

    The scale is `min(short_side / min(h, w), max_side / max(h, w), canvas / size)`: an
    upright picture is shrunk further for a canvas that lies on its side. The sides are
    `rounded` in whole numbers, so that an exported program, which has no float64, finds
    the same.

    >>> fit((480, 640), 300, 400, (300, 400)), fit((640, 480), 300, 400, (300, 400))
    ((300, 400), (300, 225))
    """
    h, w = size
    scales = (
        *((short_side, min(size)), (max_side, max(size))),
        *((canvas[0], h), (canvas[1], w)),
    )
    # Rounding keeps the order: the least side is that of the least scale.
    fitted = [min(rounded(side * p, q) for p, q in scales) for side in size]
    return max(1, int(fitted[0])), max(1, int(fitted[1]))


def rounded(numerator: Any, denominator: Any) -> Any:
    """The integer nearest to a quotient of integers, of two the even one; no overflow.

    Of Python's integers, or of arrays of them where `2 * numerator` fits their width.

    >>> [rounded(n, 2) for n in (1, 2, 3, 5)]
    [0, 1, 2, 2]
    """
    whole, rest = numerator // denominator, numerator % denominator
    half_way = 2 * rest == denominator
    return whole + ((2 * rest > denominator) | (half_way & (whole % 2 == 1)))


def resize(
    image: UInt8[np.ndarray, "h w 3"],
    size: Size,
    extent: tuple[float, float] | None = None,
) -> UInt8[np.ndarray, "i j 3"]:
    """Bilinear, without smoothing before shrinking.

    Of the image's first `extent` (h, w) pixels, which need not be whole, if given.
    """
    if extent not in (None, image.shape[:2]):
        sy, sx = extent[0] / size[0], extent[1] / size[1]
        return cv2.warpAffine(
            image,
            np.array([[sx, 0, sx / 2 - 0.5], [0, sy, sy / 2 - 0.5]]),
            size[::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    if image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def shrink(
    image: UInt8[np.ndarray, "h w 3"], size: Size, *, reduced: bool
) -> UInt8[np.ndarray, "i j 3"]:
    """`resize`; `reduced`: of means of 2x2, 4x4 or 8x8 pixels where they suffice."""
    h, w = image.shape[:2]
    if not reduced or (n := reduction((h, w), size)) == 1:
        return resize(image, size)
    if h % n or w % n:
        image = cv2.copyMakeBorder(image, 0, -h % n, 0, -w % n, cv2.BORDER_REPLICATE)
    means = (image.shape[1] // n, image.shape[0] // n)
    image = cv2.resize(image, means, interpolation=cv2.INTER_AREA)
    return resize(image, size, (h / n, w / n))


def reduction(size: Size, wanted: Size) -> int:
    """By how much both sides can be divided and not become too small: 1, 2, 4 or 8.

    >>> reduction((3000, 4000), (300, 400)), reduction((480, 640), (300, 400))
    (8, 1)
    """
    ratio = min(s / w for s, w in zip(size, wanted, strict=True))
    return max(n for n in (1, 2, 4, 8) if n <= max(1, ratio))


def load_reduced(
    path: str | bytes, fitted: Callable[[Size], Size], *, name: str = ""
) -> tuple[UInt8[np.ndarray, "i j 3"], Size] | None:
    """A JPEG at the size `fitted(its size)`, and its size; None where it will not do.

    `shrink(reduced=True)` of it within a few levels, decoded at a half, a quarter or an
    eighth, which is faster. The geometry is that of the whole image. It will not do if
    it is no JPEG, turned by its EXIF tag, or less than twice as large.
    """
    head = _head(path)
    size = _jpeg_size(head)
    if size is None or (n := reduction(size, fitted(size))) == 1:
        return None
    image = load_image(path, part=n, name=name)
    return resize(image, fitted(size), (size[0] / n, size[1] / n)), size


def place(
    image: UInt8[np.ndarray, "h w 3"], canvas: Size
) -> UInt8[np.ndarray, "i j 3"]:
    """The image at the top left of a canvas of zeros."""
    out = np.zeros((*canvas, 3), np.uint8)
    out[: image.shape[0], : image.shape[1]] = image
    return out


def prepare(
    image: UInt8[np.ndarray, "h w 3"],
    short_side: int,
    max_side: int,
    canvas: Canvas,
    *,
    reduced: bool = False,
) -> tuple[UInt8[np.ndarray, "i j 3"], Size]:
    """The network's input for one image: the canvas, and the (h, w) it fills of it.

    `reduced` as for `shrink` and as `data.reduced` was in training.
    """
    check_canvas(short_side, max_side, canvas)
    options = canvases(canvas)
    h, w = image.shape[:2]
    chosen = options[choose_canvas((h, w), short_side, max_side, options)]
    size = fit((h, w), short_side, max_side, chosen)
    return place(shrink(image, size, reduced=reduced), chosen), size


def save_image(path: str | os.PathLike, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write an RGB picture; the format is that of the name, folders are made."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        raise OSError(f"cannot write the picture {path}")
