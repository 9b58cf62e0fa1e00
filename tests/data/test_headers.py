"""Sizes, ends and sample formats from bytes, and what a cut file is completed to."""

import struct

import cv2
import numpy as np
import pytest

from frcnn_jax.data import headers, images

FORMATS = {"uint": 1, "int": 2, "float": 3, "complex": 6}


def tiff(pixels, order="<"):
    """A TIFF of one strip, written by hand: its directory stands at the end."""
    h, w, channels = (*pixels.shape, 1)[:3]
    kind = {"u": 1, "i": 2, "f": 3, "c": 6}[pixels.dtype.kind]
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    start = 8 + len(data)
    entries = [
        (256, 1, w),
        (257, 1, h),
        (258, 1, 8 * pixels.dtype.itemsize),
        (259, 1, 1),
        (262, 1, 2 if channels == 3 else 1),
        (273, 1, 8),
        (277, 1, channels),
        (278, 1, h),
        (279, 1, len(data)),
        (339, 1, kind),
    ]
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    out += data + struct.pack(order + "H", len(entries))
    for tag, count, value in entries:
        wide = tag in (273, 279)
        body = struct.pack(
            order + ("I" if wide else "HH"), *([value] if wide else [value, 0])
        )
        out += struct.pack(order + "HHI", tag, 4 if wide else 3, count) + body
    return out + bytes(4)


RAMP = np.linspace(0, 1, 12 * 20).reshape(12, 20)
KINDS = [np.float32, np.float64, np.int32, np.uint32, np.int16, np.int8]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", KINDS)
def test_other_sample_formats_need_a_range(tmp_path, kind, order):
    values = (RAMP * 100 - 20).astype(kind)
    if np.dtype(kind).kind == "u":
        values = (RAMP * 100).astype(kind)
    path = tmp_path / "scan.tif"
    path.write_bytes(tiff(values, order))
    assert images.image_size(str(path)) == (12, 20)
    low, high = f"{values.min():g}", f"{values.max():g}"
    with pytest.raises(ValueError, match="sample format") as error:
        images.load_image(str(path))
    text = str(error.value)
    assert (
        f"scan.tif has the sample format {headers.samples(path.read_bytes())}" in text
    )
    assert f"from {low} to {high}: set data.pixel_range" in text
    assert "corrupt" not in text and "\n" not in text
    found = images.load_image(
        str(path), pixel_range=(float(values.min()), float(values.max()))
    )
    share = (values - float(values.min())) / (float(values.max()) - float(values.min()))
    np.testing.assert_array_equal(found, np.rint(255 * share)[..., None].repeat(3, -1))
    half = images.load_image(str(path), pixel_range=(float(values.max()), 10_000.0))
    assert not half.any()  # what is below the range is 0


def test_a_sample_format_that_no_one_decodes_says_so():
    for pixels in (RAMP.astype(np.complex64), RAMP.astype(np.float16)):
        with pytest.raises(
            ValueError, match="sample format .*cannot be decoded: convert"
        ):
            images.load_image(tiff(pixels), name="x")


def test_floats_that_are_not_finite():
    values = RAMP.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    with pytest.raises(ValueError, match="values from 0.0125523 to 1:"):
        images.load_image(tiff(values), name="x")
    found = images.load_image(tiff(values), name="x", pixel_range=(0, 1))
    assert found[0, :3, 0].tolist() == [0, 255, 0]


def test_twelve_bits_in_sixteen():
    deep = (RAMP * 4095).astype(np.uint16)
    for data in (cv2.imencode(".png", deep)[1].tobytes(), tiff(deep)):
        assert headers.samples(data) == ("uint", 16)
        dark = images.load_image(data)
        assert dark.max() == 15  # of 255
        bright = images.load_image(data, pixel_range=(0, 4095))
        np.testing.assert_array_equal(bright[..., 0], np.rint(deep / 4095 * 255))
    plain = cv2.imencode(".png", (RAMP * 255).astype(np.uint8))[1].tobytes()
    same = images.load_image(plain, pixel_range=(0, 4095))
    np.testing.assert_array_equal(same, images.load_image(plain))


@pytest.mark.parametrize("given", [(1, 1), (5, 2), (0,), "ab", (0, float("nan")), 3])
def test_a_range_is_two_rising_numbers(given):
    with pytest.raises(ValueError, match="data.pixel_range=.*two numbers"):
        images.check_pixel_range(given)


# --------------------------------------------------------------------- files cut short


def smooth(h=60, w=80):
    y, x = np.mgrid[:h, :w]
    return np.stack([255 * x / w, 255 * y / h, 40 + 0 * x], -1).astype(np.uint8)


def encoded(suffix, *params):
    return cv2.imencode(suffix, smooth()[..., ::-1], params)[1].tobytes()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
@pytest.mark.parametrize("missing", [1, 2, 5, 12, 40])
def test_a_few_bytes_missing_are_made_up_for_if_told_so(tmp_path, suffix, missing):
    path = tmp_path / f"short{suffix}"
    path.write_bytes(encoded(suffix)[:-missing])
    with pytest.raises(
        ValueError, match=rf"short\{suffix} .*cut short.*data.cut_short='accept'"
    ):
        images.load_image(str(path))
    assert images.image_size(str(path)) == (60, 80)
    names = []
    found = images.load_image(str(path), completed=names).astype(int)
    assert names == [str(path)]
    assert np.abs(found - smooth())[:40].mean() < 3  # the lower rows may be gone
    whole = []
    images.load_image(encoded(suffix), completed=whole)
    assert whole == []


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_half_a_picture_is_half_right(suffix):
    data = encoded(suffix)
    found = images.load_image(data[: len(data) * 3 // 4], completed=[]).astype(int)
    rows = slice(30, 60) if suffix == ".bmp" else slice(0, 20)  # BMPs begin below
    assert found.shape == (60, 80, 3)
    assert np.abs(found - smooth())[rows].mean() < 4


def test_what_cannot_be_completed_is_an_error_all_the_same():
    for data in (
        encoded(".jpg")[:30],
        encoded(".png")[:20],
        encoded(".webp")[:-9],
        b"",
    ):
        names = []
        with pytest.raises(ValueError, match="cannot decode the image x"):
            images.load_image(data, name="x", completed=names)
        assert names == []


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_any_bytes_get_an_answer(rng, suffix):
    data = encoded(suffix)
    for _ in range(60):
        bad = bytearray(data[: rng.integers(1, len(data) + 1)])
        for at in rng.integers(0, min(len(bad), 200), rng.integers(0, 6)):
            bad[at] = rng.integers(256)
        bad = bytes(bad)
        headers.size(bad), headers.samples(bad), headers.cut_short(bad)
        assert isinstance(headers.completed(bad), bytes)


def test_a_png_that_claims_much_is_not_inflated():
    data = bytearray(encoded(".png")[:-30])
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    assert headers.completed(bytes(data)) == bytes(data)
