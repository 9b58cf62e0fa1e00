"""Decoding and resizing single images."""

import struct

import cv2
import numpy as np
import pytest

from frcnn_jax.data import images


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
        data = cv2.imencode(".jpg", noise, flags)[1]
        assert not images._cut_short(data)
        assert not images._cut_short(np.append(data, np.uint8([0, 1, 2])))
        assert images._cut_short(data[:-2])
        assert images._cut_short(data[: data.size // 2])


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
    short = [data[: int(len(data) * part)] for part in np.linspace(0, 0.999, 20)]
    for cut in (data[:-1], data[:3], *short):
        assert images._cut_short(np.frombuffer(cut, np.uint8))


def test_odd_bytes_between_the_segments_of_a_jpeg_are_stepped_over():
    data = cv2.imencode(".jpg", gradient(16, 24))[1].tobytes()
    for odd in (b"\xff\xff", b"\0\0", b"\xff\x01", b"\xff\0"):
        odd_data = np.frombuffer(data[:2] + odd + data[2:], np.uint8)
        assert not images._cut_short(odd_data)
        assert images._cut_short(odd_data[:-2])


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
