"""The taxonomy as data: what a method is, said once, beside the function that is the method."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from sokmerge.errors import ArgumentError, UnknownNameError

__all__ = ["Branch", "Declaration", "Need", "Returns", "Scope", "declaration", "method", "methods"]

Branch = Literal["ensembling", "weight aggregation", "neuron alignment"]
"""The three branches of the taxonomy, by core algorithmic principle."""

Need = Literal["base", "statistics", "inputs", "data", "symmetry", "training", "trajectory"]
"""What a method asks for beyond the parameters of the models.

``base``: the parameters from which the models were trained. ``statistics``: tensors that sum up,
once for each model, what the method needs to know of data. ``inputs``: examples without labels.
``data``: examples with labels, or a score that was made with them. ``symmetry``: what leaves the
function of a network unchanged. ``training``: a function that trains, by which the method makes
or changes the networks itself. ``trajectory``: several points of one training run.
"""

Returns = Literal["params", "permutation", "predictor", "params per task", "population"]
"""What a method gives.

``params``: one merged network. ``permutation``: an alignment that a merge builds on.
``predictor``: a function of inputs that calls one or several networks. ``params per task``: one
network for each task, from what the tasks share. ``population``: several networks.
"""

Scope = Literal["entry", "tensor", "layer", "model", "output"]
"""Over what a method decides at once.

``entry``: each entry of the parameters for itself. ``tensor``: each parameter tensor. ``layer``:
a layer with all that belongs to it. ``model``: all parameters together. ``output``: what the
networks say, not their parameters.
"""

Function = TypeVar("Function", bound=Callable[..., object])


@dataclass(frozen=True)
class Declaration:
    """What one method is.

    Attributes:
        name: the name of the function, unique.
        branch: where in the taxonomy it stands.
        paper: BibTeX key of the work that introduced it.
        needs: what it asks for beyond the models' parameters.
        returns: what it gives.
        scope: over what it decides at once.
        equation: the method in one line, as LaTeX.
        ties: which entries are taken where several are equal; None where nothing is ranked.
        signs: what is done where signs disagree; None where signs play no part.
        function: the function itself.
    """

    name: str
    branch: Branch
    paper: str
    needs: tuple[Need, ...]
    returns: Returns
    scope: Scope
    equation: str
    ties: str | None
    signs: str | None
    function: Callable[..., object]

    @property
    def chapter(self) -> str:
        """The name of the chapter that explains it: the folder in which the function stands."""
        folder = self.function.__module__.split(".")[2]
        return {
            "ensembling": "ensembling",
            "aggregation": "weight-aggregation",
            "task_vectors": "task-vectors",
            "alignment": "neuron-alignment",
        }.get(folder, folder)

    @property
    def defaults(self) -> dict[str, object]:
        """The optional arguments and their default values, in the order of the signature."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}


_declared: dict[str, Declaration] = {}


def method(
    *,
    branch: Branch,
    paper: str,
    scope: Scope,
    equation: str,
    needs: tuple[Need, ...] = (),
    returns: Returns = "params",
    ties: str | None = None,
    signs: str | None = None,
) -> Callable[[Function], Function]:
    """Declare a function as a method of the taxonomy; the function itself is left as it is.

    Args:
        branch, paper, needs, returns, scope, equation, ties, signs: see :class:`Declaration`.

    Raises:
        ArgumentError: a word is none of the taxonomy's, or the name is declared already.
    """
    words = [("branch", branch, Branch), ("returns", returns, Returns), ("scope", scope, Scope)]
    for name, value, known in [*words, *(("needs", need, Need) for need in needs)]:
        if value not in get_args(known):
            raise ArgumentError(name, found=repr(value), expected=f"one of {get_args(known)}")

    def declare(function: Function) -> Function:
        name = function.__name__
        if name in _declared and _declared[name].function.__module__ != function.__module__:
            raise ArgumentError(
                name,
                found=f"a method of that name in {_declared[name].function.__module__}",
                expected="one method of each name",
            )
        _declared[name] = Declaration(
            name, branch, paper, needs, returns, scope, equation, ties, signs, function
        )
        return function

    return declare


def methods() -> tuple[Declaration, ...]:
    """Return the declarations of all methods, by branch and then by name."""
    order = get_args(Branch)
    return tuple(sorted(_declared.values(), key=lambda d: (order.index(d.branch), d.name)))


def declaration(name: str) -> Declaration:
    """Return the declaration of one method.

    Raises:
        UnknownNameError: there is no method of that name.
    """
    if name not in _declared:
        raise UnknownNameError(
            "name", found=repr(name), expected=f"one of {', '.join(sorted(_declared))}"
        )
    return _declared[name]
