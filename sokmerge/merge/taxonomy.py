"""The taxonomy as data: what a method is, said once, beside the function that is the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from sokmerge.errors import ArgumentError, UnknownNameError

__all__ = ["Branch", "Declaration", "Need", "declaration", "method", "methods"]

Branch = Literal["ensembling", "weight aggregation", "neuron alignment"]
"""The three branches of the taxonomy, by core algorithmic principle."""

Need = Literal["base", "statistics", "inputs", "data", "symmetry"]
"""What a method asks for beyond the parameters of the models.

``base``: the parameters from which the models were trained. ``statistics``: tensors that sum up,
once for each model, what the method needs to know of data. ``inputs``: examples without labels.
``data``: examples with labels, or a score that was made with them. ``symmetry``: what leaves the
function of a network unchanged.
"""

Returns = Literal["params", "permutation"]

Function = TypeVar("Function", bound=Callable[..., object])


@dataclass(frozen=True)
class Declaration:
    """What one method is.

    Attributes:
        name: the name of the function, unique.
        branch: where in the taxonomy it stands.
        paper: BibTeX key of the work that introduced it.
        needs: what it asks for beyond the models' parameters.
        returns: whether it gives merged parameters or an alignment that a merge builds on.
        function: the function itself.
    """

    name: str
    branch: Branch
    paper: str
    needs: tuple[Need, ...]
    returns: Returns
    function: Callable[..., object]


_declared: dict[str, Declaration] = {}


def method(
    *, branch: Branch, paper: str, needs: tuple[Need, ...] = (), returns: Returns = "params"
) -> Callable[[Function], Function]:
    """Declare a function as a method of the taxonomy; the function itself is left as it is.

    Raises:
        ArgumentError: the branch, a need or the result is unknown, or the name is declared already.
    """
    words = [("branch", branch, Branch), ("returns", returns, Returns)]
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
        _declared[name] = Declaration(name, branch, paper, needs, returns, function)
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
