"""`shufflestore verify`: sound, damaged, short, gone."""

from __future__ import annotations

import pytest


def test_a_sound_store(run, run_json, store):
    code, out = run("verify", store)
    assert code == 0
    assert out.startswith(f"{store}: 50 records, ")
    assert out.rstrip().endswith("checked: sound")
    code, told = run_json("verify", store)
    assert (code, told["is_sound"], told["problem_count"]) == (0, True, 0)


@pytest.mark.parametrize("kind", ["arrow", "rows"])
def test_any_changed_byte_is_found(run, run_json, store, kind):
    (file,) = store.glob(f"shards/*.{kind}")
    data = bytearray(file.read_bytes())
    for place in (9, len(data) // 2, len(data) - 20):
        data[place] ^= 4
        file.write_bytes(data)
        code, told = run_json("verify", store)
        assert (code, told["is_sound"]) == (1, False), place
        assert file.name in told["problems"][0]
        data[place] ^= 4
    file.write_bytes(data)
    assert run("verify", store)[0] == 0


def test_a_file_that_is_short_or_gone(run, store):
    (file,) = store.glob("shards/*.arrow")
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    code, out = run("verify", store)
    assert code == 1
    assert f"has {len(data) - 1:,} bytes, the manifest says {len(data):,}" in out
    assert out.rstrip().endswith("1 problems")
    file.unlink()
    assert run("verify", store)[0] == 1


def test_a_damaged_manifest_is_an_error(run_json, store):
    (root,) = store.glob("snapshots/*.json")
    root.write_bytes(root.read_bytes().replace(b'"snapshot": 1', b'"snapshot": 7'))
    code, told = run_json("verify", store)
    assert (code, told["error"]) == (1, "CorruptData")
