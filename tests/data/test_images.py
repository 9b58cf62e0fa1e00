"""Decoding and resizing single images."""

import base64
import struct

import cv2
import numpy as np
import pytest

from frcnn_jax.data import headers, images


def gradient(h, w):
    """Smooth in both axes, other in every channel, so that any mix-up shows."""
    y, x = np.mgrid[:h, :w]
    return np.stack([255 * x / w, 255 * y / h, 40 + 0 * x], -1).astype(np.uint8)


def write(path, rgb, *params):
    assert cv2.imwrite(str(path), rgb[..., ::-1] if rgb.ndim == 3 else rgb, params)
    return str(path)


def with_orientation(jpeg: bytes, tag: int) -> bytes:
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, tag, 0)
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 1) + entry + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def test_colours_are_rgb(tmp_path):
    image = gradient(20, 30)
    png = write(tmp_path / "a.png", image)
    np.testing.assert_array_equal(images.load_image(png), image)
    jpeg = images.load_image(write(tmp_path / "a.jpg", image))
    assert np.abs(jpeg.astype(int) - image).mean() < 4


def test_gray_alpha_and_sixteen_bits_become_rgb_of_eight(tmp_path):
    gray = gradient(8, 9)[..., 0]
    found = images.load_image(write(tmp_path / "gray.png", gray))
    np.testing.assert_array_equal(found, np.repeat(gray[..., None], 3, axis=-1))

    deep = gray.astype(np.uint16) * 256
    found = images.load_image(write(tmp_path / "deep.png", deep))
    np.testing.assert_array_equal(found, np.repeat(gray[..., None], 3, axis=-1))

    colour = gradient(8, 9)
    bgra = np.dstack([colour[..., ::-1], np.full((8, 9), 7, np.uint8)])
    cv2.imwrite(str(tmp_path / "alpha.png"), bgra)
    np.testing.assert_array_equal(images.load_image(f"{tmp_path}/alpha.png"), colour)


def test_exif_turns_the_picture_upright(tmp_path):
    image = gradient(16, 32)
    data = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
    path = tmp_path / "turned.jpg"
    path.write_bytes(with_orientation(data, 6))  # to be turned clockwise
    upright = images.load_image(str(path))
    assert upright.shape == (32, 16, 3)
    assert np.abs(upright.astype(int) - np.rot90(image, -1)).mean() < 4
    assert images.load_image(str(path), orient=False).shape == (16, 32, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
def test_a_file_cut_short_is_an_error_that_names_it(tmp_path, rng, suffix, kept):
    noise = rng.integers(0, 256, (60, 80, 3), np.uint8)
    data = cv2.imencode(suffix, noise)[1].tobytes()
    path = tmp_path / f"short{suffix}"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match=rf"short\{suffix}.*cut short"):
        images.load_image(str(path))


def test_a_cut_jpeg_is_seen_before_decoding(rng):
    # OpenCV 4 decodes these without complaint, the rest gray.
    noise = rng.integers(0, 256, (60, 80, 3), np.uint8)
    for flags in ((), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)):
        data = cv2.imencode(".jpg", noise, flags)[1].tobytes()
        assert not headers.cut_short(data)
        assert not headers.cut_short(data + b"\0\1\2")
        assert headers.cut_short(data[:-2])
        assert headers.cut_short(data[: len(data) // 2])


def with_thumbnail(jpeg: bytes, thumbnail: bytes) -> bytes:
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    return jpeg[:2] + segment + jpeg[2:]


@pytest.mark.parametrize("progressive", [0, 1])
def test_what_follows_the_picture_of_a_jpeg_does_not_matter(rng, progressive):
    noise = rng.integers(0, 256, (60, 80, 3), np.uint8)
    params = (cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    data = cv2.imencode(".jpg", noise, params)[1].tobytes()
    data = with_thumbnail(data, cv2.imencode(".jpg", noise[:9, :9])[1].tobytes())
    expected = images.load_image(data)
    assert expected.shape == noise.shape
    trailers = [rng.bytes(30_000) for _ in range(20)]  # a scan's start is in some
    assert any(t.rfind(b"\xff\xd9") < t.rfind(b"\xff\xda") for t in trailers)
    for trailer in (b"\xff\xda", b"\xff", *trailers):
        np.testing.assert_array_equal(images.load_image(data + trailer), expected)
    short = [data[: int(len(data) * part)] for part in np.linspace(0.01, 0.999, 20)]
    for cut in (data[:-1], data[:3], *short):
        assert headers.cut_short(cut)


def test_odd_bytes_between_the_segments_of_a_jpeg_are_stepped_over():
    data = cv2.imencode(".jpg", gradient(16, 24))[1].tobytes()
    for odd in (b"\xff\xff", b"\0\0", b"\xff\x01", b"\xff\0"):
        odd_data = data[:2] + odd + data[2:]
        assert not headers.cut_short(odd_data)
        assert headers.cut_short(odd_data[:-2])


def test_garbage_and_missing_files_are_named(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ValueError, match="text.jpg"):
        images.load_image(str(tmp_path / "text.jpg"))
    with pytest.raises(FileNotFoundError, match="absent.jpg"):
        images.load_image(str(tmp_path / "absent.jpg"))


@pytest.mark.parametrize(
    "size, expected",
    [
        ((480, 640), (300, 400)),  # the short side decides
        ((640, 480), (400, 300)),
        ((100, 400), (125, 500)),  # the cap decides
        ((400, 100), (400, 100)),  # the canvas decides: 400 high
        ((30, 30), (300, 300)),  # small ones grow
        ((1, 5000), (1, 500)),  # never an empty side
    ],
)
def test_size_after_resizing(size, expected):
    assert images.fit(size, 300, 500, (400, 500)) == expected


def test_every_size_fits_its_canvas(rng):
    for _ in range(500):
        size = tuple(rng.integers(1, 3000, 2).tolist())
        h, w = images.fit(size, 300, 500, (320, 512))
        assert 1 <= h <= 320 and 1 <= w <= 512
        assert min(h, w) <= 300 and max(h, w) <= 500


def test_prepare_places_the_image_at_the_top_left():
    image = gradient(48, 64)
    canvas, size = images.prepare(image, 24, 40, (32, 40))
    assert canvas.shape == (32, 40, 3) and canvas.dtype == np.uint8
    assert size == (24, 32)
    assert not canvas[24:].any() and not canvas[:, 32:].any()
    # Halving bilinearly is the mean of two by two pixels.
    mean = image.reshape(24, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(canvas[:24, :32] - mean).max() <= 1


def test_prepare_leaves_the_right_size_alone():
    image = gradient(32, 40)
    canvas, size = images.prepare(image, 32, 40, (32, 40))
    assert size == (32, 40)
    np.testing.assert_array_equal(canvas, image)


@pytest.mark.parametrize("canvas", [(290, 600), (300, 499), (200, 200)])
def test_a_canvas_too_small_is_an_error(canvas):
    with pytest.raises(ValueError, match="canvas=.*short_side=300.*max_side=500"):
        images.check_canvas(300, 500, canvas)


def test_a_canvas_may_stand_or_lie():
    images.check_canvas(300, 500, (300, 500))
    images.check_canvas(300, 500, (500, 300))
    with pytest.raises(ValueError, match="short_side=600.*max_side=500"):
        images.check_canvas(600, 500, (900, 900))


# --------------------------------------------------------------------- sizes, canvases


@pytest.mark.parametrize("orientation", [0, 1, 3, 6, 8])
def test_the_size_of_a_header_is_that_of_the_decoded_image(tmp_path, orientation):
    image = np.zeros((16, 40, 3), np.uint8)
    data = cv2.imencode(".jpg", image)[1].tobytes()
    if orientation:
        data = with_orientation(data, orientation)
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    expected = (40, 16) if orientation in (6, 8) else (16, 40)
    assert images.load_image(str(path)).shape[:2] == expected
    assert images.image_size(str(path)) == images.image_size(data) == expected


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "jpg"])
def test_sizes_of_other_formats(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", np.zeros((300, 17, 3), np.uint8))
    assert images.image_size(path) == (300, 17)


def test_the_size_of_a_plain_header_needs_no_pixels(monkeypatch):
    data = cv2.imencode(".jpg", np.zeros((16, 40, 3), np.uint8))[1].tobytes()
    monkeypatch.setattr(images, "load_image", None)
    assert images.image_size(with_orientation(data, 1)) == (16, 40)


def test_the_size_of_no_image_is_an_error():
    with pytest.raises(ValueError, match="cannot decode the image x"):
        images.image_size(b"\xff\xd8\xff\xe0 and no more", name="x")
    with pytest.raises(FileNotFoundError, match="no image file"):
        images.image_size("absent.jpg")


# ----------------------------------------------------------------------- reduced sizes


def painted(size, box):
    """A bright rectangle on dark ground."""
    image = np.full((*size, 3), 20, np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = 230
    return image


def edges(image):
    """x1, y1, x2, y2 of the rectangle, to a fraction of a pixel: levels are areas."""
    level = (image[..., 1].astype(float) - 20) / 210
    out = []
    for axis in (0, 1):
        profile = level.max(axis=axis)
        inside = np.flatnonzero(profile > 0.5)
        a, b = inside[0], inside[-1]
        out.append((a + 1 - profile[: a + 1].sum(), b + profile[b:].sum()))
    (x1, x2), (y1, y2) = out
    return np.array([x1, y1, x2, y2])


@pytest.mark.parametrize("size", [(1000, 1400), (1003, 1397), (1601, 999)])
@pytest.mark.parametrize("short_side", [110, 220, 440])
def test_what_is_decoded_smaller_lies_where_it_should(size, short_side):
    box = (301, 199, 697, 803)
    data = cv2.imencode(".jpg", painted(size, box), (cv2.IMWRITE_JPEG_QUALITY, 98))[1]

    def fitted(size):
        return images.fit(size, short_side, 10**4, (10**4, 10**4))

    found, original = images.load_reduced(data.tobytes(), fitted)
    assert original == size and found.shape[:2] == fitted(size)
    scale = np.array(fitted(size)[::-1] * 2) / np.array(size[::-1] * 2)
    np.testing.assert_allclose(edges(found), box * scale, atol=0.15)
    # The same picture of any format, and of an array, through means of pixels.
    means = images.shrink(painted(size, box), fitted(size), reduced=True)
    np.testing.assert_allclose(edges(means), box * scale, atol=0.15)
    assert np.abs(means.astype(int) - found).max() <= 25  # at the sharp edges
    assert np.abs(means.astype(int) - found).mean() < 0.5


def test_reduction_is_left_where_it_would_be_wrong():
    data = cv2.imencode(".jpg", gradient(80, 120))[1].tobytes()

    def to(*size):
        return lambda _: size

    assert images.load_reduced(data, to(40, 60))[0].shape == (40, 60, 3)
    assert images.load_reduced(data, to(41, 60)) is None
    assert images.load_reduced(with_orientation(data, 6), to(10, 10)) is None
    png = cv2.imencode(".png", gradient(80, 120))[1].tobytes()
    assert images.load_reduced(png, to(10, 10)) is None
    with pytest.raises(ValueError, match="cannot decode the image x .*cut short"):
        images.load_reduced(data[:-99], to(10, 10), name="x")


@pytest.mark.parametrize("part", [2, 4, 8])
def test_parts_are_the_mean_of_their_pixels(part):
    image = gradient(96, 160)
    data = cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 98))[1]
    small = images.load_image(data.tobytes(), part=part)
    means = image.reshape(96 // part, part, 160 // part, part, 3).mean((1, 3))
    assert np.abs(small - means).mean() < 2


def test_prepare_reduced_is_what_the_pipeline_reads(tmp_path):
    path = write(tmp_path / "a.jpg", gradient(300, 400))
    options = dict(short_side=60, max_side=90, canvas=(64, 96))
    canvas, size = images.prepare(images.load_image(path), **options, reduced=True)
    read, original = images.load_reduced(
        path, lambda s: images.fit(s, 60, 90, (64, 96))
    )
    assert size == read.shape[:2] and original == (300, 400)
    assert np.abs(canvas[: size[0], : size[1]].astype(int) - read).mean() < 1


# ------------------------------------------------------------------- files as they come

# Red (200, 40, 60) beside green (20, 160, 90), as a CMYK JPEG of Pillow's.
CMYK = """
/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwACAQEBAQECAQEBAgICAgIEAwICAgIFBAQDBAYFBgYGBQYGBgcJ
CAYHCQcGBggLCAkKCgoKCgYICwwLCgwJCgoK/8AAFAgAEAAYBEMRAE0RAFkRAEsRAP/EAB8AAAEFAQEB
AQEBAAAAAAAAAAABAgMEBQYHCAkKC//EALUQAAIBAwMCBAMFBQQEAAABfQECAwAEEQUSITFBBhNRYQci
cRQygZGhCCNCscEVUtHwJDNicoIJChYXGBkaJSYnKCkqNDU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVm
Z2hpanN0dXZ3eHl6g4SFhoeIiYqSk5SVlpeYmZqio6Slpqeoqaqys7S1tre4ubrCw8TFxsfIycrS09TV
1tfY2drh4uPk5ebn6Onq8fLz9PX29/j5+v/aAA4EQwBNAFkASwAAPwD9IK/J+vzvr9/K/Jf/AIOjf+aG
f9zN/wC4mvvD/giZ/wA1M/7gv/t9XefBL/mJ/wDbH/2pRX5L194V3lFf1oV+D9eD0V+S/wDwdG/80M/7
mb/3E194f8ETP+amf9wX/wBvq7z4Jf8AMT/7Y/8AtSivyXr7wrvKK//Z
"""


def test_a_cmyk_jpeg_becomes_rgb():
    found = images.load_image(base64.b64decode(CMYK)).astype(int)
    assert found.shape == (16, 24, 3)
    assert np.abs(found[:, :10] - (200, 40, 60)).max() < 12
    assert np.abs(found[:, 14:] - (20, 160, 90)).max() < 12


def test_a_suffix_need_not_say_what_a_file_is(tmp_path):
    image = gradient(20, 30)
    for real, suffix in ((".png", ".jpg"), (".jpg", ".PNG"), (".png", ".JPEG")):
        path = tmp_path / f"Überall 写真{suffix}"
        path.write_bytes(cv2.imencode(real, image[..., ::-1])[1].tobytes())
        assert np.abs(images.load_image(str(path)).astype(int) - image).mean() < 4
        assert images.image_size(str(path)) == (20, 30)


def test_a_folder_is_no_image(tmp_path):
    for read in (images.load_image, images.image_size):
        with pytest.raises(FileNotFoundError, match="no image file"):
            read(str(tmp_path))
