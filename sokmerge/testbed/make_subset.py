"""Make the subset of Fashion-MNIST that the package ships, bit for bit, from the full set.

Run as ``python -m sokmerge.testbed.make_subset [FOLDER]``. The full set is found as
:mod:`sokmerge.testbed.fullset` says. Written are ``train.npz`` and ``test.npz``, each with

- ``images``, uint8 of shape (n, 28, 28),
- ``targets``, uint8 of shape (n,),
- ``rows``, int32 of shape (n,), the places of the images in the split they came from,

and ``subset.json`` with the seed, the sizes, the pixels' mean and standard deviation, the
SHA-256 of each file and, because another version of zlib may pack the same content into other
bytes, the SHA-256 of each file's content.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np

from sokmerge.files import write_atomically
from sokmerge.testbed import fullset
from sokmerge.testbed.data import FOLDER, stratified

__all__ = ["PER_CLASS", "SEED", "content_sha256", "make", "select"]

SEED = 0
PER_CLASS = {"train": 1_200, "test": 400}


def select(split: fullset.Split) -> dict[str, np.ndarray]:
    """Return ``images``, ``targets`` and ``rows`` of the subset of one split of the full set."""
    images, targets = fullset.read(split)
    rows = stratified(targets, 10 * PER_CLASS[split], SEED)
    return {"images": images[rows], "targets": targets[rows], "rows": rows.astype(np.int32)}


def content_sha256(arrays: dict[str, np.ndarray]) -> str:
    """Return the SHA-256 of the arrays' bytes, in the order images, targets, rows."""
    names = ("images", "targets", "rows")
    return hashlib.sha256(b"".join(arrays[name].tobytes() for name in names)).hexdigest()


def make(folder: Path = FOLDER) -> Path:
    """Write the subset into ``folder`` and return the path of its ``subset.json``."""
    selected = {split: select(split) for split in fullset.SPLITS}
    packed = {f"{split}.npz": _npz(arrays) for split, arrays in selected.items()}
    for name, content in packed.items():
        write_atomically(folder / name, content)
    pixels = selected["train"]["images"] / 255
    described = {
        "source": "Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist",
        "licence": "MIT, Copyright 2017 Zalando SE",
        "seed": SEED,
        "per_class": PER_CLASS,
        "mean": round(float(pixels.mean()), 6),
        "std": round(float(pixels.std()), 6),
        "content_sha256": {split: content_sha256(arrays) for split, arrays in selected.items()},
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in packed.items()},
    }
    return write_atomically(folder / "subset.json", json.dumps(described, indent=2) + "\n")


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


if __name__ == "__main__":
    make(*(Path(argument) for argument in sys.argv[1:2]))
