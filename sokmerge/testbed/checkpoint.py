"""Checkpoints: one trained network a file, listed with its SHA-256 in the folder's manifest.

A file is in the safetensors format, which holds numbers and cannot run code. Its tensors are in
fp16, counters excepted, and its header carries the recipe. The manifest, ``manifest.json``, says
for each file which bytes it must have and how well the network does, so that a file that was
truncated, altered or swapped is never used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sokmerge.errors import FileError, UnknownNameError
from sokmerge.files import sha256, write_atomically
from sokmerge.inputs import record
from sokmerge.testbed import models
from sokmerge.testbed.recipes import Recipe, named
from sokmerge.testbed.training import Score, Trained

__all__ = ["MANIFEST", "Entry", "lock", "manifest", "read", "write"]

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Entry:
    """What the manifest says of one checkpoint."""

    sha256: str
    bytes: int
    parameters: int
    train: Score
    test: Score
    seconds: float


def manifest(folder: Path) -> dict[str, Entry]:
    """Return the manifest of a folder, file name to entry; empty where there is none.

    Raises:
        FileError: the manifest is there and cannot be read.
    """
    path = Path(folder) / MANIFEST
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: Entry(**fields | {split: Score(**fields[split]) for split in ("train", "test")})
            for name, fields in listed.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FileError(
            str(path),
            found=f"that it cannot be read ({error})",
            expected="a manifest of checkpoints",
            do="Restore it from the repository, or delete it and retrain into that folder.",
        ) from error


def write(folder: Path, recipe: Recipe, trained: Trained, seconds: float) -> Entry:
    """Write the checkpoint of a recipe and list it in the manifest, each whole or not at all.

    Args:
        folder: where to; made if missing.
        recipe: names the file.
        trained: the network, already rounded to fp16.
        seconds: how long training took.

    Raises:
        FileError: the folder cannot be written; what was there is untouched.
    """
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in trained.state.items()
    }
    # One key only: the format does not fix the order of several, and bytes should not vary.
    header = {"recipe": recipe.canonical}
    entries: list[Entry] = []

    def save_and_list(temporary: Path) -> None:
        # Listed when it is on the disk and before it takes its place: a disk that fills up at
        # any moment leaves the old file and the old list.
        _save(halves, temporary, header)
        entries.append(
            Entry(
                sha256=sha256(temporary),
                bytes=temporary.stat().st_size,
                parameters=_parameter_count(recipe),
                train=trained.train,
                test=trained.test,
                seconds=round(seconds, 1),
            )
        )
        _list(Path(folder), recipe.file_name, entries[0])

    write_atomically(Path(folder) / recipe.file_name, save_and_list)
    return entries[0]


def read(folder: Path, recipe: Recipe) -> dict[str, Tensor]:
    """Return the state of a recipe's network, floating-point tensors in float32, on the CPU.

    Raises:
        FileError: the file is missing, is not the one the manifest lists, or does not hold this
            recipe's network. Nothing is trained instead.
    """
    path = Path(folder) / recipe.file_name
    restore = f"Restore the file from where it came, or make it again: {_how_to_make(recipe)}."
    entry = manifest(folder).get(path.name)
    if not path.is_file() or entry is None:
        raise FileError(
            str(path),
            found="no such file" if not path.is_file() else f"no entry in {MANIFEST}",
            expected=f"the checkpoint of recipe {recipe.name}",
            do=f"Make it: {_how_to_make(recipe)}.",
        )
    digest = sha256(path)
    if digest != entry.sha256:
        raise FileError(
            str(path),
            found=f"{path.stat().st_size:,} bytes with SHA-256 {digest[:12]}...",
            expected=f"{entry.bytes:,} bytes with {entry.sha256[:12]}..., as {MANIFEST} says",
            do=restore,
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise FileError(
            str(path), found=f"no safetensors file ({error})", expected="one", do=restore
        ) from error
    _require_network(path, header.get("recipe"), state, recipe, restore)
    record(path, digest)
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file, beside it, against other processes; wait for who holds it.

    Raises:
        FileError: the folder cannot be written.
    """
    path = Path(path)
    beside = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.acquire()
    except OSError as error:
        raise FileError(
            str(path.parent),
            found=f"a folder that cannot be written ({error.strerror or error})",
            expected="a writable folder for checkpoints",
            do="Choose one with --into, or with the environment variable SOKMERGE_CACHE.",
        ) from error
    try:
        yield
    finally:
        beside.release()


def _save(state: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    try:
        save_file(state, path, metadata=header)
    except SafetensorError as error:  # what the disk says comes wrapped
        raise OSError(str(error)) from error
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _list(folder: Path, name: str, entry: Entry) -> None:
    with lock(folder / MANIFEST):
        listed = dict(sorted((manifest(folder) | {name: entry}).items()))
        text = json.dumps({name: asdict(each) for name, each in listed.items()}, indent=1)
        write_atomically(folder / MANIFEST, text + "\n")


def _how_to_make(recipe: Recipe) -> str:
    try:
        known = recipe in named(recipe.name)
    except UnknownNameError:
        known = False
    return f"sokmerge zoo retrain {recipe.name}" if known else "zoo.retrain([recipe])"


def _require_network(
    path: Path, held: str | None, state: dict[str, Tensor], recipe: Recipe, restore: str
) -> None:
    if held != recipe.canonical:
        raise FileError(
            str(path),
            found=f"the network of another recipe, {held}",
            expected=f"that of {recipe.canonical}",
            do=restore,
        )
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    expected = _shapes(recipe)
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise FileError(
                f"{path}, tensor {name!r}",
                found=f"shape {found[name]}" if name in found else "nothing",
                expected=f"shape {expected[name]}" if name in expected else "no such tensor",
                do=restore,
            )
    spoiled = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if spoiled:
        raise FileError(
            f"{path}, tensor {spoiled[0]!r}",
            found="values that are not finite",
            expected="finite values",
            do=restore,
        )


def _shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    module = _trained(recipe)
    state = recipe.adapter.state(module) if recipe.adapter else module.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _parameter_count(recipe: Recipe) -> int:
    return sum(parameter.numel() for parameter in _trained(recipe).parameters())


def _trained(recipe: Recipe) -> nn.Module:
    """Return a module of the kind that the recipe trains; its values mean nothing."""
    module = models.build(recipe.arch)
    return recipe.adapter.adapt(module, recipe.seed) if recipe.adapter else module
