"""A batch of 64 JPEGs of about 100 KB (500 x 375 pixels) to pixels, beside the decoders alone, in 1 and 2 threads.

python -m pytest benchmarks/micro/bench_images.py --benchmark-enable
"""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import numpy as np
import PIL.Image
import pytest
import simplejpeg

import shufflestore as ss
from shufflestore.loader.images import decode_images

pytestmark = pytest.mark.benchmark(group="images")
COUNT = 64
HEIGHT, WIDTH = 375, 500
THREADS = pytest.mark.parametrize("threads", [1, 2], ids="threads={}".format)


@lru_cache(maxsize=1)
def files() -> list[bytes]:
    """Return pictures with the spectrum of photographs, whose power falls with the square of the frequency."""
    made = []
    for seed in range(COUNT):
        rng = np.random.default_rng(seed)
        frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
        frequency[0, 0] = 1
        spectra = [np.fft.rfft2(rng.standard_normal((HEIGHT, WIDTH))) / frequency**1.1 for _ in range(4)]
        brightness, *colors = (f / f.std() for f in (np.fft.irfft2(s, (HEIGHT, WIDTH)) for s in spectra))
        pixels = np.stack([128 + 42 * brightness + 18 * color for color in colors], -1)
        file = io.BytesIO()
        PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made


def by_pillow(data: bytes) -> Any:
    """As a data set of image files does it."""
    return np.array(PIL.Image.open(io.BytesIO(data)).convert("RGB"))


def check(images: list[Any]) -> None:
    """Hold a few against Pillow."""
    assert len(images) == COUNT
    for number in (0, 1, COUNT - 1):
        assert np.array_equal(images[number], by_pillow(files()[number]))


def note(benchmark: Any) -> None:
    """Note images a second."""
    if benchmark.stats:
        benchmark.extra_info["images_per_second"] = round(COUNT / benchmark.stats["median"])
        benchmark.extra_info["mean_kb"] = round(sum(map(len, files())) / COUNT / 1000)


@THREADS
@pytest.mark.parametrize("decode", [simplejpeg.decode_jpeg, by_pillow], ids=["simplejpeg", "pillow"])
def test_decoder_alone(benchmark: Any, decode: Callable[[bytes], Any], threads: int) -> None:
    """Nothing but the decoder, file after file."""
    files()
    if threads == 1:
        images = benchmark(lambda: [decode(data) for data in files()])
    else:
        with ThreadPoolExecutor(threads) as pool:
            images = benchmark(lambda: list(pool.map(decode, files())))
    check(images)
    note(benchmark)


@THREADS
def test_decode_images(benchmark: Any, threads: int) -> None:
    """The transform."""
    transform = decode_images("image", format="numpy", threads=threads)
    made = benchmark(transform, {"image": {"bytes": files(), "path": [None] * COUNT}})
    check(made["image"])
    note(benchmark)


@pytest.mark.parametrize("size", [120, 60], ids="size={}".format)
def test_decode_smaller(benchmark: Any, size: int) -> None:
    """The transform, where the shorter side of 375 pixels need not keep more than `size`; one thread."""
    transform = decode_images("image", format="numpy", threads=1, size=size)
    made = benchmark(transform, {"image": files()})
    assert {min(image.shape[:2]) // size for image in made["image"]} == {1}
    note(benchmark)


@THREADS
def test_loader(benchmark: Any, threads: int, tmp_path: Any) -> None:
    """An epoch of shuffled batches from a store, decoded while the last one is looked at."""
    ss.convert([{"image": data} for data in files()], tmp_path / "store")
    transform = decode_images("image", format="numpy", threads=threads)
    with ss.DataLoader(
        tmp_path / "store", 16, shuffle=True, format="numpy", transform=transform, return_ids=True
    ) as loader:
        batches = benchmark(partial(list, loader))
    images = {
        i: image for batch in batches for i, image in zip(batch["record_id"].tolist(), batch["image"], strict=True)
    }
    check([images[i] for i in range(COUNT)])
    note(benchmark)
