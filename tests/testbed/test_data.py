"""The data: what ships is what was selected, and nothing else is ever used."""

from __future__ import annotations

import gzip
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sokmerge import inputs as reading
from sokmerge.errors import ArgumentError, FileError
from sokmerge.testbed import data, fullset, make_subset

DESCRIBED = json.loads((data.FOLDER / "subset.json").read_text())
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")


def full_set_is_here() -> bool:
    try:
        return all(fullset.find(name) for name in FILES)
    except FileError:
        return False


needs_full_set = pytest.mark.skipif(not full_set_is_here(), reason="no full Fashion-MNIST here")


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the shipped folder, which may be spoiled."""
    folder = tmp_path / "fashion_mnist"
    shutil.copytree(data.FOLDER, folder)
    monkeypatch.setattr(data, "FOLDER", folder)
    return folder


@pytest.mark.parametrize(("split", "per_class"), [("train", 1_200), ("test", 400)])
def test_the_subset_is_stratified_and_normalised(split, per_class):
    x, y = data.fashion(split)
    assert x.shape == (10 * per_class, 1, 28, 28) and x.dtype == torch.float32
    assert y.dtype == torch.int64 and y.bincount().tolist() == [per_class] * 10
    assert x.min().item() == pytest.approx(data.BLACK) and x.max().item() == pytest.approx(
        data.WHITE
    )


def test_normalisation_is_that_of_the_shipped_training_images():
    x, _ = data.fashion("train")
    assert (DESCRIBED["mean"], DESCRIBED["std"]) == (data.MEAN, data.STD)
    assert x.double().mean().item() == pytest.approx(0, abs=1e-5)
    assert x.double().std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_what_ships_is_small_and_licensed():
    assert sum(path.stat().st_size for path in data.FOLDER.iterdir()) < 9_000_000
    assert "Zalando" in (data.FOLDER / "LICENSE").read_text()


def test_what_is_read_is_recorded():
    data._load.cache_clear()
    data.fashion("test")
    digest = DESCRIBED["sha256"]["test.npz"]
    assert reading.recorded()["testbed/fashion_mnist/test.npz"] == digest


@needs_full_set
@pytest.mark.parametrize("split", fullset.SPLITS)
def test_the_subset_is_remade_bit_for_bit(split):
    remade = make_subset.select(split)
    assert make_subset.content_sha256(remade) == DESCRIBED["content_sha256"][split]
    with np.load(data.FOLDER / f"{split}.npz", allow_pickle=False) as shipped:
        for name, array in remade.items():
            np.testing.assert_array_equal(shipped[name], array, strict=True)


@needs_full_set
def test_the_script_writes_what_the_loader_accepts(tmp_path, monkeypatch):
    make_subset.make(tmp_path)
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    assert len(data.fashion("test")[1]) == 4_000


@needs_full_set
def test_the_full_set_holds_the_subset():
    x, y = data.fashion("test", scale="full")
    with np.load(data.FOLDER / "test.npz", allow_pickle=False) as shipped:
        rows = torch.from_numpy(shipped["rows"]).long()
    small_x, small_y = data.fashion("test")
    assert x.shape == (10_000, 1, 28, 28)
    assert torch.equal(x[rows], small_x) and torch.equal(y[rows], small_y)


@given(small=st.integers(1, 200), more=st.integers(0, 200), seed=st.integers(0, 99))
def test_a_choice_is_balanced_and_nested(small, more, seed):
    targets = np.tile(np.arange(10), 60)
    fewer = data.stratified(targets, small, seed)
    larger = data.stratified(targets, small + more, seed)
    counts = np.bincount(targets[fewer], minlength=10)
    assert counts.max() - counts.min() <= 1
    assert set(fewer) <= set(larger) and (np.diff(larger) > 0).all()


def test_limit_keeps_whole_images():
    x, y = data.fashion("test", limit=50, seed=3)
    again, _ = data.fashion("test", limit=50, seed=3)
    other, _ = data.fashion("test", limit=50, seed=4)
    assert torch.equal(x, again) and not torch.equal(x, other)
    assert y.bincount().tolist() == [5] * 10


@pytest.mark.parametrize(
    ("arguments", "subject"),
    [
        ({"split": "valid"}, "split"),
        ({"split": "test", "scale": "medium"}, "scale"),
        ({"split": "test", "limit": 0}, "limit"),
        ({"split": "test", "limit": 4_001}, "limit"),
    ],
)
def test_a_wrong_argument_is_named(arguments, subject):
    with pytest.raises(ArgumentError, match=f"^{subject}: found"):
        data.fashion(**arguments)


def test_a_truncated_file_is_named(copied):
    path = copied / "test.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileError, match=r"test\.npz: found .* expected .*Restore"):
        data.fashion("test")


def test_an_altered_byte_is_seen(copied):
    path = copied / "train.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"train\.npz: found"):
        data.fashion("train")


def test_a_missing_file_is_named(copied):
    (copied / "test.npz").unlink()
    with pytest.raises(FileError, match=r"test\.npz: found"):
        data.fashion("test")


def test_without_the_full_set_the_three_ways_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(fullset, "places", lambda: [tmp_path])
    with pytest.raises(FileError) as raised:
        data.fashion("test", scale="full")
    for way in ("SOKMERGE_DATA", "torchvision.datasets", "apt-get"):
        assert way in str(raised.value)


# Without a time stamp, so that every process names the case alike.
OTHER = gzip.compress(b"other content", mtime=0)


@pytest.mark.parametrize("spoil", [b"", b"not gzip", OTHER], ids=["empty", "no gzip", "other"])
def test_a_spoiled_full_set_is_named(tmp_path, monkeypatch, spoil):
    monkeypatch.setenv("SOKMERGE_DATA", str(tmp_path))
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(spoil)
    with pytest.raises(FileError, match=str(path)):
        fullset.read("test")


@needs_full_set
@pytest.mark.parametrize("inside", [".", "FashionMNIST/raw"])
def test_unpacked_files_and_those_of_torchvision_are_read_as_well(tmp_path, monkeypatch, inside):
    packed = fullset.find("t10k-labels-idx1-ubyte")
    content = packed.read_bytes()
    unpacked = gzip.decompress(content) if packed.suffix == ".gz" else content
    monkeypatch.setenv("SOKMERGE_DATA", str(tmp_path))
    (tmp_path / inside).mkdir(parents=True, exist_ok=True)
    (tmp_path / inside / "t10k-labels-idx1-ubyte").write_bytes(unpacked)
    assert fullset.find("t10k-labels-idx1-ubyte").is_relative_to(tmp_path)
    assert fullset._content("t10k-labels-idx1-ubyte") == unpacked
