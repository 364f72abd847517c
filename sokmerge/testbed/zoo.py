"""The zoo: trained networks by the name of their recipe, shipped, verified, made again on demand.

A checkpoint lives in the package's folder or, for recipes that do not ship, in the user's cache
(``SOKMERGE_CACHE`` names another). Loading never trains: what is missing or altered is an error
that says which command makes it.

>>> recipe = family("mlp-width-32", master=0)[0]
>>> module, params = load(recipe)
>>> module(torch.zeros(1, 1, 28, 28)).shape, sorted(params)[:2]
(torch.Size([1, 10]), ['head.bias', 'head.weight'])
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import torch
from torch import Tensor, nn

from sokmerge import params
from sokmerge.errors import ArgumentError, FileError
from sokmerge.testbed import checkpoint, models
from sokmerge.testbed.adapters import LowRank
from sokmerge.testbed.checkpoint import Entry
from sokmerge.testbed.recipes import Recipe, families, family, named
from sokmerge.testbed.training import train

__all__ = [
    "SHIPPED",
    "cache",
    "entry",
    "families",
    "family",
    "folder_of",
    "load",
    "named",
    "retrain",
    "strays",
    "verify",
]

SHIPPED = Path(__file__).parent / "checkpoints"


def load(
    recipe: Recipe, *, device: torch.device | str | None = None
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a recipe's trained network: its module in eval mode, and its parameters.

    Args:
        recipe: which network; see :func:`family`.
        device: where to put both; the CPU by default.

    Returns:
        The module, whose buffers are those of training, and a copy of its parameters in float32.
        For a network tuned at low rank the parameters are its factors alone, and the module holds
        the start. For one tuned in the tangent space the module is the plain network, of which
        training used the first-order model around ``recipe.start``.

    Raises:
        FileError: the checkpoint is missing, truncated, altered or of another network.
    """
    module = models.build(recipe.arch)
    state = checkpoint.read(folder_of(recipe), recipe)
    if isinstance(recipe.adapter, LowRank):
        module.load_state_dict(checkpoint.read(folder_of(recipe.start), recipe.start))
        module = recipe.adapter.adapt(module, recipe.seed)
    module.load_state_dict(state)
    module.to(device)
    return module, params.of(module)


def verify(recipe: Recipe) -> None:
    """Raise :class:`~sokmerge.errors.FileError` unless the recipe's checkpoint is sound."""
    checkpoint.read(folder_of(recipe), recipe)


def entry(recipe: Recipe) -> Entry | None:
    """Return what the manifest says of a recipe's checkpoint, or None if there is none."""
    return checkpoint.manifest(folder_of(recipe)).get(recipe.file_name)


def folder_of(recipe: Recipe) -> Path:
    """Return the folder of a recipe's checkpoint: the package's if it ships, else the cache."""
    return SHIPPED if recipe.file_name in checkpoint.manifest(SHIPPED) else cache()


def cache() -> Path:
    """Return the folder of checkpoints that do not ship."""
    chosen = os.environ.get("SOKMERGE_CACHE") or platformdirs.user_cache_dir("sokmerge")
    return Path(chosen) / "checkpoints"


def strays(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder that its manifest does not list.

    >>> strays(SHIPPED)
    []
    """
    listed = checkpoint.manifest(folder)
    return sorted(path for path in folder.glob("*.safetensors") if path.name not in listed)


def retrain(
    recipes: Iterable[Recipe],
    *,
    into: Path | None = None,
    again: bool = False,
    device: torch.device | str = "cpu",
    jobs: int = 1,
    executor: Executor | None = None,
    done: Callable[[Recipe, Entry], object] = lambda recipe, entry: None,
) -> dict[Recipe, Entry]:
    """Train the networks of recipes whose checkpoint is missing or unsound, and write them.

    Each is written as soon as it is trained, so that after an interruption the same call goes on
    where it was. Two calls at once share the work: a lock keeps each recipe to one of them.

    Args:
        recipes: what to train.
        into: folder to write to; by default that of each recipe, see :func:`folder_of`.
        again: train also those whose checkpoint is sound.
        device: where to train. Bits are the same from run to run on the CPU of one machine.
        jobs: number of processes, one thread each; 1 trains in this one.
        executor: takes the place of those processes; it stays open. Its workers must see the
            same folder.
        done: called with each recipe and its entry when its checkpoint stands.

    Returns:
        The entry of each recipe, in the order they were done.

    Raises:
        FileError: a folder cannot be written; earlier checkpoints are untouched.
        ArgumentError: ``jobs`` is not positive, or training diverged.
    """
    if jobs < 1:
        raise ArgumentError("jobs", found=repr(jobs), expected="1 or more")
    work = [(recipe, Path(into) if into else folder_of(recipe)) for recipe in recipes]
    entries: dict[Recipe, Entry] = {}
    for recipe, made in _results(work, again, str(device), jobs, executor):
        entries[recipe] = made
        done(recipe, made)
    return entries


def _results(
    work: list[tuple[Recipe, Path]], again: bool, device: str, jobs: int, executor: Executor | None
) -> Iterator[tuple[Recipe, Entry]]:
    if executor is None and jobs == 1:
        for recipe, folder in work:
            yield recipe, _stand(recipe, folder, again, device)
        return
    with _pool(jobs, executor) as pool:
        futures = {
            pool.submit(_stand, recipe, folder, again, device): recipe for recipe, folder in work
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()


@contextmanager
def _pool(jobs: int, executor: Executor | None) -> Iterator[Executor]:
    if executor is not None:
        yield executor
        return
    # spawn, because a process forked from one that has run torch may hang in its threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_die_at_ctrl_c) as own:
        yield own


def _die_at_ctrl_c() -> None:
    """Let a worker end at once and without a traceback; the parent reports."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stand(recipe: Recipe, folder: Path, again: bool, device: str) -> Entry:
    """See to it that the checkpoint of a recipe stands in a folder, and return its entry."""
    with checkpoint.lock(folder / recipe.file_name):
        if not again:
            try:
                checkpoint.read(folder, recipe)
                return checkpoint.manifest(folder)[recipe.file_name]
            except FileError:
                pass  # missing or unsound: that is what this call is for
        start = None
        if recipe.start is not None:
            _stand(recipe.start, folder, again=False, device=device)
            start = checkpoint.read(folder, recipe.start)
        began = time.perf_counter()
        trained = train(recipe, start=start, device=device)
        return checkpoint.write(folder, recipe, trained, time.perf_counter() - began)
