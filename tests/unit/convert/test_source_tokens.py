"""Flat token files: what cuts them, and what does not fit."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shufflestore.convert.base import SourceOptions, detect
from shufflestore.errors import OptionError, SourceError


def read(source):
    return [v for p in source.pieces() for b in source.read(p) for v in b.column(0).to_pylist()]


@pytest.fixture
def bin_path(tmp_path):
    np.arange(103, dtype=np.uint16).tofile(tmp_path / "x.bin")
    return tmp_path / "x.bin"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, OptionError, r"record_tokens=.*end_token=.*x\.bin\.bounds\.npy"),
        ({"record_tokens": 10}, SourceError, r"103 tokens make 10 records of 10 and leave 3; .*drop_tail=True"),
        ({"token_dtype": "uint32", "record_tokens": 1}, SourceError, "206 bytes .* uint32 tokens of 4 bytes"),
        ({"token_dtype": "float32"}, OptionError, "token_dtype is 'float32'; give one of uint8"),
        ({"end_token": 65_536}, OptionError, r"end_token is 65536, but .* uint16, \[0, 65536\)"),
        ({"end_token": 1, "record_tokens": 2}, OptionError, "record_tokens and end_token are given"),
        ({"bounds": "/nowhere.npy"}, SourceError, "/nowhere.npy does not exist"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_the_next_step(options, error, message, bin_path):
    with pytest.raises(error, match=message):
        detect(bin_path, options=SourceOptions(**options)).pieces()


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([0, 50], "goes from 0 to 50, but .* has 103 tokens"),
        ([1, 103], "goes from 1 to 103"),
        ([0, 60, 50, 103], "offset 2 is 50, less than 60 before it"),
        ([0.0, 103.0], "holds float64"),
    ],
)
def test_bounds_that_are_none_are_refused(bounds, message, bin_path):
    np.save(f"{bin_path}.bounds.npy", np.array(bounds))
    with pytest.raises(SourceError, match=message):
        detect(bin_path).pieces()


def test_bounds_beside_the_file_are_found_and_empty_documents_kept(bin_path):
    np.save(f"{bin_path}.bounds.npy", np.array([0, 0, 3, 3, 103]))
    assert read(detect(bin_path)) == [[], [0, 1, 2], [], list(range(3, 103))]


def test_the_rows_of_a_matrix_are_records(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(12, dtype=np.uint32).reshape(3, 4))
    source = detect(tmp_path / "x.npy")
    assert source.schema().field("tokens").type == pa.list_(pa.uint32(), 4)
    assert read(source) == np.arange(12).reshape(3, 4).tolist()


def test_a_tail_is_left_out_only_when_asked(bin_path):
    source = detect(bin_path, options=SourceOptions(record_tokens=10, drop_tail=True))
    assert read(source) == np.arange(100).reshape(10, 10).tolist()


def test_headers_are_skipped_and_llm_c_is_recognized(tmp_path):
    header = np.zeros(256, np.int32)
    header[0] = 20240520
    (tmp_path / "x.bin").write_bytes(header.tobytes() + np.arange(8, dtype=np.uint16).tobytes())
    with pytest.raises(SourceError, match=r"llm\.c's header.*token_header_bytes=1024"):
        detect(tmp_path / "x.bin", options=SourceOptions(record_tokens=4)).pieces()
    source = detect(tmp_path / "x.bin", options=SourceOptions(record_tokens=4, token_header_bytes=1024))
    assert read(source) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("array", [np.zeros(4), np.zeros((2, 2, 2), np.int32), np.array(["a"])])
def test_arrays_that_hold_no_tokens_are_refused(array, tmp_path):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(SourceError, match=r"x\.npy"):
        detect(tmp_path / "x.npy", options=SourceOptions(record_tokens=2)).schema()


@pytest.mark.parametrize("name", ["x.npy", "x.bin"])
def test_an_empty_or_cut_file_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError, match=name):
        detect(tmp_path / name, options=SourceOptions(record_tokens=2)).pieces()


def test_windows_are_views_of_the_file(tmp_path):
    np.zeros(4_000_000, np.uint16).tofile(tmp_path / "x.bin")
    source = detect(tmp_path / "x.bin", options=SourceOptions(record_tokens=1_000))
    before = pa.total_allocated_bytes()
    batches = list(source.read(source.pieces()[0]))
    assert sum(batch.num_rows for batch in batches) == 4_000
    assert pa.total_allocated_bytes() - before < 100_000


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=st.lists(st.integers(0, 3), min_size=1, max_size=60), piece=st.integers(1, 50), batch=st.integers(1, 50))
def test_documents_are_whole_wherever_pieces_end(tmp_path, tokens, piece, batch):
    np.array(tokens, np.uint16).tofile(tmp_path / "x.bin")
    want, document = [], []
    for token in tokens:
        document.append(token)
        if token == 0:
            want.append(document)
            document = []
    want += [document] if document else []
    options = SourceOptions(end_token=0, piece_bytes=piece, batch_bytes=batch)
    assert read(detect(tmp_path / "x.bin", options=options)) == want
