"""One image: decode, resize by the short side, place on a canvas of static size.

One deep thing behind two functions, `load_image` and `prepare`: training, evaluation,
prediction and export get the same pixels at the same places. Nothing here depends on a
data set.
"""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from frcnn_jax.data import headers
from frcnn_jax.data.headers import Size
from frcnn_jax.data.smooth import smooth

MAX_PIXELS = int(os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", 1 << 28))
Canvas = Size | Sequence[Size]  # one static shape, or several to choose from


def load_image(
    path: str | bytes,
    *,
    orient: bool = True,
    part: int = 1,
    name: str = "",
    pixel_range: Sequence[float | int] | None = None,
    completed: list[str] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """The image in a file, or in a file's bytes called `name`, as RGB.

    Grayscale is repeated, transparency dropped, 16 bits scaled to 8, and the picture
    turned upright as its EXIF tag says (not with `orient=False`). With `part` 2, 4 or
    8 that part of each side, rounded up; a JPEG is then not decoded any finer.
    `pixel_range` are the values of more than 8 bits, or signed or floating ones, that
    become 0 and 255. Given a list `completed`, a file that ends before its picture is
    taken as far as it goes, and its name added. FileNotFoundError or, when it cannot be
    decoded to its end, ValueError, both naming the file.
    """
    shown = name if isinstance(path, bytes) else path
    if not isinstance(path, bytes) and not os.path.isfile(path):  # a pipe would hang
        raise FileNotFoundError(f"no image file {path}")
    data = path if isinstance(path, bytes) else _read(path)
    _check_pixels(data, shown)
    if cut := headers.cut_short(data):
        if completed is None:
            raise ValueError(
                f"cannot decode the image {shown} ({len(data)} bytes): cut short, "
                "it ends before its picture does: replace it, or take what there is "
                "with data.cut_short='accept'"
            )
        data = headers.completed(data)
    flags = _PARTS[part] if orient else _AS_STORED
    samples = headers.samples(data) or headers.Samples("uint", 8)
    if samples.kind == "uint" and samples.bits <= 8:
        image = _decoded(data, flags)
    elif pixel_range is not None:
        image = _scaled(_deep(data, orient), pixel_range)
    elif samples == ("uint", 16):
        image = _decoded(data, flags)
    else:
        raise ValueError(_no_range(shown, samples, _deep(data, orient)))
    if image is None:
        raise ValueError(
            f"cannot decode the image {shown} ({len(data)} bytes): the file is "
            "corrupt, cut short or no image; replace it"
        )
    if cut and completed is not None:
        completed.append(shown)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def reading(
    pixel_range: Sequence[float | int] = (), cut_short: str = "error", **_: Any
) -> dict[str, Any]:
    """What `load_image` takes of the group `data` of a configuration.

    >>> reading(pixel_range=(0, 4095), short_side=300)
    {'pixel_range': (0, 4095), 'completed': None}
    """
    return dict(
        pixel_range=pixel_range or None,
        completed=[] if cut_short == "accept" else None,
    )


def _read(path: str) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except FileNotFoundError:  # removed since it was looked for
        raise FileNotFoundError(f"no image file {path}") from None


def _check_pixels(data: bytes, shown: str) -> None:
    h, w = headers.size(data, stored=True) or (0, 0)
    if h * w > MAX_PIXELS:
        raise ValueError(
            f"the image {shown} claims {w}x{h} pixels, more than the {MAX_PIXELS:,} "
            "that are decoded: cut it into parts, or set the environment variable "
            "OPENCV_IO_MAX_IMAGE_PIXELS"
        )


_PARTS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_AS_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


def _decoded(data: bytes, flags: int) -> np.ndarray | None:
    if not data:
        return None
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _deep(data: bytes, orient: bool) -> np.ndarray | None:
    """The values of an image of any sample format as they are, `[h, w, 3]`, BGR."""
    turned = 0 if orient else cv2.IMREAD_IGNORE_ORIENTATION
    image = _decoded(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | turned)
    if image is None:
        image = _decoded(data, cv2.IMREAD_UNCHANGED)
    if image is None:
        return None
    channels = image.shape[2] if image.ndim == 3 else 1
    image = image.reshape(*image.shape[:2], channels)
    return image[..., :3] if channels >= 3 else np.repeat(image[..., :1], 3, axis=-1)


def _scaled(
    image: np.ndarray | None, pixel_range: Any
) -> UInt8[np.ndarray, "h w 3"] | None:
    """Values of `pixel_range` as 0..255, those beyond it at its ends, NaN as 0."""
    low, high = check_pixel_range(pixel_range)
    if image is None or image.dtype == np.uint8:
        return image
    share = (np.nan_to_num(image.astype(np.float64), nan=low) - low) / (high - low)
    return np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)


def check_pixel_range(pixel_range: Any) -> tuple[float, float]:
    """The two values; ValueError unless the second is the larger.

    >>> check_pixel_range((0, 4095))
    (0.0, 4095.0)
    """
    try:
        low, high = (float(v) for v in pixel_range)
    except (TypeError, ValueError):
        low = high = 0.0
    if not low < high < float("inf"):
        raise ValueError(
            f"data.pixel_range={pixel_range!r}: expected two numbers, the values that "
            "become 0 and 255, such as (0, 4095)"
        )
    return low, high


def deep_maximum(image: str | bytes) -> int | None:
    """The largest value of an image of 16 bits a sample; None for any other."""
    if headers.samples(_head(image)) not in (("uint", 16), None):
        return None
    data = image if isinstance(image, bytes) else _read(image)
    if headers.samples(data) != ("uint", 16):
        return None
    deep = _deep(data, orient=True)
    return None if deep is None else int(deep.max())


def _no_range(shown: str, samples: headers.Samples, image: np.ndarray | None) -> str:
    """What to say of an image whose numbers have no brightness by themselves."""
    if image is None:
        return (
            f"the image {shown} has the sample format {samples}, which cannot be "
            "decoded: convert it to 8 or 16 bits without sign"
        )
    finite = image[np.isfinite(image)]
    low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
    return (
        f"the image {shown} has the sample format {samples} with values from "
        f"{low:g} to {high:g}: set data.pixel_range=(LOW, HIGH), the values that "
        "become 0 and 255, or convert it to 8 bits"
    )


def image_size(image: str | bytes, *, name: str = "") -> Size:
    """(h, w) of an upright image, from its header where that says it.

    Anything else is decoded; raises what `load_image` does, but not for a file that is
    cut short or of another sample format.
    """
    if found := headers.size(_head(image)):
        return found
    data = image if isinstance(image, bytes) else _read(image)
    _check_pixels(data, name if isinstance(image, bytes) else image)
    if (found := headers.size(data)) is None and headers.samples(data):
        deep = _deep(data, orient=True)
        found = None if deep is None else deep.shape[:2]
    h, w = found or load_image(image, name=name, completed=[]).shape[:2]
    return h, w


def _head(image: str | bytes) -> bytes:
    if isinstance(image, bytes):
        return image[: headers.LENGTH]
    if not os.path.isfile(image):
        raise FileNotFoundError(f"no image file {image}")
    with open(image, "rb") as file:
        return file.read(headers.LENGTH)


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
    """The canvas that shrinks an image least (the smallest such one), by position.

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
    # Rounding keeps the order, so the least side belongs to the least scale.
    fitted = [min(rounded(side * p, q) for p, q in scales) for side in size]
    return max(1, int(fitted[0])), max(1, int(fitted[1]))


def rounded(numerator: Any, denominator: Any) -> Any:
    """The integer nearest to a quotient of integers; halves are rounded up.

    So Detectron2 and MMDetection round sizes. Takes Python integers, or integer arrays
    whose width holds `2 * denominator`.

    >>> [rounded(n, 2) for n in (1, 2, 3, 5)]
    [1, 1, 2, 3]
    """
    whole, rest = numerator // denominator, numerator % denominator
    return whole + (2 * rest >= denominator)


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


def reduced_of(reduced: bool | str = True, augment: Any = None, **_: Any) -> bool | str:
    """`reduced` of `shrink` and `prepare`, of the group `data` of a configuration.

    Means are off where training augments whole images.

    >>> reduced_of(), reduced_of(augment={"jitter": (0.1, 2)}), reduced_of("smooth")
    (True, False, 'smooth')
    """
    return reduced if reduced == SMOOTH else reduced and not augment


SMOOTH = "smooth"


def shrink(
    image: UInt8[np.ndarray, "h w 3"], size: Size, *, reduced: bool | str
) -> UInt8[np.ndarray, "i j 3"]:
    """`resize`; `reduced`: of means of 2x2, 4x4 or 8x8 pixels where they suffice.

    With "smooth" every pixel is a weighted mean of those it covers, as Pillow's.
    """
    if reduced == SMOOTH:
        return smooth(image, size)
    h, w = image.shape[:2]
    if not reduced or (n := reduction((h, w), size)) == 1:
        return resize(image, size)
    if h % n or w % n:
        image = cv2.copyMakeBorder(image, 0, -h % n, 0, -w % n, cv2.BORDER_REPLICATE)
    means = (image.shape[1] // n, image.shape[0] // n)
    image = cv2.resize(image, means, interpolation=cv2.INTER_AREA)
    return resize(image, size, (h / n, w / n))


def reduction(size: Size, wanted: Size) -> int:
    """The largest of 1, 2, 4, 8 that divides both sides to `wanted` or more.

    >>> reduction((3000, 4000), (300, 400)), reduction((480, 640), (300, 400))
    (8, 1)
    """
    ratio = min(s / w for s, w in zip(size, wanted, strict=True))
    return max(n for n in (1, 2, 4, 8) if n <= max(1, ratio))


def load_reduced(
    path: str | bytes,
    fitted: Callable[[Size], Size],
    *,
    name: str = "",
    **reading: Any,
) -> tuple[UInt8[np.ndarray, "i j 3"], Size] | None:
    """A JPEG at the size `fitted(its size)`, and its size; None where that fails.

    `shrink(reduced=True)` of it within a few levels, decoded at a half, a quarter or an
    eighth, which is faster. The geometry is that of the whole image. It cannot be used
    for a file that is no JPEG, that its EXIF tag turns, or that is less than twice as
    large. `reading` is what `load_image` takes besides.
    """
    head = _head(path)
    size = headers.size(head) if head[:2] == b"\xff\xd8" else None
    if size is None or (n := reduction(size, fitted(size))) == 1:
        return None
    image = load_image(path, part=n, name=name, **reading)
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
    reduced: bool | str = False,
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
    try:  # cv2.imwrite takes UTF-8 names only and does not report a full disk
        made, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise ValueError(f"cannot write the picture {path}: {error.err}") from None
    if not made:
        h, w = image.shape[:2]
        raise ValueError(f"cannot write the picture {path}: {w}x{h} pixels")
    path.write_bytes(data.tobytes())
