"""One image has the pixels that Pillow gives it, whichever decoder is at work, and a damaged one is refused."""

from __future__ import annotations

import io
import sys
import threading

import numpy as np
import PIL.Image
import pytest

from shufflestore.errors import FormatError
from shufflestore.loader import images
from shufflestore.loader.images import decode_image
from tests.pictures import HEIGHT, WIDTH, encoded, picture, plainly


@pytest.fixture(params=["simplejpeg", "pillow"])
def decoder(request, monkeypatch):
    """With and without simplejpeg."""
    if request.param == "pillow":
        monkeypatch.setitem(sys.modules, "simplejpeg", None)
    images._simplejpeg.cache_clear()
    yield request.param
    images._simplejpeg.cache_clear()


JPEGS = {
    "444": {"quality": 90, "subsampling": 0},
    "420": {"quality": 90, "subsampling": 2},
    "progressive": {"quality": 60, "progressive": True},
    "optimized": {"quality": 30, "optimize": True},
}


# -- one image -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", JPEGS)
def test_jpegs_have_pillow_s_pixels(decoder, kind):
    data = encoded(picture(), **JPEGS[kind])
    assert np.array_equal(decode_image(data), plainly(data))


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [None, 1, 8, 40, 100])
def test_both_decoders_agree_at_every_size_and_mode(monkeypatch, kind, mode, size):
    for stored in ("RGB", "L"):
        data = encoded(picture(stored, 333, 201), **JPEGS[kind])
        found = decode_image(data, mode, size)
        other = images._decode_any(data, mode, size, upright=True)
        assert found.shape[2] == (3 if mode == "RGB" else 1)
        assert np.array_equal(found, other)


@pytest.mark.parametrize("width", [*range(1, 20), 63, 64, 65])
def test_small_ones_are_the_same_by_both_decoders_too(width):
    for height in {max(1, width - 3), width, width + 5}:
        data = encoded(picture("RGB", width, height))
        for size in (1, 4, 8, 9):
            assert np.array_equal(decode_image(data, "RGB", size), images._decode_any(data, "RGB", size, upright=True))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_other_formats_have_pillow_s_pixels(format, mode):
    data = encoded(picture(), format)
    assert np.array_equal(decode_image(data, mode), plainly(data, mode))


@pytest.mark.parametrize("stored", ["1", "L", "LA", "P", "RGBA"])
def test_every_mode_of_a_png_becomes_rgb(stored):
    data = encoded(picture("RGBA" if stored == "RGBA" else "RGB").convert(stored), "PNG")
    assert np.array_equal(decode_image(data), plainly(data))


def test_a_palette_with_transparency_raises_no_warning():
    data = encoded(picture("P"), "PNG", transparency=bytes(range(256)))
    assert decode_image(data).shape == (HEIGHT, WIDTH, 3)


def test_cmyk_jpegs_are_converted_as_pillow_does(decoder):
    data = encoded(picture("CMYK"))
    assert np.array_equal(decode_image(data), plainly(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_images_are_turned_upright_unless_that_is_unwanted(decoder, orientation, format):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), format, exif=exif)
    assert np.array_equal(decode_image(data), plainly(data))
    assert decode_image(data).shape[:2] == ((HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT))
    unturned = np.array(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode_image(data, upright=False), unturned)


def test_only_jpegs_that_are_turned_leave_the_fast_decoder(monkeypatch):
    turned, straight = PIL.Image.Exif(), PIL.Image.Exif()
    turned[0x0112], straight[0x0112] = 6, 1
    monkeypatch.setattr(images, "_decode_any", lambda *args: pytest.fail("went to Pillow"))
    decode_image(encoded(picture()))
    decode_image(encoded(picture(), exif=straight))
    with pytest.raises(pytest.fail.Exception):
        decode_image(encoded(picture(), exif=turned))


def test_damaged_metadata_do_not_make_an_image_unreadable(decoder):
    data = encoded(picture(), exif=b"Exif\0\0not a TIFF header at all")
    assert decode_image(data).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("size", "height"), [(None, 480), (241, 480), (240, 240), (121, 240), (120, 120), (61, 120), (60, 60), (1, 60)]
)
def test_a_jpeg_is_made_smaller_only_while_its_shorter_side_keeps_the_size(decoder, size, height):
    image = picture("RGB", 640, 480)
    assert decode_image(encoded(image), size=size).shape[:2] == (height, height * 4 // 3)
    assert decode_image(encoded(image), "L", size).shape == (height, height * 4 // 3, 1)
    assert decode_image(encoded(image, "PNG"), size=size).shape[:2] == (480, 640)


GOOD = encoded(picture())
DAMAGED = {
    "empty": b"",
    "short head": GOOD[:10],
    "cut in half": GOOD[: len(GOOD) // 2],
    "no end": GOOD[:-2],
    "only a start": b"\xff\xd8\xff" + b"x" * 100,
    "text": b"<html>not found</html>",
    "png cut": encoded(picture(), "PNG")[:-200],
    "webp cut": encoded(picture(), "WEBP")[:-200],
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_images_are_refused(decoder, kind):
    with pytest.raises(FormatError):
        decode_image(DAMAGED[kind])


def test_what_the_fast_decoder_alone_refuses_is_decoded(decoder):
    data = GOOD[:-2] + b"\0\0" + GOOD[-2:]  # two bytes too many before the end, as some cameras write
    assert np.array_equal(decode_image(data), plainly(data))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_deeper_than_a_byte_are_refused_and_not_clipped(mode):
    deep = PIL.Image.fromarray(np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64))
    for format in ("PNG", "TIFF"):
        with pytest.raises(FormatError, match="more than 8 bits"):
            decode_image(encoded(deep, format), mode)


def test_postscript_is_not_handed_to_another_program():
    with pytest.raises(FormatError, match="UnidentifiedImageError"):
        decode_image(encoded(picture(), "EPS"))


def test_more_pixels_than_pillow_accepts_are_refused_before_memory_is_taken(decoder, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT // 2 - 1)
    with pytest.raises(FormatError, match="DecompressionBomb"):
        decode_image(GOOD)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert decode_image(GOOD).shape == (HEIGHT, WIDTH, 3)


def is_let_go_of(work):
    """Whether this thread gets a turn while another is at work, which nobody makes it give up."""
    began, done = threading.Event(), threading.Event()

    def run():
        began.set()
        work()
        done.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        thread = threading.Thread(target=run)
        thread.start()
        began.wait(60)
        found = not done.is_set()
    finally:
        sys.setswitchinterval(interval)
    thread.join(60)
    return found


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_the_interpreter_is_let_go_of_while_an_image_is_decoded(decoder, format):
    data = encoded(picture("RGB", 900, 600), format)
    decode_image(data)  # what is imported or looked up once
    assert any(is_let_go_of(lambda: decode_image(data)) for _ in range(20))
    assert not is_let_go_of(lambda: sum(range(1_000_000)))
