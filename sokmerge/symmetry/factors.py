r"""Read a graph for symmetries beyond permutations: who may be rescaled, change sign, or mix.

Every index of every axis of every parameter gets a number that it could be multiplied by. Each
operator then says what these numbers must satisfy for the function to stay: a sum of two tensors
makes them equal, a sum over an axis needs a unit's number and its reader's to cancel, a ReLU passes
positive numbers, a tanh signs; what nothing is known of needs them to be one. The numbers that
are left free are the group.

The numbers of a tensor are a product of arrays, its *terms*, each of which broadcasts against the
tensor. An entry of a term is 0 for the number one, :math:`v` for the number v, :math:`-v` for
its inverse. Three readings are made, of positive numbers, of signs, and of invertible matrices, for
which only linear maps let pass. In the third, units that are to be mixed must also have been
treated alike, together, by every operator on their way; each leaves its mark on what it treats.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from sokmerge.symmetry.labels import LARGEST, groups
from sokmerge.symmetry.linear import Flips, MixedAxis, Mixing, Powers, Rescaling
from sokmerge.symmetry.solving import mix64
from sokmerge.symmetry.tracing import Graph, arguments, operator_name

__all__ = ["Kind", "flips", "mixing", "rescaling"]

Array = np.ndarray
Kind = Literal["positive", "sign", "matrix"]


@dataclass(frozen=True)
class Scaled:
    """A tensor: its shape, and the terms that multiply its entries."""

    shape: tuple[int, ...]
    terms: tuple[Array, ...] = ()
    even: bool = False  # whether all its entries are alike


class _Numbers:
    """Numbers, and which of them are equal, inverse, or one. Number 0 is the number one."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.count = 1
        self._link = np.zeros(1 << 12, dtype=np.int64)
        self._sign = np.ones(1 << 12, dtype=np.int64)
        self.marks = np.zeros(1 << 12, dtype=np.uint64)

    def fresh(self, count: int) -> Array:
        first, self.count = self.count, self.count + count
        while self.count > len(self._link):
            self._link = np.concatenate([self._link, np.zeros_like(self._link)])
            self._sign = np.concatenate([self._sign, np.ones_like(self._sign)])
            self.marks = np.concatenate([self.marks, np.zeros_like(self.marks)])
        ids = np.arange(first, self.count, dtype=np.int64)
        self._link[ids] = ids
        return ids

    def find(self, signed: Array) -> Array:
        """Return the representatives, with the sign by which the numbers are theirs."""
        first = ids = np.abs(signed)
        sign = np.where(signed < 0, -1, 1)
        while True:
            further = self._link[ids]
            if np.array_equal(further, ids):
                self._link[first], self._sign[first] = ids, sign * np.where(signed < 0, -1, 1)
                return ids * sign
            sign = sign * self._sign[ids]
            ids = further

    def pin(self, terms: Iterable[Array]) -> None:
        for term in terms:
            self.identify(term.ravel(), np.zeros(term.size, dtype=np.int64))

    def identify(self, a: Array, b: Array) -> None:
        """Numbers one by one are equal."""
        a, b = np.broadcast_arrays(a, b)
        if a.size > LARGEST:
            self.pin([np.unique(a), np.unique(b)])
            return
        pairs = np.unique(np.stack([a.ravel(), b.ravel()], -1), axis=0)
        a, b = pairs[:, 0], pairs[:, 1]
        while True:
            root_a, root_b = self.find(a), self.find(b)
            high, low = np.abs(root_a), np.abs(root_b)
            differ = high != low
            against = ~differ & (root_a != root_b) & (high > 0)
            if against.any() and self.kind != "sign":  # equal to its own inverse: it is one
                self._link[high[against]] = 0
                continue
            if not differ.any():
                return
            sign = np.sign(root_a) * np.sign(root_b)
            sign[sign == 0] = 1
            swap = high < low
            high, low = np.where(swap, low, high)[differ], np.where(swap, high, low)[differ]
            at = np.unique(high, return_index=True)[1]
            self._link[high[at]], self._sign[high[at]] = low[at], sign[differ][at]

    def mark(self, array: Array, rows: Array, seed: int) -> None:
        """Leave a mark on the numbers of an array, different for each row."""
        ids = np.abs(array).ravel()
        told = mix64(np.broadcast_to(rows, array.shape).ravel().astype(np.uint64)
                     + np.uint64(seed) * np.uint64(1 << 32))  # fmt: skip
        with np.errstate(over="ignore"):
            np.add.at(self.marks, ids, told)


def rescaling(graph: Graph) -> Rescaling:
    """Return the units of a network that may be multiplied by positive numbers."""
    return Rescaling(_Reading("positive", graph).diagonal())


def flips(graph: Graph) -> Flips:
    """Return the units of a network that may change sign."""
    return Flips(_Reading("sign", graph).diagonal())


def mixing(graph: Graph) -> Mixing:
    """Return the sets of units of a network that may be mixed."""
    return Mixing(_Reading("matrix", graph).mixing())


class _Reading:
    def __init__(self, kind: Kind, graph: Graph) -> None:
        program, state, base = graph.program, graph.state, graph.base
        self.kind, self.base = kind, base
        self.numbers = _Numbers(kind)
        self.found: dict[torch.fx.Node, Any] = {}
        self.parameters: dict[str, Scaled] = {}
        self.first: dict[int, str] = {}
        self.state = state
        self.sums: list[Array] = []
        self.viewed: set[torch.fx.Node] = set()  # what some other node is a view of
        self.same: dict[torch.fx.Node, list[torch.fx.Node]] = {}  # one tensor, written in place
        inputs = {s.arg.name: s for s in program.graph_signature.input_specs}
        for number, node in enumerate(program.graph.nodes):
            self.number = number + 1
            if node.op == "placeholder":
                self.found[node] = self._given(node, inputs[node.name])
            elif node.op == "call_function":
                self.found[node] = self._result(node)
                if node in base and not _writes(node):
                    self.viewed.add(base[node])
            elif node.op == "output":
                for x in _scaled(torch.fx.node.map_arg(node.args, self.found.get)):
                    self.numbers.pin(x.terms)
            else:
                self.found[node] = None
        self.names = [n for n, key in state.items() if self.first.get(key) in self.parameters]

    def _given(self, node: torch.fx.Node, spec: Any) -> Any:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return value
        shape = tuple(value.shape)
        if spec.kind != InputKind.PARAMETER or not node.users or not value.is_floating_point():
            return Scaled(shape)
        name = self.first.setdefault(self.state[spec.target], spec.target)
        if name not in self.parameters:
            terms = []
            for d, size in enumerate(shape):
                if size > 1:
                    along = [size if e == d else 1 for e in range(len(shape))]
                    terms.append(self.numbers.fresh(size).reshape(along))
            self.parameters[name] = Scaled(shape, tuple(terms))
        return self.parameters[name]

    def _result(self, node: torch.fx.Node) -> Any:
        args = torch.fx.node.map_arg(node.args, self.found.get)
        kwargs = torch.fx.node.map_arg(node.kwargs, self.found.get)
        if node.target is operator.getitem:
            return args[0][args[1]] if isinstance(args[0], (list, tuple)) else args[0]
        values = [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
        operands = _scaled((args, kwargs))
        if not values and not operands:
            return node.meta.get("val")
        shapes = [tuple(v.shape) for v in values]
        named = arguments(node.target, args, kwargs)
        made = self._apply(operator_name(node.target), named, operands, shapes)
        if not all(value.is_floating_point() for value in values):  # rounded, or compared
            self.pinned(operands)
            made = [Scaled(shape) for shape in shapes]
        if self.kind == "matrix":
            for x in made:
                for i, term in enumerate(x.terms):
                    self.numbers.mark(term, np.zeros(1, np.int64), self._seed(32 + i))
        if _writes(node) and isinstance(node.args[0], torch.fx.Node) and made:
            made = [self._written(node, node.args[0], made[0])]
        return made[0] if isinstance(node.meta.get("val"), Tensor) and made else made

    def _written(self, node: torch.fx.Node, source: torch.fx.Node, made: Scaled) -> Scaled:
        """What was written in place is what all names of the tensor stand for from now on."""
        root = next((r for r, names in self.same.items() if source in names), source)
        names = self.same.setdefault(root, [root])
        if root in self.base or root in self.viewed:  # who else sees it is not followed up
            self.pinned(made, [self.found[n] for n in names])
            made = Scaled(made.shape)
        for name in names:
            self.found[name] = made
        names.append(node)
        return made

    def _apply(
        self, name: str, named: dict[str, Any], operands: list[Scaled], shapes: list[Any]
    ) -> list[Scaled]:
        made = None
        if not any(x.terms for x in operands) and name not in _EVEN:
            return [Scaled(shape) for shape in shapes]
        rule = _RULES.get(name)
        if rule is not None and shapes:
            made = rule(self, named, shapes)
        if made is None:
            for x in operands:
                self.numbers.pin(x.terms)
            made = [Scaled(shape) for shape in shapes]
        elif not isinstance(made, list):
            made = [made]
        if [x.shape for x in made] != shapes:
            raise AssertionError(f"{name}: terms of shapes {[x.shape for x in made]} for {shapes}")
        return made

    # --- what operators do --------------------------------------------------------------------

    def add(self, a: Scaled, b: Scaled, shape: tuple[int, ...]) -> Scaled:
        ours, theirs = ([_ranked(t, len(shape)) for t in x.terms] for x in (a, b))
        if len(ours) <= 1 and len(theirs) <= 1:
            zero = np.zeros((1,) * len(shape), dtype=np.int64)
            x, y = ours[0] if ours else zero, theirs[0] if theirs else zero
            self.numbers.identify(x, y)
            return Scaled(shape, (x,) if ours and theirs else ())
        x, y = ({_pattern(t): t for t in terms} for terms in (ours, theirs))
        if x.keys() == y.keys() and len(x) == len(ours) == len(theirs):
            for key, term in x.items():
                self.numbers.identify(term, y[key])
            return Scaled(shape, tuple(ours))
        self.numbers.pin([*ours, *theirs])
        return Scaled(shape)

    def mul(self, a: Scaled, b: Scaled, shape: tuple[int, ...], inverse: bool = False) -> Scaled:
        if self.kind == "matrix":
            self._split(a, b, len(shape), 0)
            self._split(b, a, len(shape), 1)
        ours = [_ranked(t, len(shape)) for t in a.terms]
        theirs = [_ranked(t, len(shape)) * (-1 if inverse else 1) for t in b.terms]
        patterns = {_pattern(t) for t in ours}
        twice = [t for t in theirs if _pattern(t) in patterns]
        self.numbers.pin(twice)  # one number for each unit, not a product of several
        theirs = [t for t in theirs if _pattern(t) not in patterns]
        return Scaled(shape, (*ours, *theirs))

    def _split(self, x: Scaled, other: Scaled, rank: int, side: int) -> None:
        """Units are mixed only where what multiplies them is one number for all of them."""
        if other.even:
            return
        sizes = (1,) * (rank - len(other.shape)) + other.shape
        for i, term in enumerate(x.terms):
            term = _ranked(term, rank)
            along = [d for d in range(rank) if term.shape[d] > 1 and sizes[d] > 1]
            if along:
                self.numbers.mark(term, _places(term, along), self._seed(4 + 2 * i + side))

    def _seed(self, part: int) -> int:
        """A number for each part of each operator."""
        return 64 * self.number + part % 64

    def contract(self, a: Scaled, b: Scaled) -> Scaled:
        """Multiply tensors of one rank, and sum over the last dimension."""
        rank = len(a.shape)
        shape = tuple(max(m, n) for m, n in zip(a.shape, b.shape, strict=True))
        ours, theirs = ([t for t in x.terms if t.shape[-1] > 1] for x in (a, b))
        rest = [t for x in (a, b) for t in x.terms if t.shape[-1] == 1]
        if len(ours) == len(theirs) == 1:
            x, y = ours[0], theirs[0]
            self.numbers.identify(x, -y)
            if self.kind == "matrix":
                self.sums += [x, y]
                for side, term in enumerate((x, y)):
                    along = [d for d in range(rank - 1) if term.shape[d] > 1]
                    self.numbers.mark(term, _places(term, along), self._seed(2 + side))
        elif ours or theirs:
            self.numbers.pin([*ours, *theirs])
        if self.kind == "matrix":
            left = [Scaled(x.shape, tuple(t for t in x.terms if t.shape[-1] == 1)) for x in (a, b)]
            self._split(left[0], Scaled(b.shape), rank, 0)
            self._split(left[1], Scaled(a.shape), rank, 1)
        return Scaled(shape[:-1], tuple(t[..., 0] for t in rest))

    def _only_once(self) -> None:
        """In a sum each unit must occur once, if it is to be mixed with others."""
        for term in self.sums:
            roots = np.abs(self.numbers.find(term)).reshape(-1, term.shape[-1])
            ordered = np.sort(roots, axis=1)
            twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)
            self.numbers.pin([ordered[:, 1:][twice]])

    def total(self, x: Scaled, dims: Sequence[int], keepdim: bool) -> Scaled:
        gone = {d % len(x.shape) for d in dims}
        hit = [t for t in x.terms if any(t.shape[d] > 1 for d in gone)]
        self.numbers.pin(hit)
        terms = [t for t in x.terms if all(t.shape[d] == 1 for d in gone)]
        if keepdim:
            shape = tuple(1 if d in gone else n for d, n in enumerate(x.shape))
            return Scaled(shape, tuple(terms))
        left = [d for d in range(len(x.shape)) if d not in gone]
        return Scaled(
            tuple(x.shape[d] for d in left),
            tuple(t.reshape([t.shape[d] for d in left]) for t in terms),
        )

    def pinned(self, *tensors: Any) -> None:
        for x in _scaled(tensors):
            self.numbers.pin(x.terms)

    # --- what remains -------------------------------------------------------------------------

    def _lines(self) -> list[tuple[str, int, Array, bool]]:
        """Each axis of each parameter: name, dimension, representatives, whether a second name."""
        lines = []
        for name in self.names:
            first = self.first[self.state[name]]
            for term in self.parameters[first].terms:
                (d,) = [d for d, n in enumerate(term.shape) if n > 1]
                lines.append((name, d, self.numbers.find(term.ravel()), name != first))
        return sorted(lines, key=lambda line: line[1] != 0)

    def diagonal(self) -> tuple[tuple[str, int, tuple[Powers, ...]], ...]:
        lines = self._lines()
        block = np.full(self.numbers.count, -1, dtype=np.int64)
        place = np.full(self.numbers.count, -1, dtype=np.int64)
        names: list[str] = []
        sizes: list[int] = []
        for name, _, roots, _ in lines:
            ids = np.abs(roots)
            order = np.sort(np.unique(ids, return_index=True)[1])
            new = ids[order]
            new = new[(new > 0) & (block[new] < 0)]
            if len(new):
                block[new], place[new] = len(names), np.arange(len(new))
                names.append(_block_name(name, names))
                sizes.append(len(new))
        axes: list[list[Powers]] = [[] for _ in names]
        for name, d, roots, alias in lines:
            ids = np.abs(roots)
            for b in np.unique(block[ids[ids > 0]]):
                here = (ids > 0) & (block[ids] == b)
                powers = np.ones_like(roots) if self.kind == "sign" else np.sign(roots)
                made = np.where(here, place[ids], -1), np.where(here, powers, 1).astype(np.int8)
                axes[b].append(Powers(name, d, *made, alias))
        return tuple(
            (n, size, tuple(a)) for n, size, a in zip(names, sizes, axes, strict=True)
        )

    def mixing(self) -> tuple[tuple[str, int, int, tuple[MixedAxis, ...]], ...]:
        before = -1
        while before != (before := self._alive()):
            self._only_once()
        count = self.numbers.count
        marks = np.zeros(count, dtype=np.uint64)  # of the operators that treat a unit
        with np.errstate(over="ignore"):
            roots = np.abs(self.numbers.find(np.arange(count)))
            np.add.at(marks, roots, self.numbers.marks[:count])
        lines = [
            (name, d, np.where(np.sign(line) == sign, line, 0), alias)
            for name, d, line, alias in self._lines()
            for sign in (1, -1)
        ]
        along = np.zeros(count, dtype=np.uint64)  # and of the axes along which it lies
        good = np.zeros(count, dtype=bool)
        twice = np.zeros(count, dtype=bool)
        for number, (_, _, line, _) in enumerate(lines):
            ids = np.abs(line)
            times = np.bincount(ids, minlength=count)
            good |= times > 0
            twice |= times > 1
            with np.errstate(over="ignore"):
                along[times > 0] += mix64(np.array([number + 1], dtype=np.uint64))
        good &= ~twice
        good[0] = False
        sets: dict[tuple[int, int], list[int]] = {}
        first: dict[int, int] = {}
        for number, (_, _, line, _) in enumerate(lines):
            ids = np.abs(line)
            for i in ids[good[ids]].tolist():
                if i not in first:
                    first[i] = number
                    sets.setdefault((int(marks[i]), int(along[i])), []).append(i)
        kinds: dict[tuple[int, int, int], list[list[int]]] = {}
        for (_, axes), members in sets.items():
            if len(members) > 1:
                kinds.setdefault((first[members[0]], len(members), axes), []).append(members)
        order = [np.argsort(np.abs(line), kind="stable") for _, _, line, _ in lines]
        made, names = [], []
        for (number, size, _), found in kinds.items():
            name = _block_name(lines[number][0], names)
            names.append(name)
            wanted, axes = np.array(found), []
            for (parameter, d, line, alias), sorting in zip(lines, order, strict=True):
                ids = np.abs(line)
                at = np.searchsorted(ids, wanted[0, 0], sorter=sorting)
                if at == len(ids) or ids[sorting[at]] != wanted[0, 0]:
                    continue
                at = np.searchsorted(ids, wanted, sorter=sorting)
                places = sorting[np.minimum(at, len(ids) - 1)]
                assert (ids[places] == wanted).all()  # they lie along the same axes
                axes.append(MixedAxis(parameter, d, places, bool(line[places].max() < 0), alias))
            made.append((name, len(found), size, tuple(axes)))
        return tuple(made)

    def _alive(self) -> int:
        return int((self.numbers.find(np.arange(self.numbers.count)) != 0).sum())


# --- rules ----------------------------------------------------------------------------------------

Rule = Callable[[_Reading, dict[str, Any], list[tuple[int, ...]]], Any]
_RULES: dict[str, Rule] = {}
_EVEN = {"zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "scalar_tensor"}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def enter(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def _x(named: dict[str, Any]) -> Any:
    for name in ("self", "input", "tensor"):
        if isinstance(named.get(name), Scaled):
            return named[name]
    return None


@_rule(*_EVEN)
def _constant(reading, named, shapes):
    reading.pinned(list(named.values()))
    return [Scaled(shape, (), True) for shape in shapes]


@_rule("dropout", "feature_dropout", "contiguous", "clone", "to", "_to_copy", "type_as", "alias",
       "detach", "neg", "positive")  # fmt: skip
def _passed(reading, named, shapes):
    return _x(named)


@_rule("relu", "leaky_relu")
def _homogeneous(reading, named, shapes):
    return _x(named) if reading.kind == "positive" else None


@_rule("tanh", "softsign", "sin", "sinh", "asinh", "atan", "tan", "erf", "tanhshrink", "softshrink",
       "hardshrink")  # fmt: skip
def _odd(reading, named, shapes):
    return _x(named) if reading.kind == "sign" else None


@_rule("hardtanh")
def _hardtanh(reading, named, shapes):
    odd = reading.kind == "sign" and named["min_val"] == -named["max_val"]
    return _x(named) if odd else None


@_rule("abs")
def _absolute(reading, named, shapes):
    if reading.kind == "positive":
        return _x(named)
    return Scaled(shapes[0]) if reading.kind == "sign" else None


@_rule("square", "pow")
def _squared(reading, named, shapes):
    even = isinstance(_x(named), Scaled) and named.get("exponent", 2) in (2, 4)
    return Scaled(shapes[0]) if reading.kind == "sign" and even else None


@_rule("add", "sub", "subtract")
def _sum(reading, named, shapes):
    x, y = named.get("self"), named.get("other")
    if not isinstance(x, Scaled) or not isinstance(y, Scaled):
        return None
    return reading.add(x, y, shapes[0])


@_rule("maximum", "minimum")
def _either(reading, named, shapes):
    return _sum(reading, named, shapes) if reading.kind == "positive" else None


@_rule("mul", "multiply")
def _product(reading, named, shapes):
    x, y = named.get("self"), named.get("other")
    if isinstance(x, Scaled) and isinstance(y, Scaled):
        return reading.mul(x, y, shapes[0])
    return x if isinstance(x, Scaled) else None


@_rule("div", "divide", "true_divide")
def _quotient(reading, named, shapes):
    x, y = named.get("self"), named.get("other")
    if named.get("rounding_mode") is not None or not isinstance(x, Scaled):
        return None
    if not isinstance(y, Scaled):
        return x
    if y.terms and reading.kind == "matrix":
        return None
    return reading.mul(x, y, shapes[0], inverse=True)


# --- products


@_rule("linear")
def _linear(reading, named, shapes):
    x, weight, bias = named["input"], named["weight"], named.get("bias")
    if len(weight.shape) != 2:
        return None
    rank = len(x.shape)
    y = reading.contract(_unsqueezed(x, rank - 1), _leading(weight, rank + 1))
    return y if bias is None else reading.add(y, bias, shapes[0])


@_rule("matmul", "mm", "bmm")
def _matmul(reading, named, shapes):
    a, b = named["self"], named.get("other", named.get("mat2"))
    return _matrices(reading, a, b)


def _matrices(reading, a, b):
    if len(a.shape) < 2 or len(b.shape) < 2:
        return None
    rank = max(len(a.shape), len(b.shape))
    a, b = _leading(a, rank), _leading(b, rank)
    order = [*range(rank - 2), rank - 1, rank - 2]
    turned = _permuted(b, order)
    return reading.contract(_unsqueezed(a, rank - 1), _unsqueezed(turned, rank - 2))


@_rule("addmm", "baddbmm")
def _addmm(reading, named, shapes):
    a = named.get("mat1", named.get("batch1"))
    b = named.get("mat2", named.get("batch2"))
    return reading.add(_matrices(reading, a, b), named["self"], shapes[0])


@_rule("conv1d", "conv2d", "conv3d", "convolution")
def _convolution(reading, named, shapes):
    x, weight, bias = named["input"], named["weight"], named.get("bias")
    groups = named.get("groups", 1)
    spatial = len(weight.shape) - 2
    if named.get("transposed") or len(x.shape) != spatial + 2:
        return None
    x, weight = _without_last(reading, x, spatial), _without_last(reading, weight, spatial)
    n, channels = x.shape
    out, each = weight.shape
    x = _reshaped(reading, x, (n, groups, 1, channels // groups))
    weight = _reshaped(reading, weight, (1, groups, out // groups, each))
    y = reading.contract(x, weight)
    y = _reshaped(reading, y, (n, out))
    if bias is not None:
        y = reading.add(y, bias, (n, out))
    return Scaled(shapes[0], tuple(t.reshape(*t.shape, *(1,) * spatial) for t in y.terms))


@_rule("scaled_dot_product_attention")
def _attention(reading, named, shapes):
    q, k, v = named["query"], named["key"], named["value"]
    if named.get("enable_gqa"):
        return None
    rank = len(q.shape)
    if len(k.shape) != rank or len(v.shape) != rank:
        return None
    scores = reading.contract(_unsqueezed(q, rank - 1), _unsqueezed(k, rank - 2))
    reading.pinned(scores, named.get("attn_mask"))
    return _matrices(reading, Scaled(scores.shape), v)


# --- normalisation: what comes in must stay, what goes out is its weight's


def _affine(reading, named, shape, dims_after, first: Scaled):
    y = first
    pad = (1,) * dims_after
    for kind, combine in (("weight", reading.mul), ("bias", reading.add)):
        x = named.get(kind)
        if isinstance(x, Scaled):
            terms = tuple(t.reshape(*t.shape, *pad) for t in x.terms)
            y = combine(y, Scaled((*x.shape, *pad), terms), shape)
    return y


@_rule("batch_norm", "instance_norm", "group_norm")
def _channel_norm(reading, named, shapes):
    reading.pinned(named["input"])
    return _affine(reading, named, shapes[0], len(shapes[0]) - 2, Scaled(shapes[0]))


@_rule("layer_norm", "rms_norm")
def _layer_norm(reading, named, shapes):
    x = named["input"]
    if reading.kind == "sign" and "bias" not in named:  # squares do not see signs
        return _affine(reading, named, shapes[0], 0, x)
    reading.pinned(x)
    return _affine(reading, named, shapes[0], 0, Scaled(shapes[0]))


@_rule("prelu")
def _prelu(reading, named, shapes):
    reading.pinned(named["weight"])
    return _x(named) if reading.kind == "positive" else None


# --- sums and pooling


@_rule("mean", "sum")
def _mean(reading, named, shapes):
    x, dims = _x(named), named.get("dim")
    if dims is None or dims == []:
        dims = range(len(x.shape))
    dims = [dims] if isinstance(dims, int) else list(dims)
    return reading.total(x, dims, bool(named.get("keepdim", False)))


@_rule("amax", "amin")
def _most(reading, named, shapes):
    return _mean(reading, named, shapes) if reading.kind == "positive" else None


def _pooled(last: int, linear: bool) -> Rule:
    def rule(reading, named, shapes):
        if not linear and reading.kind != "positive":
            return None
        x = _x(named)
        dims = range(len(x.shape) - last, len(x.shape))
        reading.numbers.pin([t for t in x.terms if any(t.shape[d] > 1 for d in dims)])
        terms = tuple(t for t in x.terms if all(t.shape[d] == 1 for d in dims))
        return [Scaled(shape, terms) for shape in shapes]

    return rule


for _n in (1, 2, 3):
    for _name_ in ("avg_pool{}d", "adaptive_avg_pool{}d", "reflection_pad{}d", "replication_pad{}d",
                   "upsample_nearest{}d", "_adaptive_avg_pool{}d"):  # fmt: skip
        _RULES[_name_.format(_n)] = _pooled(_n, True)
    for _name_ in ("max_pool{}d", "adaptive_max_pool{}d"):
        _RULES[_name_.format(_n)] = _pooled(_n, False)
_RULES["upsample_bilinear2d"] = _pooled(2, True)


@_rule("pad", "constant_pad_nd")
def _padded(reading, named, shapes):
    x, rank = _x(named), len(shapes[0])
    if named.get("value") not in (None, 0, 0.0) or named.get("mode", "constant") != "constant":
        return None
    touched = [rank - 1 - i // 2 for i, width in enumerate(named["pad"]) if width]
    reading.numbers.pin([t for t in x.terms if any(t.shape[d] > 1 for d in touched)])
    return Scaled(shapes[0], tuple(t for t in x.terms if all(t.shape[d] == 1 for d in touched)))


# --- shapes


@_rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as",
       "reshape_as", "ravel")  # fmt: skip
def _shaped(reading, named, shapes):
    return _reshaped(reading, _x(named), shapes[0])


@_rule("expand", "expand_as", "broadcast_to")
def _expanded(reading, named, shapes):
    return Scaled(shapes[0], tuple(_ranked(t, len(shapes[0])) for t in _x(named).terms))


@_rule("permute")
def _permute(reading, named, shapes):
    return _permuted(_x(named), named["dims"])


@_rule("transpose", "swapaxes", "swapdims")
def _transposed(reading, named, shapes):
    order = list(range(len(shapes[0])))
    if not order:
        return None
    a = named.get("dim0", named.get("axis0"))
    b = named.get("dim1", named.get("axis1"))
    order[a], order[b] = order[b], order[a]
    return _permuted(_x(named), order)


@_rule("t", "numpy_T", "mT")
def _turned(reading, named, shapes):
    rank = len(shapes[0])
    return _permuted(_x(named), [*range(rank - 2), -1, -2]) if rank > 1 else _x(named)


@_rule("slice", "narrow")
def _sliced(reading, named, shapes):
    x, dim = _x(named), named.get("dim", 0)
    size = x.shape[dim]
    if "length" in named:
        index = np.arange(size)[named["start"] :][: named["length"]]
    else:
        index = np.arange(size)[slice(named.get("start"), named.get("end"), named.get("step"))]
    return _taken(x, dim, index)


@_rule("select")
def _selected(reading, named, shapes):
    x, dim = _x(named), named["dim"] % len(_x(named).shape)
    made = _taken(x, dim, np.arange(x.shape[dim])[[named["index"]]])
    return Scaled(shapes[0], tuple(t.squeeze(dim) for t in made.terms))


@_rule("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk")
def _divided(reading, named, shapes):
    dim, start, made = named.get("dim", 0), 0, []
    for shape in shapes:
        made.append(_taken(_x(named), dim, np.arange(start, start + shape[dim])))
        start += shape[dim]
    return made


@_rule("unbind")
def _unbound(reading, named, shapes):
    x = _x(named)
    dim = named.get("dim", 0) % len(x.shape)
    parts = [_taken(x, dim, np.array([i])) for i in range(x.shape[dim])]
    return [Scaled(s, tuple(t.squeeze(dim) for t in p.terms))
            for p, s in zip(parts, shapes, strict=True)]  # fmt: skip


@_rule("roll")
def _rolled(reading, named, shapes):
    x, shifts, dims = _x(named), named["shifts"], named["dims"]
    shifts = [shifts] if isinstance(shifts, int) else shifts
    dims = [dims] if isinstance(dims, int) else dims
    if not dims:
        return None
    for dim, shift in zip(dims, shifts, strict=True):
        x = _taken(x, dim, np.roll(np.arange(x.shape[dim]), shift))
    return x


@_rule("cat", "concat", "concatenate")
def _joined(reading, named, shapes):
    tensors = [x for x in named["tensors"] if x.shape != (0,)]
    dim = named.get("dim", 0) % len(shapes[0])
    if any(len(x.terms) > 1 for x in tensors):
        return None
    zero = np.zeros((1,) * len(shapes[0]), dtype=np.int64)
    terms = [x.terms[0] if x.terms else zero for x in tensors]
    beside = np.broadcast_shapes(*[t.shape[:dim] + (1,) + t.shape[dim + 1 :] for t in terms])
    if prod(beside) * shapes[0][dim] > LARGEST:
        return None
    wide = [
        np.broadcast_to(t, (*beside[:dim], x.shape[dim], *beside[dim + 1 :]))
        for t, x in zip(terms, tensors, strict=True)
    ]
    return Scaled(shapes[0], _narrow([np.concatenate(wide, dim)]))


@_rule("stack")
def _stacked(reading, named, shapes):
    dim = named.get("dim", 0) % len(shapes[0])
    inserted = [_unsqueezed(x, dim) for x in named["tensors"]]
    return _joined(reading, {"tensors": inserted, "dim": dim}, shapes)


@_rule("embedding")
def _embedding(reading, named, shapes):
    weight = named["weight"]
    reading.numbers.pin([t for t in weight.terms if t.shape[0] > 1])
    ahead = (1,) * (len(shapes[0]) - 1)
    kept = [t for t in weight.terms if t.shape[0] == 1]
    return Scaled(shapes[0], tuple(t.reshape(*ahead, t.shape[1]) for t in kept))


@_rule("masked_fill", "where")
def _masked(reading, named, shapes):
    if reading.kind == "matrix":
        return None
    if "condition" in named:
        x, y = named.get("self"), named.get("other")
        if not isinstance(x, Scaled) or not isinstance(y, Scaled):
            return None
        return reading.add(x, y, shapes[0])
    x = _x(named)
    fits = isinstance(named.get("value"), (int, float)) and named["value"] == 0
    return Scaled(shapes[0], tuple(_ranked(t, len(shapes[0])) for t in x.terms)) if fits else None


# --- arrays that broadcast ------------------------------------------------------------------------


def _scaled(tree: Any) -> list[Scaled]:
    if isinstance(tree, Scaled):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        return [x for item in tree for x in _scaled(item)]
    return []


def _writes(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    alias = schema.arguments[0].alias_info if schema and schema.arguments else None
    return alias is not None and alias.is_write


def _ranked(term: Array, rank: int) -> Array:
    return term.reshape((1,) * (rank - term.ndim) + term.shape)


def _places(term: Array, along: Sequence[int]) -> Array:
    """Number the places along some dimensions; it broadcasts against the term."""
    place = np.zeros((1,) * term.ndim, dtype=np.int64)
    for d in along:
        index = np.arange(term.shape[d]).reshape([-1 if e == d else 1 for e in range(term.ndim)])
        place = place * term.shape[d] + index
    return place


def _pattern(term: Array) -> tuple[bool, ...]:
    return tuple(n > 1 for n in term.shape)


def _leading(x: Scaled, rank: int) -> Scaled:
    shape = (1,) * (rank - len(x.shape)) + x.shape
    return Scaled(shape, tuple(_ranked(t, rank) for t in x.terms), x.even)


def _unsqueezed(x: Scaled, dim: int) -> Scaled:
    shape = (*x.shape[:dim], 1, *x.shape[dim:])
    return Scaled(shape, tuple(np.expand_dims(t, dim) for t in x.terms), x.even)


def _permuted(x: Scaled, order: Sequence[int]) -> Scaled:
    order = [d % len(x.shape) for d in order]
    return Scaled(
        tuple(x.shape[d] for d in order), tuple(t.transpose(order) for t in x.terms), x.even
    )


def _taken(x: Scaled, dim: int, index: Array) -> Scaled:
    dim %= len(x.shape)
    shape = tuple(len(index) if d == dim else n for d, n in enumerate(x.shape))
    terms = [t if t.shape[dim] == 1 else np.take(t, index, dim) for t in x.terms]
    return Scaled(shape, _narrow(terms), x.even)


def _reshaped(reading: _Reading, x: Scaled, shape: Sequence[int]) -> Scaled:
    shape = tuple(shape)
    terms = []
    for term in x.terms:
        wide, new = [1] * len(x.shape), [1] * len(shape)
        for ours, theirs in groups(x.shape, shape):
            if any(term.shape[d] > 1 for d in ours):
                for d in ours:
                    wide[d] = x.shape[d]
                for d in theirs:
                    new[d] = shape[d]
        if prod(wide) > LARGEST:
            reading.numbers.pin([term])
        else:
            terms += _narrow([np.broadcast_to(term, wide).reshape(new)])
    return Scaled(shape, tuple(terms), x.even)


def _without_last(reading: _Reading, x: Scaled, count: int) -> Scaled:
    rank = len(x.shape) - count
    last = range(rank, len(x.shape))
    reading.numbers.pin([t for t in x.terms if any(t.shape[d] > 1 for d in last)])
    kept = [t for t in x.terms if all(t.shape[d] == 1 for d in last)]
    return Scaled(x.shape[:rank], tuple(t.reshape(t.shape[:rank]) for t in kept))


def _narrow(terms: Iterable[Array]) -> tuple[Array, ...]:
    """Write each term on the dimensions along which it varies, and drop those that say nothing."""
    found = []
    for term in terms:
        for d in range(term.ndim):
            first = term.take([0], d)
            if term.shape[d] > 1 and (term == first).all():
                term = first
        if term.any():
            found.append(term)
    return tuple(found)


def _block_name(parameter: str, taken: Sequence[str]) -> str:
    module, _, last = parameter.rpartition(".")
    base = name = module if last in ("weight", "bias") and module else parameter
    number = 2
    while name in taken:
        name, number = f"{base} ({number})", number + 1
    return name
