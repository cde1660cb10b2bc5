"""Whatever bytes an image column holds, decoding them gives pixels or a FormatError, never another error or a crash."""

from __future__ import annotations

import warnings

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shufflestore.errors import FormatError
from shufflestore.loader.images import decode_image
from tests.pictures import encoded, picture

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
WHOLE = {format: encoded(picture("RGB", 40, 30), format) for format in FORMATS}
DAMAGE = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6)
"""(where, what is written there)."""


@given(st.sampled_from(FORMATS), DAMAGE, st.floats(0, 1), st.sampled_from(["RGB", "L"]), st.sampled_from([None, 8]))
def test_damaged_images_are_pixels_or_a_format_error(format, damage, kept, mode, size):
    data = bytearray(WHOLE[format])
    for where, value in damage:
        data[int(where * len(data))] = value
    cut = bytes(data[: int(kept * len(data))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata
        for bytes_ in (cut, bytes(data)):
            try:
                found = decode_image(bytes_, mode, size)
            except FormatError:
                continue
            assert found.dtype == np.uint8
            assert found.ndim == 3
            assert found.shape[2] == (3 if mode == "RGB" else 1)
