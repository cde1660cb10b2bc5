"""Columns of images are decoded in any threads and processes, each record gets its own, and a damaged one is named."""

from __future__ import annotations

import json
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch

import shufflestore as ss
from shufflestore.errors import MissingDependency, OptionError, SchemaError, UndecodableRecord
from shufflestore.loader import images
from shufflestore.loader.images import decode_images
from tests.pictures import FILES, HEIGHT, WIDTH, plainly


def is_same(made, data):
    return np.array_equal(made, plainly(data))


def executors():
    with ThreadPoolExecutor(3) as pool:
        yield from (1, 2, None, pool)


def test_each_record_gets_its_own_image_in_any_threads():
    for threads in executors():
        made = decode_images("image", format="numpy", threads=threads)({"image": FILES})["image"]
        assert len(made) == len(FILES)
        assert all(map(is_same, made, FILES)), threads


def test_tensors_are_channels_first_over_the_decoded_memory():
    made = decode_images("image")({"image": FILES[:2]})["image"]
    assert [(t.dtype, tuple(t.shape)) for t in made] == [(torch.uint8, (3, HEIGHT, WIDTH))] * 2
    assert np.array_equal(made[1].permute(1, 2, 0).numpy(), plainly(FILES[1]))
    made[0][:] = 0  # may be written to
    assert decode_images("image", mode="L")({"image": FILES[:1]})["image"][0].shape == (1, HEIGHT, WIDTH)


def test_records_without_an_image_are_none_and_other_columns_stay_themselves():
    batch = {"image": {"bytes": [FILES[0], None], "path": ["a.png", None]}, "label": [1, 2], "raw": [b"1", b"2"]}
    made = decode_images("image", format="numpy")(batch)
    assert made["image"][1] is None
    assert is_same(made["image"][0], FILES[0])
    assert made["label"] is batch["label"]
    assert made["raw"] is batch["raw"]
    assert batch["image"]["bytes"][0] is FILES[0], "the batch given is not changed"


def test_several_columns_are_decoded():
    made = decode_images(["a", "b"], format="numpy")({"a": FILES[:2], "b": {"bytes": FILES[2:4], "path": [None] * 2}})
    assert all(map(is_same, made["a"] + made["b"], FILES[:4]))


def test_then_is_called_with_each_image_in_the_threads_that_decode():
    seen = set()
    both = threading.Barrier(2, timeout=60)

    def then(image):
        both.wait()  # two images are in the user's hands at once
        seen.add(threading.get_ident())
        return image.shape

    made = decode_images("image", threads=2, then=then)({"image": FILES[:8]})
    assert made["image"] == [(3, HEIGHT, WIDTH)] * 8
    assert len(seen) == 2
    assert threading.get_ident() not in seen


# -- errors ----------------------------------------------------------------------------------------

BAD = [FILES[0], FILES[1][:-40], FILES[2], b"junk"]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("ids", [None, np.array([5, 1234, 7, 9]), torch.tensor([5, 1234, 7, 9])])
def test_the_first_damaged_image_is_named_by_column_and_record(ids, threads):
    batch = {"image": {"bytes": BAD, "path": ["a", "b/c.jpg", "d", None]}}
    if ids is not None:
        batch["record_id"] = ids
    with pytest.raises(UndecodableRecord) as caught:
        decode_images("image", threads=threads)(batch)
    error = caught.value
    assert (error.column, error.position, error.record_id) == ("image", 1, None if ids is None else 1234)
    expected = "record 1 of its batch" if ids is None else "record 1,234, number 1 of its batch"
    assert str(error).startswith(f"column 'image', {expected}")
    assert "b/c.jpg" in str(error)
    assert f"its {len(BAD[1]):,} bytes cannot be decoded" in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.column, copy.position, copy.record_id, str(copy)) == ("image", 1, error.record_id, str(error))


def test_the_caller_says_what_stands_for_damaged_images():
    errors = []

    def instead(error):
        errors.append((error.position, error.record_id))
        return "none"

    transform = decode_images("image", format="numpy", threads=1, instead=instead)
    made = transform({"image": BAD, "record_id": np.arange(10, 14)})["image"]
    assert (made[1], made[3]) == ("none", "none")
    assert is_same(made[2], BAD[2])
    assert errors == [(1, 11), (3, 13)]


def test_an_image_that_is_elsewhere_is_an_error_and_not_a_missing_one():
    with pytest.raises(UndecodableRecord, match=r"/data/a\.jpg.*only a path is stored"):
        decode_images("image")({"image": {"bytes": [None], "path": ["/data/a.jpg"]}})


def test_an_error_of_the_user_s_own_code_stays_what_it_is():
    def then(image):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        decode_images("image", then=then, instead=lambda error: None)({"image": FILES[:1], "record_id": [77]})
    notes = getattr(caught.value, "__notes__", ["column 'image', record 77"])
    assert "column 'image', record 77" in notes[0]


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"other": 1}, r"no column 'image'.*\['other'\]"),
        ({"image": np.zeros(3)}, "holds ndarray"),
        ({"image": ["text"]}, "holds str"),
        ({"image": {"a": [b""]}}, "holds dict"),
    ],
)
def test_columns_that_hold_no_images_are_refused(batch, words):
    with pytest.raises(SchemaError, match=words):
        decode_images("image")(batch)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "RGBA"}, {"format": "arrow"}, {"size": 0}, {"size": 2.5}, {"size": (1, 2)}, {"threads": 0},
        {"threads": True}, {"threads": "auto"}, {"then": 3}, {"instead": "none"}, {"columns": []}, {"columns": [1]},
    ],
)  # fmt: skip
def test_arguments_outside_their_range_are_refused_by_name(wrong):
    with pytest.raises(OptionError, match=f"{next(iter(wrong))}="):
        decode_images(**{"columns": "image"} | wrong)


def test_without_pillow_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    images._pillow.cache_clear()
    try:
        with pytest.raises(MissingDependency, match=r"pip install \"shufflestore\[images\]\""):
            decode_images("image")
    finally:
        monkeypatch.undo()
        images._pillow.cache_clear()


# -- stores ----------------------------------------------------------------------------------------

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SOUND = [b"RIFF" + bytes([i]) * i for i in range(len(FILES))]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """As Hugging Face stores Image and Audio columns."""
    folder = tmp_path_factory.mktemp("images")
    features = {"image": {"_type": "Image"}, "audio": {"_type": "Audio", "sampling_rate": 16000}}
    table = pa.table(
        {
            "image": pa.array([{"bytes": f, "path": f"{i}.png"} for i, f in enumerate(FILES)], IMAGE),
            "audio": pa.array([{"bytes": s, "path": None} for s in SOUND], IMAGE),
            "plain": pa.array(FILES, pa.large_binary()),
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    with pa.ipc.new_file(folder / "x.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=9)
    ss.convert(folder / "x.arrow", folder / "store", options=ss.ConvertOptions(worker_count=1))
    return folder / "store"


@pytest.mark.parametrize(("workers", "context"), [(0, None), (1, "fork"), (1, "spawn")])
def test_a_loader_delivers_decoded_images_and_audio_as_it_is(store, workers, context):
    loader = ss.DataLoader(
        store, batch_size=16, shuffle=True, return_ids=True, format="numpy", num_workers=workers,
        multiprocessing_context=context, transform=decode_images(["image", "plain"], format="numpy", threads=2),
    )  # fmt: skip
    seen = []
    for batch in loader:
        for number, *made, sound in zip(
            batch["record_id"].tolist(), batch["image"], batch["plain"], batch["audio"]["bytes"], strict=True
        ):
            assert all(is_same(image, FILES[number]) for image in made)
            assert sound == SOUND[number]
            seen.append(number)
    assert sorted(seen) == list(range(len(FILES)))


def test_a_saved_hugging_face_data_set_has_the_pixels_that_datasets_gives(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    saved = datasets.Dataset.from_dict(
        {"image": [{"bytes": f, "path": None} for f in FILES[:9]] + [None], "label": list(range(10))}, features
    )
    datasets.disable_progress_bars()
    saved.save_to_disk(tmp_path / "hf")
    ss.index(tmp_path / "hf")
    (batch,) = ss.DataLoader(tmp_path / "hf", batch_size=16, transform=decode_images("image", format="numpy"))
    for record, made in zip(saved, batch["image"], strict=True):
        assert (made is None) == (record["image"] is None)
        assert made is None or np.array_equal(made, np.array(record["image"].convert("RGB")))


def test_batches_without_torch_are_decoded_too(store):
    (batch,) = map(decode_images("image", format="numpy"), ss.open(store).batches(64))
    assert all(map(is_same, batch["image"], FILES))


def test_tables_are_refused(store):
    loader = ss.DataLoader(store, format="arrow", transform=decode_images("image"))
    with pytest.raises(OptionError, match="takes a dict of columns"):
        next(iter(loader))


def test_a_transform_travels_also_after_it_was_used():
    transform = decode_images("image", format="numpy", threads=2)
    transform({"image": FILES[:4]})
    made = pickle.loads(pickle.dumps(transform))({"image": FILES[4:8]})["image"]
    assert all(map(is_same, made, FILES[4:8]))


def test_an_executor_does_not_travel_to_workers(store):
    with ThreadPoolExecutor(2) as pool:
        transform = decode_images("image", threads=pool)
        with pytest.raises(OptionError, match="give a number"):
            pickle.dumps(transform)
        loader = ss.DataLoader(store, num_workers=1, multiprocessing_context="fork", transform=transform)
        with pytest.raises(OptionError, match="of another process"):
            next(iter(loader))


def test_a_folder_of_images_is_converted_and_decoded(tmp_path):
    for number in range(6):
        folder = tmp_path / "photos" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.{'png' if number % 3 == 0 else 'jpg'}").write_bytes(FILES[number])
    ss.convert(tmp_path / "photos", tmp_path / "store", options=ss.ConvertOptions(worker_count=1))
    (batch,) = ss.DataLoader(tmp_path / "store", batch_size=8, transform=decode_images("image", format="numpy"))
    named = {f"{('cat', 'dog')[n % 2]}/{n}.{'png' if n % 3 == 0 else 'jpg'}": n for n in range(6)}
    table = ss.open(tmp_path / "store").take(range(6)).to_pylist()
    for record, made in zip(table, batch["image"], strict=True):
        assert is_same(made, FILES[named[record["image"]["path"]]])
