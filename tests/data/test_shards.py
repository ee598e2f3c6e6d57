"""Shards: what is written is what is read, on every share; and no damaged file is read as if it were whole."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data.loader import Share
from gptjax.data.packing import pack
from gptjax.data.remote import open_shards, shards_folder
from gptjax.data.shards import MANIFEST, Shards, fingerprint, layout, write_shard

T = 8


def rows(seed, count):
    rng = np.random.default_rng(seed)
    return pack([rng.integers(3, 300, size).tolist() for size in rng.integers(2, 20, count)], T)[0]


def write(folder, shards=3, documents=6):
    """A folder of shards, and all its training rows in order."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = layout(300, T)
    made = [rows(seed, documents) for seed in range(shards)]
    splits = {
        "train": [write_shard(folder / f"train-{n}.array_record", part, fields) for n, part in enumerate(made)],
        "heldout": [write_shard(folder / "heldout-0.array_record", rows(99, 2), fields)],
    }
    manifest = {"format": 1, "tokenizer": "", "vocab_size": 300, "row_tokens": T, "fields": fields}
    manifest["splits"] = {split: {"shards": entries} for split, entries in splits.items()}
    (folder / MANIFEST).write_text(json.dumps(manifest | {"fingerprint": fingerprint(manifest)}))
    arrays = {name: np.concatenate([getattr(part, name) for part in made]) for name in vars(made[0])}
    return type(made[0])(**arrays)


def same(a, b):
    for name, values in vars(a).items():
        assert values.dtype == getattr(b, name).dtype
        assert values.tolist() == getattr(b, name).tolist(), name


def test_rows_come_back_as_they_were_in_any_order(tmp_path):
    written = write(tmp_path)
    shards = Shards(tmp_path, "train")
    assert shards.n_rows == len(written.tokens_BT)
    order = np.random.default_rng(0).permutation(shards.n_rows)
    same(shards.rows(order), type(written)(**{name: values[order] for name, values in vars(written).items()}))


@settings(deadline=None, max_examples=20)
@given(position=st.integers(0, 30), seed=st.integers(0, 9), share=st.permutations(range(4)), cut=st.integers(1, 3))
def test_hosts_read_the_batch_of_one_between_them(tmp_path_factory, position, seed, share, cut):
    folder = tmp_path_factory.getbasetemp() / "shared-shards"
    if not folder.exists():
        write(folder)
    shards = Shards(folder, "train")
    whole = shards.batch_at(position, 8, seed)
    parts = sorted(share[:cut]), sorted(share[cut:])
    for pieces in parts:
        own = shards.batch_at(position, 8, seed, Share(tuple(pieces), 4))
        index = np.concatenate([np.arange(2 * piece, 2 * piece + 2) for piece in pieces])
        assert own.tokens_BT.tolist() == whole.tokens_BT[index].tolist()


def test_an_epoch_holds_every_row_once(tmp_path):
    written = write(tmp_path)
    shards = Shards(tmp_path, "train")
    drawn = np.concatenate([shards.batch_at(position, 1, seed=3).tokens_BT for position in range(shards.n_rows)])
    assert sorted(drawn.tolist()) == sorted(written.tokens_BT.tolist())


def test_the_same_rows_give_the_same_bytes(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_large_vocabularies_and_rows_keep_all_their_bits(tmp_path):
    assert layout(1 << 16, 1 << 16)["tokens"] == "<u2"
    assert layout((1 << 16) + 1, 1 << 16)["tokens"] == "<u4"
    assert layout(300, 1 << 16)["positions"] == "<u4"


def read_all(folder):
    shards = Shards(folder, "train")
    return shards.rows(np.arange(shards.n_rows))


def flip(path, byte, bit=0):
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 1 << bit
    path.write_bytes(raw)


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "another's": lambda path: path.write_bytes((path.parent / "train-2.array_record").read_bytes()),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_an_error_that_names_it(tmp_path, kind):
    write(tmp_path)
    DAMAGE[kind](tmp_path / "train-1.array_record")
    with pytest.raises(ValueError, match=r"train-1\.array_record: the shard|train-1\.array_record: row"):
        read_all(tmp_path)


def test_a_shard_with_another_name_but_the_right_size_is_noticed(tmp_path):
    # equal sizes: the row's checksum covers the name of the file that it was written to
    folder = tmp_path
    write(folder)
    part = rows(1, 6)
    entry = write_shard(folder / "other-1.array_record", part, layout(300, T))
    assert entry["bytes"] == (folder / "train-1.array_record").stat().st_size
    (folder / "other-1.array_record").replace(folder / "train-1.array_record")
    with pytest.raises(ValueError, match=r"train-1\.array_record: row 0 is not what was written"):
        read_all(folder)


def test_no_flipped_bit_changes_a_row_in_silence(tmp_path):
    written = write(tmp_path, shards=1, documents=4)
    path = tmp_path / "train-0.array_record"
    raw, errors = path.read_bytes(), []
    for byte in np.random.default_rng(0).integers(0, len(raw), 60):
        flip(path, int(byte), int(byte) % 8)
        try:
            same(read_all(tmp_path), written)  # a bit of padding may be flipped
        except ValueError as error:
            errors.append(str(error))
        path.write_bytes(raw)
    assert errors
    assert all("train-0.array_record" in error for error in errors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "not a manifest of shards"),
        (lambda text: "[]", "not a manifest of shards"),
        (lambda text: text.replace('"row_tokens": 8', '"row_tokens": 9'), "altered or cut short"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format 2, but this gptjax reads format 1"),
    ],
)
def test_a_damaged_manifest_is_an_error_that_names_it(tmp_path, change, message):
    write(tmp_path)
    path = tmp_path / MANIFEST
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=rf"manifest\.json: .*{message}"):
        Shards(tmp_path, "train")


def test_a_shard_outside_the_folder_is_refused(tmp_path):
    write(tmp_path / "a")
    path = tmp_path / "a" / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["splits"]["train"]["shards"][0]["name"] = "../secret"
    path.write_text(json.dumps(manifest | {"fingerprint": fingerprint(manifest)}))
    with pytest.raises(ValueError, match=r"'\.\./secret' is no name of a shard"):
        Shards(tmp_path / "a", "train")


def test_a_folder_without_manifest_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"manifest\.json is missing: is this a folder that `gptjax tokenize` wrote"):
        Shards(tmp_path, "train")


@pytest.fixture
def in_memory(tmp_path, monkeypatch):
    """A folder of shards in an object store, here fsspec's memory://, and its rows."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    written = write(tmp_path / "local")
    (tmp_path / "local" / "tokenizer.model").write_bytes(b"")
    store = fsspec.filesystem("memory")
    for file in (tmp_path / "local").iterdir():
        store.pipe(f"/bucket/rows/{file.name}", file.read_bytes())
    yield written, store
    store.rm("/bucket", recursive=True)


def test_shards_are_read_from_an_object_store(in_memory):
    written, _ = in_memory
    shards = open_shards("memory://bucket/rows", "train")
    same(shards.rows(np.arange(shards.n_rows)), written)


def test_only_the_shards_that_are_read_are_fetched(in_memory):
    shards = open_shards("memory://bucket/rows", "train")
    shards.rows(np.array([0]))
    fetched = [path.name for path in shards_folder("memory://bucket/rows").glob("*.array_record")]
    assert len(fetched) == 1
    assert fetched[0].endswith("train-0.array_record")


def test_an_altered_shard_in_an_object_store_is_named(in_memory):
    _, store = in_memory
    raw = bytearray(store.cat("/bucket/rows/train-0.array_record"))
    raw[len(raw) // 2] ^= 1
    store.pipe("/bucket/rows/train-0.array_record", bytes(raw))
    with pytest.raises(ValueError, match=r"memory://bucket/rows/train-0\.array_record: .*sha256"):
        open_shards("memory://bucket/rows", "train").rows(np.array([0]))


def test_a_missing_shard_in_an_object_store_is_named(in_memory):
    _, store = in_memory
    store.rm("/bucket/rows/train-0.array_record")
    with pytest.raises(ValueError, match=r"memory://bucket/rows/train-0\.array_record: cannot be fetched"):
        open_shards("memory://bucket/rows", "train").rows(np.array([0]))
