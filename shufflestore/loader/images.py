"""Columns of encoded images to pixels, in threads: JPEG through simplejpeg, all else through Pillow.

Both let go of the interpreter while they decode. What Pillow decodes is what counts: simplejpeg gives the same
pixels sooner, and whatever it refuses, or would treat otherwise, goes to Pillow.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from shufflestore.collate.tables import RECORD_ID
from shufflestore.errors import FormatError, MissingDependency, OptionError, SchemaError, UndecodableRecord

__all__ = ["Mode", "decode_image", "decode_images"]

Mode = Literal["RGB", "L"]
"""Pixels of three bytes, or of one, the brightness."""
Transform = Callable[[dict[str, Any]], dict[str, Any]]

_log = logging.getLogger("shufflestore")
_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Of Pillow's, those that it decodes itself: it hands EPS to another program."""
_DEEP: Final = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
"""Pillow's modes of more than a byte a channel, which its own conversion would clip at 255."""
_ORIENTATION: Final = 0x0112  # in Exif
_APP1: Final = 0xE1
_START_OF_SCAN: Final = 0xDA
_SCALES: Final = (8, 4, 2)
_BYTES: Final = (bytes, bytearray, memoryview, type(None))


def decode_images(
    columns: str | Sequence[str],
    *,
    mode: Mode = "RGB",
    format: Literal["torch", "numpy"] = "torch",
    size: int | None = None,
    upright: bool = True,
    threads: int | Executor | None = None,
    then: Callable[[Any], Any] | None = None,
    instead: Callable[[UndecodableRecord], Any] | None = None,
) -> Transform:
    """Return a transform for batches that decodes columns of images: binary ones, or struct {bytes, path}.

    The second kind is what Hugging Face's Image and folders of images are stored as. A column becomes a list, one
    image a record, since images differ in size; None where a record has none. Other columns stay as they are.

    Args:
        columns: Name, or names.
        mode: "RGB" or "L". Alpha is dropped, of an animation the first picture taken.
        format: "torch" for uint8 tensors (channels, height, width), views whose memory is (height, width,
            channels); "numpy" for uint8 arrays (height, width, channels).
        size: Pixels that the shorter side must keep. A JPEG is then decoded at 1/2, 1/4 or 1/8 if it keeps them, which
            costs less; it still has to be resized. Other formats come as they are.
        upright: Turn images as their EXIF orientation says, as Hugging Face does and torchvision's folders do not.
        threads: That decode the images of a batch: a number, None for as many as this process has processors, or
            an executor of the caller's, which must not be the one that runs this transform.
        then: Called with each image in the thread that decoded it; what it returns is delivered. Resize here.
        instead: Called with the error of an image that cannot be decoded; what it returns stands in the image's
            place. None raises the error of the first such image.

    Returns:
        transform(batch), for `transform` of a DataLoader or batches of `Dataset.batches`. It may be called by several
        threads at once, and travels to worker processes, which have threads of their own. It raises
        UndecodableRecord, which says which record of which column, and SchemaError for a column that holds no images.

    Raises:
        OptionError: By name and value.
        MissingDependency: No Pillow, or no torch where tensors are wanted.

    >>> import io, PIL.Image
    >>> file = io.BytesIO()
    >>> PIL.Image.new("RGB", (4, 2), "red").save(file, "PNG")
    >>> batch = decode_images("image", format="numpy")({"image": [file.getvalue(), None], "label": [1, 0]})
    >>> (batch["image"][0].shape, batch["image"][0][0, 0].tolist(), batch["image"][1], batch["label"])
    ((2, 4, 3), [255, 0, 0], None, [1, 0])
    """
    names = (columns,) if isinstance(columns, str) else tuple(columns)
    _check("mode", mode, ("RGB", "L"))
    _check("format", format, ("torch", "numpy"))
    if not names or not all(isinstance(name, str) for name in names):
        raise OptionError(f"columns={columns!r}; the name of a column is needed, or several")
    for what, count in (("size", size), ("threads", threads)):
        is_count = isinstance(count, int) and not isinstance(count, bool) and count > 0
        if not is_count and count is not None and not (what == "threads" and isinstance(count, Executor)):
            raise OptionError(f"{what}={count!r}; an integer of at least 1 is needed")
    for what, function in (("then", then), ("instead", instead)):
        if function is not None and not callable(function):
            raise OptionError(f"{what}={function!r} cannot be called")
    _pillow()
    _simplejpeg()
    return _Columns(names, _Decode(mode, size, upright, format == "torch"), then, instead, threads)


def decode_image(data: Any, mode: Mode = "RGB", size: int | None = None, *, upright: bool = True) -> NDArray[np.uint8]:
    """Return the pixels of one image; see `decode_images`.

    Args:
        data: An encoded image, in any object that has bytes.
        mode: "RGB" or "L".
        size: Pixels that the shorter side must keep.
        upright: Turn it as its EXIF orientation says.

    Returns:
        (height, width, channels), freshly allocated.

    Raises:
        FormatError: Damaged, of no known format, deeper than 8 bits a channel, or of more pixels than Pillow accepts
            (twice `PIL.Image.MAX_IMAGE_PIXELS`).
        MissingDependency: No Pillow.
    """
    if bytes(data[:3]) == b"\xff\xd8\xff":
        fast = _simplejpeg()
        found = None if fast is None else _decode_jpeg(fast, data, mode, size, upright)
        if found is not None:
            return found
    return _decode_any(data, mode, size, upright)


def _decode_jpeg(fast: Any, data: Any, mode: Mode, size: int | None, upright: bool) -> NDArray[np.uint8] | None:
    """Return an ordinary JPEG's pixels; None for one that Pillow must look at."""
    try:
        height, width, color, _ = fast.decode_jpeg_header(data)
        if color in ("CMYK", "YCCK") or height * width > _pixel_limit() or (upright and _is_turned_jpeg(data)):
            return None
        scale = _scale(height, width, size)
        least = {} if scale == 1 else {"min_height": -(-height // scale), "min_width": -(-width // scale)}
        found: NDArray[np.uint8] = fast.decode_jpeg(data, "GRAY" if mode == "L" else "RGB", **least)
    except (ValueError, OSError):
        return None
    return found


def _decode_any(data: Any, mode: Mode, size: int | None, upright: bool) -> NDArray[np.uint8]:
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(data), formats=_known_formats()) as image:
            if image.mode in _DEEP:
                raise FormatError(
                    f"its pixels have more than 8 bits (Pillow's mode {image.mode}), which uint8 would cut off; "
                    "it needs a transform of your own"
                )
            scale = _scale(image.height, image.width, size)
            # Only a JPEG listens. Brightness is what it stores; made from RGB it would differ by rounding.
            image.draft(mode, (image.width // scale, image.height // scale))
            if upright and _is_turned(image):
                image = importlib.import_module("PIL.ImageOps").exif_transpose(image)
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            found = np.array(image if image.mode == mode else image.convert(mode), np.uint8)
    except (FormatError, MemoryError):
        raise
    except Exception as cause:  # each of Pillow's readers has its own for damage
        raise FormatError(f"{type(cause).__name__}: {cause}") from cause
    return found.reshape(*found.shape[:2], -1)


def _scale(height: int, width: int, size: int | None) -> int:
    """Return by how much a JPEG may be made smaller while it is decoded: the powers of two, which are the fast ones."""
    if size is None:
        return 1
    least = max(size, 8)  # simplejpeg goes by the size wanted, and below this several scales have the same
    return next((scale for scale in _SCALES if min(height, width) // scale >= least), 1)


def _is_turned_jpeg(data: Any) -> bool:
    """Whether a JPEG is to be turned. Pillow is asked only if there is a segment (APP1: Exif, XMP) that can say so."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _START_OF_SCAN:
        if data[at + 1] == _APP1:
            with _pillow().open(io.BytesIO(data), formats=("JPEG",)) as image:
                return _is_turned(image)
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return False


def _is_turned(image: Any) -> bool:
    try:
        return bool(image.getexif().get(_ORIENTATION, 1) != 1)
    except Exception:  # damaged metadata do not make an image unreadable
        return False


class _Decode:
    """Bytes to an image as it is delivered."""

    def __init__(self, mode: Mode, size: int | None, upright: bool, is_torch: bool) -> None:
        self._mode, self._size, self._upright, self._is_torch = mode, size, upright, is_torch
        if is_torch:
            _torch()

    def __call__(self, data: Any) -> Any:
        pixels = decode_image(data, self._mode, self._size, upright=self._upright)
        return _torch().from_numpy(pixels).permute(2, 0, 1) if self._is_torch else pixels


class _Columns:
    """The transform. Threads are started when first needed, in each process its own."""

    def __init__(
        self,
        names: tuple[str, ...],
        decode: _Decode,
        then: Callable[[Any], Any] | None,
        instead: Callable[[UndecodableRecord], Any] | None,
        threads: int | Executor | None,
    ) -> None:
        self._names, self._decode, self._then, self._instead, self._threads = names, decode, then, instead, threads
        self._process = os.getpid()
        self._pools: dict[int, Executor] = {}
        """By process: after a fork the parent's threads are not there."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(batch, dict):
            raise OptionError(
                f"decode_images takes a dict of columns, not {type(batch).__name__}: format='torch' or 'numpy'"
            )
        made = dict(batch)
        ids = batch.get(RECORD_ID)
        for name in self._names:
            encoded = _Encoded(name, batch, ids)
            made[name] = self._all(partial(self._one, encoded), len(encoded.data))
        return made

    def _all(self, one: Callable[[int], Any], count: int) -> list[Any]:
        pool = self._pool()
        return [one(i) for i in range(count)] if pool is None else list(pool.map(one, range(count)))

    def _one(self, encoded: _Encoded, position: int) -> Any:
        """Return what is delivered for one record."""
        data = encoded.data[position]
        try:
            if data is None:
                return encoded.absent(position)
            image = self._decode(data)
        except FormatError as cause:
            error = encoded.error(position, cause)
            if self._instead is None:
                raise error from cause
            error.__cause__ = cause
            return self._instead(error)
        if self._then is None:
            return image
        try:
            return self._then(image)
        except Exception as error:
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(encoded.place(position))
            raise

    def _pool(self) -> Executor | None:
        """Return what runs the decoding; None for the calling thread."""
        if isinstance(self._threads, Executor):
            if os.getpid() != self._process:
                raise OptionError(
                    "threads is an executor of another process, whose threads are not in this worker; give a number"
                )
            return self._threads
        count = len(os.sched_getaffinity(0)) if self._threads is None else self._threads
        if count == 1:
            return None
        process = os.getpid()
        found = self._pools.get(process)
        return found or self._pools.setdefault(process, ThreadPoolExecutor(count, "shufflestore-images"))

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self._threads, Executor):
            raise OptionError("threads is an executor, which stays in its process; give a number for worker processes")
        return self.__dict__ | {"_pools": {}}


class _Encoded:
    """One column of a batch before it is decoded."""

    def __init__(self, name: str, batch: dict[str, Any], ids: Any) -> None:
        if name not in batch:
            raise SchemaError(f"no column {name!r} in the batch; there are {sorted(batch)}")
        column = batch[name]
        self.name, self._ids = name, ids
        data: Any = column.get("bytes") if isinstance(column, dict) else column
        wrong = next((d for d in data if not isinstance(d, _BYTES)), None) if isinstance(data, list) else column
        if wrong is not None:
            raise SchemaError(
                f"column {name!r} holds {type(wrong).__name__}, which are no encoded images; those are bytes, "
                "or a struct of bytes and path"
            )
        self.data: list[Any] = data
        paths = column.get("path") if isinstance(column, dict) else None
        self._paths: list[str | None] = [None] * len(data) if paths is None else paths

    def absent(self, position: int) -> None:
        """Return what stands for a record without an image. Raises FormatError if it has one, elsewhere."""
        if self._paths[position] is not None:
            raise FormatError("only a path is stored, no bytes (convert the data set with its images in it)")

    def place(self, position: int) -> str:
        """Return which record it is, in words."""
        record = f"record {position} of its batch (return_ids=True tells its number)"
        if self._ids is not None:
            record = f"record {int(self._ids[position]):,}, number {position} of its batch"
        path = self._paths[position]
        return f"column {self.name!r}, {record}" + (f", {path}" if path is not None else "")

    def error(self, position: int, cause: FormatError) -> UndecodableRecord:
        """Return the error of one record."""
        data = self.data[position]
        what = "it" if data is None else f"its {len(data):,} bytes"
        error = UndecodableRecord(
            f"{self.place(position)}: {what} cannot be decoded as an image: {cause}; leave the record out, or let "
            "decode_images(instead=...) say what stands for it"
        )
        error.column, error.position = self.name, position
        error.record_id = None if self._ids is None else int(self._ids[position])
        return error


def _check(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise OptionError(f"{name}={value!r}; allowed are {list(allowed)}")


# -- what need not be installed --------------------------------------------------------------------


@lru_cache(maxsize=1)
def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as cause:
        raise MissingDependency('decoding images needs Pillow: pip install "shufflestore[images]"') from cause


@lru_cache(maxsize=1)
def _simplejpeg() -> Any:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        _log.info('JPEGs are decoded by Pillow; faster with simplejpeg: pip install "shufflestore[images]"')
        return None


@lru_cache(maxsize=1)
def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as cause:
        raise MissingDependency(
            "images as tensors need torch: pip install \"shufflestore[torch]\", or take format='numpy'"
        ) from cause


@lru_cache(maxsize=1)
def _known_formats() -> tuple[str, ...]:
    pillow = _pillow()
    pillow.init()
    return tuple(name for name in _FORMATS if name in pillow.OPEN)


def _pixel_limit() -> float:
    limit = _pillow().MAX_IMAGE_PIXELS
    return float("inf") if limit is None else 2 * limit
