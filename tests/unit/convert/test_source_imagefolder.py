"""Folders of images: which are classes, which are splits, and what `datasets` sees in the result."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pytest

import shufflestore as ss
from shufflestore.convert.base import SourceOptions, detect
from shufflestore.errors import SourceError
from tests import pieces

datasets = pytest.importorskip("datasets")


def write(folder, names):
    """Write images, each of bytes of its own; return the records of `image` in the order given."""
    records = []
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = random.Random(name).randbytes(1 + len(name) * 37 % 900)
        path.write_bytes(data)
        records.append({"bytes": data, "path": name})
    return records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes, one with folders in it and one of another alphabet; 90 images."""
    here = tmp_path_factory.mktemp("images")
    ends = ("jpg", "JPEG", "png", "webp", "bmp", "gif", "tif", "tiff")
    names = [f"Zebra/{i:03d}.{ends[i % len(ends)]}" for i in range(30)]
    names += [f"cat/{i:03d}.png" for i in range(20)] + [f"cat/deep/er/{i}.jpg" for i in range(10)]
    names += [f"éclair/{i:03d}.jpg" for i in range(30)]
    images = write(here, sorted(names))
    for other in ("cat/.hidden.png", "cat/note.txt", "cat/.ipynb_checkpoints/1.png", "_made/1.png"):
        write(here, [other])
    labels = {"Zebra": 0, "cat": 1, "éclair": 2}
    return here, [{"image": image, "label": labels[image["path"].split("/")[0]]} for image in images]


def test_records_are_the_files_however_they_are_cut(folder):
    path, records = folder
    pieces.check_contract(path, records, "imagefolder")


def test_a_conversion_holds_them_and_can_be_killed_and_resumed(folder, tmp_path):
    path, records = folder
    pieces.check_conversion(path, {"train": records}, tmp_path / "home")


def test_the_schema_tells_hugging_face_of_images_and_class_names(folder):
    schema = detect(folder[0]).schema()
    features = datasets.Features.from_arrow_schema(schema)
    names = ["Zebra", "cat", "éclair"]
    assert features == {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    assert features.arrow_schema.equals(schema)


def test_datasets_opens_the_shards_as_images_and_labels(folder, tmp_path):
    path, records = folder
    ss.convert(path, tmp_path / "out")
    [shard] = (tmp_path / "out/shards").glob("*.arrow")
    with pa.memory_map(str(shard)) as file:
        data = datasets.Dataset(pa.ipc.open_file(file).read_all())
    assert data.features["label"].int2str(2) == "éclair"
    undecoded = data.cast_column("image", datasets.Image(decode=False))  # decoding needs pillow
    assert [undecoded[i] for i in range(len(undecoded))] == records


def test_a_flat_folder_has_no_labels(tmp_path):
    images = write(tmp_path, ["a.png", "b.jpg"])
    source = detect(tmp_path)
    assert source.schema().names == ["image"]
    assert pieces.records_of(source) == [{"image": image} for image in images]


def test_folders_named_as_splits_are_splits_with_the_classes_of_all(tmp_path):
    names = ["test/1.png", "train/b/1.png", "train/c/1.png", "val/a/1.png"]
    images = write(tmp_path, names)
    source = detect(tmp_path)
    assert [piece.split for piece in source.pieces()] == ["test", "train", "train", "validation"]
    labels = [None, 1, 2, 0]
    assert pieces.records_of(source) == [{"image": i, "label": n} for i, n in zip(images, labels, strict=True)]
    features = json.loads(source.schema().metadata[b"huggingface"])["info"]["features"]
    assert features["label"]["names"] == ["a", "b", "c"]


def test_a_class_may_be_called_as_a_split_where_others_are_not(tmp_path):
    write(tmp_path, ["bus/1.png", "train/1.png", "test tube/1.png"])
    source = detect(tmp_path)
    assert {piece.split for piece in source.pieces()} == {"train"}
    assert [r["label"] for r in pieces.records_of(source)] == [0, 1, 2]


def test_a_mapping_says_splits(tmp_path):
    images = write(tmp_path, ["x/a/1.png", "y/a/1.png", "y/b/1.png"])
    source = detect({"mine": tmp_path / "x", "other": tmp_path / "y"})
    assert [(p.split, p.record_count) for p in source.pieces()] == [("mine", 1), ("other", 1), ("other", 1)]
    assert [r["image"]["bytes"] for r in pieces.records_of(source)] == [image["bytes"] for image in images]
    assert [r["image"]["path"] for r in pieces.records_of(source)] == ["a/1.png", "a/1.png", "b/1.png"]


def test_columns_and_types_are_those_asked_for(folder):
    path, records = folder
    source = detect(path, options=SourceOptions(columns=("label",), schema={"label": "int8"}))
    assert source.schema().field("label").type == pa.int8()
    assert not source.schema().metadata  # features of another type would keep `datasets` from opening it
    assert [r["label"] for r in pieces.records_of(source)] == [r["label"] for r in records]


def test_layouts_that_may_mean_two_things_are_refused_by_name(tmp_path):
    write(tmp_path / "mixed", ["a/1.png", "2.png"])
    with pytest.raises(SourceError, match=r"mixed holds folders, such as a, and images beside them, such as 2\.png"):
        detect(tmp_path / "mixed").schema()
    write(tmp_path / "empty", ["a/1.png"])
    (tmp_path / "empty/b").mkdir()
    with pytest.raises(SourceError, match=r"empty/b holds no images .*each folder is a class"):
        detect(tmp_path / "empty").pieces()
    with pytest.raises(SourceError, match=r"b holds no images .*check the path"):
        detect(tmp_path / "empty/b", kind="imagefolder").schema()
    with pytest.raises(SourceError, match=r"1\.png is no folder; .*labels are the names of folders"):
        detect(tmp_path / "empty/a/1.png").schema()


def test_images_beside_other_data_are_figures_unless_they_are_the_most(tmp_path):
    write(tmp_path / "few", ["fig.png"])
    for i in range(3):
        (tmp_path / f"few/{i}.jsonl").write_text('{"a": 1}\n')
    assert detect(tmp_path / "few").kind == "jsonl"
    write(tmp_path / "many", ["a/1.png", "a/2.png", "a/3.png"])
    (tmp_path / "many/metadata.jsonl").write_text('{"file_name": "a/1.png"}\n')
    with pytest.raises(SourceError, match=r"3 imagefolder and 1 jsonl files; choose with kind="):
        detect(tmp_path / "many")
    assert len(pieces.records_of(detect(tmp_path / "many", kind="imagefolder"))) == 3


def test_what_changed_after_the_pieces_were_cut_is_noticed(tmp_path):
    write(tmp_path, ["a/1.png", "a/2.png", "a/3.png"])
    source = detect(tmp_path)
    [piece], before = source.pieces(), source.fingerprint()
    source.schema()
    (tmp_path / "a/2.png").unlink()
    with pytest.raises(SourceError, match=r"train: a/\[1\.png to 3\.png\] holds 2 images now, not 3"):
        list(source.read(piece))
    assert detect(tmp_path).fingerprint() != before
    (tmp_path / "a/2.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"a/2\.png has 0 bytes, an image 1 to"):
        pieces.records_of(detect(tmp_path))


def test_links_to_classes_are_followed_and_dead_ones_passed_over(tmp_path):
    images = write(tmp_path / "real", ["1.png"])
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").symlink_to(tmp_path / "real")
    (tmp_path / "real/2.png").symlink_to(tmp_path / "nowhere.png")
    assert [r["image"]["bytes"] for r in pieces.records_of(detect(tmp_path / "in", kind="imagefolder"))] == [
        images[0]["bytes"]
    ]
