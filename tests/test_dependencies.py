"""environment.yml, pyproject.toml and constraints.txt say the same, and the environment obeys."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

EXTRAS = ("book", "test", "bench", "transformers", "large")

# Packages that are imported under another name.
DISTRIBUTIONS = {
    "yaml": "pyyaml", "PIL": "pillow", "IPython": "ipython", "ot": "pot", "lap": "lapx",
}  # fmt: skip

# Tried together, on three versions of Python, before the book was begun.
TRIED = {
    "jupyter-book": "1.0.4.post1",
    "sphinx": "7.4.7",
    "docutils": "0.21.2",
    "myst-nb": "1.4.0",
    "myst-parser": "3.0.1",
    "sphinx-book-theme": "1.2.0",
    "sphinx-design": "0.8.0",
    "sphinxcontrib-bibtex": "2.7.0",
    "sphinx-proof": "0.4.0",
    "sphinx-exercise": "1.2.1",
    "sphinxext-opengraph": "0.13.0",
    "nbval": "0.11.0",
    "pytest": "9.2.0",
    "pytest-xdist": "3.8.0",
    "ipykernel": "7.4.0",
    "nbclient": "0.11.0",
    "matplotlib": "3.11.2",
    "seaborn": "0.13.2",
    "torch": "2.14.1",
    "torchvision": "0.29.1",
    "loss-landscapes": "3.0.6",
}


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, str]:
    lines = (root / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    names = [canonicalize_name(pin.name) for pin in found]
    assert len(names) == len(set(names)), "a package is pinned twice"
    return {name: _exact(pin) for name, pin in zip(names, found, strict=True)}


def _exact(pin: Requirement) -> str:
    assert re.fullmatch(r"==[^*,]+", str(pin.specifier)), f"{pin} is not an exact version"
    return str(pin.specifier).removeprefix("==")


def _wanted(project: dict) -> list[Requirement]:
    extras = project["optional-dependencies"]
    assert set(extras) == set(EXTRAS)
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]
    return [Requirement(line) for line in lines]


def test_every_range_has_a_lower_bound_and_holds_the_pinned_version(project, pins):
    for requirement in _wanted(project):
        bounds = {part.operator for part in requirement.specifier}
        assert bounds & {">=", "==", "~="}, requirement
        pinned = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), f"{requirement} against {pinned}"


def test_what_was_tried_together_is_what_is_pinned(pins):
    assert {name: pins.get(name) for name in TRIED} == TRIED


def test_every_pin_is_needed_by_something_that_is_asked_for(project, pins):
    needed: set[str] = set()
    queue = [(canonicalize_name(r.name), tuple(r.extras)) for r in _wanted(project)]
    while queue:
        name, extras = queue.pop()
        if name in needed and not extras:
            continue
        needed.add(name)
        try:
            requires = distribution(name).requires or ()
        except PackageNotFoundError:  # an extra that is not installed here
            continue
        for line in requires:
            r = Requirement(line)
            chosen = [{"extra": extra} for extra in extras] or [{"extra": ""}]
            if (r.marker is None or any(r.marker.evaluate(e) for e in chosen)) and (
                canonicalize_name(r.name) not in needed
            ):
                queue.append((canonicalize_name(r.name), tuple(r.extras)))
    # Asked for on other platforms or by older versions of Python only.
    elsewhere = {"psutil", "pexpect", "ptyprocess"}
    assert set(pins) - needed - elsewhere <= _not_installed(pins)


def _not_installed(pins: dict[str, str]) -> set[str]:
    absent = set()
    for name in pins:
        try:
            version(name)
        except PackageNotFoundError:
            absent.add(name)
    return absent


def test_what_is_installed_here_is_what_is_pinned(pins):
    absent = _not_installed(pins)
    installed = {name: version(name) for name in pins if name not in absent}
    # A build for one device has a local version: 2.14.1+cpu is 2.14.1.
    other = {name: found for name, found in installed.items() if found.split("+")[0] != pins[name]}
    assert not other, f"pinned otherwise: { {name: pins[name] for name in other} }"


def test_conda_asks_for_the_same(root: Path, project):
    environment = yaml.safe_load((root / "environment.yml").read_text())
    assert environment["name"] == project["name"]
    packages = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == ["-c constraints.txt", "-e .[book,test]"]
    # Nothing but Python and pip comes from conda: one source for each version.
    (python,) = (entry for entry in packages if entry.startswith("python"))
    assert set(packages) == {python, "pip"}
    assert SpecifierSet(project["requires-python"]).contains(python.partition("=")[2])


def test_make_installs_the_same(root: Path):
    makefile = (root / "Makefile").read_text()
    assert 'pip install --quiet -c constraints.txt -e ".[book,test]"' in makefile
    assert re.search(r"^\$\(STAMP\): pyproject\.toml constraints\.txt$", makefile, re.MULTILINE)


def test_the_version_stands_in_one_place(root: Path, project):
    import sokmerge

    assert "version" in project["dynamic"]
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert citation["version"] == sokmerge.__version__
    assert f"## {sokmerge.__version__}" in (root / "CHANGELOG.md").read_text()


def test_what_the_package_imports_is_declared(root: Path, project):
    """An import that only works because another package brings it would fail one day."""
    declared = {canonicalize_name(r.name) for r in _wanted(project)} | {"sokmerge"}
    for path in (root / "sokmerge").rglob("*.py"):
        for name in _imported(ast.parse(path.read_text(encoding="utf-8"))):
            told = f"{path.relative_to(root)} imports {name}, which pyproject.toml does not name"
            assert canonicalize_name(DISTRIBUTIONS.get(name, name)) in declared, told


def _imported(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
    return {name.partition(".")[0] for name in found} - sys.stdlib_module_names
