"""Where a figure comes from: the code, files, versions and device that made it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sokmerge import inputs
from sokmerge.files import sha256

__all__ = [
    "circumstances",
    "code",
    "combined",
    "commit",
    "device",
    "facts",
    "modules",
    "recipe_names",
    "versions",
]

_LIBRARIES = ("torch", "numpy", "matplotlib")


def modules() -> dict[str, str]:
    """Return the modules of this package that the process has imported, name to SHA-256.

    >>> "sokmerge.reader.provenance" in modules()
    True
    """
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and (name == "sokmerge" or name.startswith("sokmerge.")):
            found[name] = sha256(Path(file))
    return dict(sorted(found.items()))


def combined(digests: Mapping[str, str]) -> str:
    """Return one SHA-256 of many, which changes if any name or content does.

    >>> combined({"a": "1", "b": "2"}) == combined({"b": "2", "a": "1"})
    True
    """
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def code() -> str:
    """Return one SHA-256 of all modules of this package that the process has imported."""
    return combined(modules())


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that compute and draw."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device() -> str:
    """Return the device that computes: ``cpu`` with its instruction set, or the name of the GPU.

    The testbed, where it is in use, is asked which device it chose.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return "cpu"
    testbed = sys.modules.get("sokmerge.testbed")
    chosen = str(testbed.device()) if hasattr(testbed, "device") else "cpu"
    if chosen.startswith("cuda"):
        return torch.cuda.get_device_name(chosen)
    return f"{chosen} ({torch.backends.cpu.get_cpu_capability()})" if chosen == "cpu" else chosen


def commit(base: Path | None) -> str:
    """Return the commit that a clone stands at, and whether the package differs from it.

    Outside of a clone (None) it is unknown: the package may lie within a repository of its user,
    whose commit says nothing.
    """
    head = _git(base, "rev-parse", "HEAD") if base else None
    if base is None or head is None:
        return "unknown"
    changed = _git(base, "status", "--porcelain", "--", str(inputs.PACKAGE))
    return f"{head} with changes in sokmerge" if changed else head


def circumstances(base: Path | None) -> dict[str, Any]:
    """Return what else made a result: commit, code, versions and device."""
    return {"commit": commit(base), "code": code(), "versions": versions(), "device": device()}


def facts() -> str:
    """Return as JSON what this process has imported and read, with what, and how long it computed.

    Whoever has executed a notebook asks its process for this. The time is the processor's: the
    clock on the wall also counts the neighbours.
    """
    return json.dumps(
        {
            "modules": modules(),
            "inputs": inputs.recorded(),
            "versions": versions(),
            "device": device(),
            "seconds": round(time.process_time(), 1),
        }
    )


def recipe_names(recipes: Iterable[Any]) -> list[str]:
    """Return the names of recipes: each is a text, or has a ``name`` and a ``hash``.

    >>> recipe_names(["mlp-width-16-s0-0123abcd"])
    ['mlp-width-16-s0-0123abcd']
    """
    return [
        recipe if isinstance(recipe, str) else f"{recipe.name}-{recipe.hash}" for recipe in recipes
    ]


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
