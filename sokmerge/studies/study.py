"""What a study is, how its results are made, and how a chapter reads them."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sokmerge import inputs
from sokmerge.errors import ArgumentError, FileError, UnknownNameError
from sokmerge.files import sha256, write_atomically
from sokmerge.reader import provenance
from sokmerge.reader.repository import find_root
from sokmerge.reader.tables import Table
from sokmerge.testbed import zoo
from sokmerge.testbed.recipes import SEEDS, master_seed

__all__ = [
    "OTHER", "SHIPPED", "Study", "code_of", "describe", "described", "folder", "make", "named",
    "names", "results",
]  # fmt: skip

SHIPPED = Path(__file__).parent / "results"
"""Where the tables of the zoo that ships lie."""

OTHER = SHIPPED / "another-zoo"
"""Where tables of a zoo of master seed 1 lie, of the few studies whose claims need more seeds."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """A measurement that is repeated with every seed.

    Attributes:
        name: what the command line calls it; its module is named so, with underscores.
        rows: the measurement: from a seed to the rows of a table. A cell is a text, a whole
            number or a finite number; every row has the same columns. The column ``seed`` is
            added in front.
        seeds: the seeds; they are positions in the families of the zoo, ``zoo.family(name)[seed]``,
            so that another master seed makes other networks.
        varying: columns that differ from run to run, such as seconds.
    """

    name: str
    rows: Callable[[int], Iterable[Row]]
    seeds: Sequence[int] = SEEDS
    varying: tuple[str, ...] = ()


def names() -> tuple[str, ...]:
    """Return the names of all studies."""
    here = Path(__file__).parent
    modules = {p.stem for p in here.glob("*.py")} - {Path(__file__).stem, "__init__"}
    packages = {p.parent.name for p in here.glob("*/__init__.py")}
    return tuple(sorted(stem.replace("_", "-") for stem in modules | packages))


def code_of(name: str) -> str:
    """Return one SHA-256 of the files in which a study is written: its module, or its package.

    Docstrings are left out: to say a thing better changes no number.
    """
    stem = Path(__file__).parent / name.replace("-", "_")
    files = sorted(stem.glob("*.py")) or [stem.with_suffix(".py")]
    codes = {file.name: _without_docstrings(file.read_text(encoding="utf-8")) for file in files}
    return provenance.combined(
        {name: hashlib.sha256(code.encode()).hexdigest() for name, code in codes.items()}
    )


def named(name: str) -> Study:
    """Return a study by its name.

    Raises:
        UnknownNameError: there is no study of that name.
    """
    known = names()
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.4) or known
        raise UnknownNameError("study", found=repr(name), expected=f"one of {', '.join(near)}")
    return importlib.import_module(f"sokmerge.studies.{name.replace('-', '_')}").STUDY


def folder() -> Path:
    """Return where results lie: in the package, or for another master seed in the user's cache."""
    return zoo.cache().parent / "results" if master_seed() else SHIPPED


def results(name: str, *, both: bool = False) -> pd.DataFrame:
    """Return the results of a study, a row for each measurement; the read is recorded.

    Args:
        name: which study.
        both: also the rows of the other zoo that ships (:data:`OTHER`), for a claim that five
            networks do not settle. Its seeds are told apart as its networks are, by a thousand.

    Raises:
        FileError: the study was not made yet, or its file was altered since.
    """
    first = _read(folder(), name)
    if not both:
        return first
    other = _read(SHIPPED if master_seed() else OTHER, name)
    return pd.concat([first, other.assign(seed=other["seed"] + 1000)], ignore_index=True)


def _read(there: Path, name: str) -> pd.DataFrame:
    path = there / f"{name}.csv"
    into = f" --into {there}" if there == OTHER else ""
    do = f"Make them: sokmerge results make {name}{into}."
    if not path.is_file():
        raise FileError(str(path), found="no such file", expected="results of a study", do=do)
    digest = sha256(path)
    if described(there, name).get("csv") != digest:
        raise FileError(
            str(path),
            found=f"a table with SHA-256 {digest[:12]}...",
            expected=f"the one that {name}.json vouches for",
            do=do,
        )
    inputs.record(path, digest)
    return pd.read_csv(path, keep_default_na=False)


def describe(name: str) -> dict[str, Any]:
    """Return what is told of the results of a study: command, code, versions, seconds, digest.

    Raises:
        FileError: it cannot be read.
    """
    return described(folder(), name)


def described(there: Path, name: str) -> dict[str, Any]:
    """Return what is told of the results of a study in a folder, as :func:`describe` does."""
    path = there / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(
            str(path),
            found=f"that it cannot be read ({error})",
            expected="the provenance of results",
            do=f"Make them: sokmerge results make {name}.",
        ) from error


def make(
    name: str,
    *,
    seeds: Sequence[int] | None = None,
    jobs: int = 1,
    executor: Executor | None = None,
    into: Path | None = None,
) -> Path:
    """Run a study for every seed and write its results, whole or not at all.

    Args:
        name: which study.
        seeds: only these, for a trial; by default all of the study.
        jobs: processes, one thread each.
        executor: takes the place of those processes; it stays open.
        into: folder to write to; by default :func:`folder`.

    Returns:
        The CSV file.

    Raises:
        UnknownNameError: there is no study of that name.
        ArgumentError: rows of different columns, or ``jobs`` is not positive.
    """
    if jobs < 1:
        raise ArgumentError("jobs", found=repr(jobs), expected="1 or more")
    told, into = named(name), Path(into) if into else folder()
    seeds = tuple(told.seeds if seeds is None else seeds)
    # spawn, because a process forked from one that has run torch may hang in its threads.
    context = multiprocessing.get_context("spawn")
    own = ProcessPoolExecutor(jobs, mp_context=context) if executor is None else None
    with own or nullcontext(executor) as pool:
        parts = list(pool.map(_measure, [name] * len(seeds), seeds))
    rows = [row for part in parts for row in part["rows"]]
    table = Table.of({column: [row[column] for row in rows] for column in rows[0]})
    path = write_atomically(into / f"{name}.csv", table.csv())
    base = find_root()
    origin = {
        "study": name,
        "command": f"sokmerge results make {name}",
        "csv": sha256(path),
        "rows": len(rows),
        "seeds": list(seeds),
        "master seed": master_seed(),
        "seconds": round(sum(part["seconds"] for part in parts), 1),
        "code": code_of(name),
        "inputs": {k: v for part in parts for k, v in part["inputs"].items()},
        "commit": provenance.commit(base),
        "versions": provenance.versions(),
        "device": provenance.device(),
    }
    write_atomically(into / f"{name}.json", json.dumps(origin, indent=1, sort_keys=True) + "\n")
    return path


def _without_docstrings(source: str) -> str:
    r"""Return a source without the lines of its docstrings.

    >>> _without_docstrings('def f():\n    "Say it."\n    return 1\n')
    'def f():\n    return 1\n'
    """
    lines = source.splitlines(keepends=True)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            told = node.body[0]
            lines[told.lineno - 1 : told.end_lineno] = [""] * (told.end_lineno - told.lineno + 1)
    return "".join(lines)


def _measure(name: str, seed: int) -> dict[str, Any]:
    """Measure one seed in this process, with one thread; called in workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        began = time.process_time()
        rows = [{"seed": seed, **row} for row in named(name).rows(seed)]
        seconds = time.process_time() - began
    finally:
        torch.set_num_threads(threads)
    columns = {tuple(row) for row in rows}
    if len(columns) != 1:
        raise ArgumentError(
            f"study {name}",
            found=f"rows with columns {sorted(columns)[:2]}",
            expected="one or more rows, all with the same columns",
        )
    return {"rows": rows, "seconds": seconds, "inputs": inputs.recorded()}
