"""Small pictures, encoded, and what Pillow makes of them."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import PIL.ImageOps

WIDTH, HEIGHT = 61, 37


def picture(mode="RGB", width=WIDTH, height=HEIGHT, seed=0):
    """A gradient with texture: no channel, row or column equals another."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    channels = [(x * (3 + c) + y * (5 - c) + rng.integers(0, 30, (height, width))) % 256 for c in range(3)]
    return PIL.Image.fromarray(np.stack(channels, -1).astype(np.uint8)).convert(mode)


def encoded(image, format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def plainly(data, mode="RGB"):
    """What Pillow makes of an image."""
    image = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    return np.array(image.convert(mode)).reshape(image.height, image.width, -1)


FILES = [encoded(picture(seed=i), "PNG" if i % 3 == 0 else "JPEG") for i in range(40)]
"""PNG and JPEG, no two alike."""
