r"""Fashion-MNIST for the book: a stratified subset inside the package, the full set where it is.

The subset holds 1,200 training and 400 test images of each of the ten classes, all ``uint8``
28 x 28 (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747). Its training images come from the
training split of the full set and its test images from the test split. Files are verified by
their SHA-256 before they are used.

Inputs are normalised as :math:`x = (p / 255 - \mu) / \sigma`, where :math:`p` is the pixel and
:math:`\mu`, :math:`\sigma` are :data:`MEAN` and :data:`STD`, the mean and standard deviation of
all pixels of the shipped training images. The full set uses the same two numbers, so that a
network trained on one reads the other.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError, FileError
from sokmerge.inputs import record
from sokmerge.testbed import fullset
from sokmerge.testbed.fullset import Split

__all__ = [
    "BLACK",
    "CLASSES",
    "FOLDER",
    "MEAN",
    "STD",
    "WHITE",
    "Scale",
    "fashion",
    "normalise",
    "stratified",
]

Scale = Literal["small", "full"]

FOLDER = Path(__file__).parent / "fashion_mnist"

CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

MEAN = 0.286506
STD = 0.353444
BLACK = (0.0 - MEAN) / STD
WHITE = (1.0 - MEAN) / STD


def fashion(
    split: Split,
    *,
    scale: Scale = "small",
    device: torch.device | str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return normalised inputs and targets of one split.

    Args:
        split: ``"train"`` or ``"test"``.
        scale: ``"small"`` for the subset in the package (12,000 and 4,000 images), ``"full"``
            for the full set (60,000 and 10,000), which must be on this machine: see
            :mod:`sokmerge.testbed.fullset`.
        device: where the tensors go; the CPU by default.
        limit: keep that many images, as equal a number of each class as can be. With one seed, a
            smaller choice lies within a larger one.
        seed: seed of that choice.

    Returns:
        ``inputs``, float32 of shape (n, 1, 28, 28), and ``targets``, int64 of shape (n,).

    Raises:
        ArgumentError: an unknown split or scale, or a limit outside 1 to n.
        FileError: a file is missing, truncated or altered.

    >>> inputs, targets = fashion("test", limit=100)
    >>> inputs.shape, targets.bincount().tolist()
    (torch.Size([100, 1, 28, 28]), [10, 10, 10, 10, 10, 10, 10, 10, 10, 10])
    """
    fullset.check_split(split)
    if scale not in get_args(Scale):
        raise ArgumentError("scale", found=repr(scale), expected="'small' or 'full'")
    pixels, labels = _load(FOLDER, split) if scale == "small" else fullset.read(split)
    if limit is not None:
        if not 1 <= limit <= len(labels):
            raise ArgumentError(
                "limit", found=repr(limit), expected=f"a number from 1 to {len(labels)}"
            )
        rows = stratified(labels, limit, seed)
        pixels, labels = pixels[rows], labels[rows]
    targets = torch.from_numpy(labels.astype(np.int64))
    return normalise(torch.tensor(pixels, device=device)), targets.to(device)


def normalise(pixels: Tensor) -> Tensor:
    """Return pixels, ``uint8`` of shape (n, 28, 28), as inputs, float32 of shape (n, 1, 28, 28).

    >>> inputs = normalise(torch.tensor([[[0, 255]]], dtype=torch.uint8))
    >>> torch.testing.assert_close(inputs, torch.tensor([[[[BLACK, WHITE]]]]))
    """
    return pixels.to(torch.float32).div_(255).sub_(MEAN).div_(STD).unsqueeze(1)


def stratified(targets: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Choose ``n`` rows, as equal a number of each class as can be, and return them ascending.

    Each row draws a 64-bit key from the bit generator PCG64, whose stream numpy never changes,
    and each class is put in the order of its keys. Rows are then taken in turn, one of each class
    at a time, so that the choice for a smaller ``n`` lies within that for a larger one.

    Args:
        targets: class of each row, shape (rows,).
        n: how many rows to choose.
        seed: seed of the keys.

    >>> stratified(np.array([0, 0, 0, 1, 1, 1]), 4, seed=0).tolist()
    [1, 2, 3, 4]
    """
    targets = np.asarray(targets)
    keys = np.random.PCG64(seed).random_raw(len(targets))
    by_class = np.lexsort((keys, targets))
    counts = np.unique(targets, return_counts=True)[1]
    turn = np.empty(len(targets), dtype=np.int64)
    turn[by_class] = np.concatenate([np.arange(count) for count in counts])
    return np.sort(np.lexsort((targets, turn))[:n])


@lru_cache(maxsize=4)
def _load(folder: Path, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return the verified images and targets of a split of the subset, not to be written to."""
    path = folder / f"{split}.npz"
    restore = "Restore the file from the repository, or reinstall the package."
    try:
        expected = json.loads((folder / "subset.json").read_text())["sha256"][path.name]
        content = path.read_bytes()
    except (OSError, ValueError, KeyError) as error:
        raise FileError(
            str(path),
            found=f"that it cannot be read ({error})",
            expected="the file and its SHA-256 in subset.json beside it",
            do=restore,
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise FileError(
            str(path),
            found=f"{len(content):,} bytes with SHA-256 {digest[:12]}...",
            expected=f"{expected[:12]}..., as subset.json says",
            do=restore,
        )
    record(path, digest)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            images, targets = arrays["images"], arrays["targets"]
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise FileError(
            str(path), found=str(error), expected="arrays 'images' and 'targets'", do=restore
        ) from error
    images.flags.writeable = targets.flags.writeable = False
    return images, targets
