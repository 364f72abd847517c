"""The full Fashion-MNIST: where it may lie on this machine, and reading its four files.

The full set does not travel with the package. It is found in one of three places:

1. the folder that the environment variable ``SOKMERGE_DATA`` names, or torchvision's copy in it;
2. torchvision's copy, ``FashionMNIST/raw``, in the user's data folder for ``sokmerge``;
3. Debian's folder, ``/usr/share/datasets/fashion-mnist``.

Each holds the same four files in the IDX format (a big-endian header of four bytes for the type
and the rank, four more for each length, then the bytes), packed by gzip or not.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import platformdirs

from sokmerge.errors import ArgumentError, FileError
from sokmerge.inputs import record

__all__ = ["SPLITS", "Split", "find", "places", "read"]

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

_TORCHVISION = Path("FashionMNIST/raw")
_PREFIX = {"train": "train", "test": "t10k"}
_COUNT = {"train": 60_000, "test": 10_000}

# SHA-256 of the unpacked files, the same wherever they came from.
_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def places() -> list[Path]:
    """Return the folders that are searched, in order."""
    chosen = os.environ.get("SOKMERGE_DATA")
    own = [Path(chosen), Path(chosen) / _TORCHVISION] if chosen else []
    return [*own, _user_folder() / _TORCHVISION, Path("/usr/share/datasets/fashion-mnist")]


def find(name: str) -> Path:
    """Return the path of one of the four files, packed or not, in the first place that has it.

    Args:
        name: the file's name without ``.gz``, as ``"t10k-labels-idx1-ubyte"``.

    Raises:
        FileError: no place has it; the message says the three ways to get one that does.
    """
    searched = places()
    for folder in searched:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise FileError(
        name,
        found="no such file in " + ", ".join(str(folder) for folder in searched),
        expected="the full Fashion-MNIST in one of them",
        do="There are three ways: set SOKMERGE_DATA to a folder that holds the four files; "
        f"run torchvision.datasets.FashionMNIST({str(_user_folder())!r}, download=True); "
        "or, on Debian, apt-get install dataset-fashion-mnist.",
    )


def read(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, ``uint8 (n, 28, 28)``, and targets, ``uint8 (n,)``, of one split.

    Raises:
        ArgumentError: ``split`` is neither ``"train"`` nor ``"test"``.
        FileError: a file is missing, cannot be unpacked, or its content is not Fashion-MNIST.
    """
    check_split(split)
    prefix, count = _PREFIX[split], _COUNT[split]
    images = _content(f"{prefix}-images-idx3-ubyte")
    targets = _content(f"{prefix}-labels-idx1-ubyte")
    return (
        np.frombuffer(images, np.uint8, offset=16).reshape(count, 28, 28),
        np.frombuffer(targets, np.uint8, offset=8),
    )


def check_split(split: str) -> None:
    """Raise :class:`~sokmerge.errors.ArgumentError` unless ``split`` names one of the two."""
    if split not in SPLITS:
        raise ArgumentError("split", found=repr(split), expected="'train' or 'test'")


def _user_folder() -> Path:
    return Path(platformdirs.user_data_dir("sokmerge"))


def _content(name: str) -> bytes:
    path = find(name)
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(
            str(path),
            found=f"that it cannot be read ({error})",
            expected="a whole file of Fashion-MNIST",
            do="Fetch it again.",
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != _SHA256[name]:
        raise FileError(
            str(path),
            found=f"content with SHA-256 {digest[:12]}...",
            expected=f"{_SHA256[name][:12]}..., that of Fashion-MNIST",
            do="Fetch it again.",
        )
    record(path, digest)
    return content
