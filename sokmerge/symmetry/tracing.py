"""Read a module's graph, operator by operator, and collect what it says about units."""

from __future__ import annotations

import copy
import io
import logging
import operator
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from sokmerge.errors import ArgumentError
from sokmerge.symmetry import labels as lb
from sokmerge.symmetry.labels import Label
from sokmerge.symmetry.rules import RULES, Call, elementwise
from sokmerge.symmetry.units import Units

__all__ = ["OUTPUT", "Graph", "Reader", "Trace", "arguments", "operator_name", "trace"]

OUTPUT = "an output of the network"
_logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
_VIEWS = {"chunk", "split", "split_with_sizes", "unbind"}  # they return lists of views


@dataclass(frozen=True)
class Reader:
    """A module that reads units: along a dimension of its input lie these."""

    module: str
    dim: int
    units: np.ndarray


@dataclass(frozen=True)
class Graph:
    """A module's operators in their order.

    Attributes:
        program: the graph of the module in evaluation mode.
        state: for each name of a parameter or buffer what identifies its tensor.
        base: of each view in the graph, what it is a view of.
    """

    program: torch.export.ExportedProgram
    state: dict[str, int]
    base: dict[torch.fx.Node, torch.fx.Node]


@dataclass(frozen=True)
class Trace:
    """What a module's graph says.

    Attributes:
        units: the registry of units, with all that the operators said.
        tensors: the label of each parameter and of each buffer with running statistics.
        buffers: which of them are buffers, or second names of tied parameters.
        layers: weights, and which of their dimensions lists the units that a layer makes.
        readers: linear layers and convolutions with what they read.
        unknown: operators without a rule, with the place in the code that calls them.
        graph: what was read.
    """

    units: Units
    tensors: dict[str, Label]
    buffers: frozenset[str]
    layers: tuple[tuple[str, int], ...]
    readers: tuple[Reader, ...]
    unknown: tuple[str, ...]
    graph: Graph


def trace(module: nn.Module, inputs: Sequence[Any], opaque: Sequence[str] = ()) -> Trace:
    """Export a module in evaluation mode and label every tensor of its graph."""
    program = _export(module, tuple(inputs), tuple(opaque))
    state = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return _Walk(program, {name: id(tensor) for name, tensor in state}).run()


# --- exporting --------------------------------------------------------------------------------


def _export(module: nn.Module, inputs: tuple[Any, ...], opaque: tuple[str, ...]):
    skeleton = _without_values(module)
    skeleton.eval()
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    inputs = pytree.tree_map_only(Tensor, lambda t: t.to(device), inputs)
    for name in opaque:
        _close(skeleton, name, inputs)
    try:
        with _silence(), torch.enable_grad():
            return torch.export.export(skeleton, inputs, strict=False)
    except Exception as error:  # the exporter raises whatever the module's code does
        reason = str(error).strip().split("\n")[0]
        raise ArgumentError(
            "module",
            found=f"what torch.export cannot follow: {reason}{_line_of(error)}",
            expected="operations that do not depend on the values of tensors",
            do="Rewrite that line, or name the submodule that holds it: opaque=('name',). "
            "Its own parameters stay, and so do the units at its border.",
        ) from error


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter from printing its warnings and the graph so far; its error says enough."""
    before = _logger.disabled
    _logger.disabled = True
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        _logger.disabled = before


def _without_values(module: nn.Module) -> nn.Module:
    """Copy a module's structure; its tensors are shared, not copied."""
    memo: dict[int, Any] = {id(p): p for p in module.parameters()}
    memo.update({id(b): b for b in module.buffers()})
    return copy.deepcopy(module, memo)


def _line_of(error: BaseException) -> str:
    """Return ', at file:line', the last line outside of PyTorch that an error passed through."""
    found = ""
    walk = error.__traceback__
    here = __file__
    while walk is not None:
        file = walk.tb_frame.f_code.co_filename
        if "/torch/" not in file and file != here and not file.startswith("<"):
            found = f", at {file.rsplit('/', 1)[-1]}:{walk.tb_lineno}"
        walk = walk.tb_next
    return found


@torch.library.custom_op("sokmerge::opaque", mutates_args=())
def _opaque(inputs: list[Tensor], ranks: list[int], sizes: list[int]) -> list[Tensor]:
    return _empty(inputs, ranks, sizes)


@_opaque.register_fake
def _(inputs: list[Tensor], ranks: list[int], sizes: list[int]) -> list[Tensor]:
    return _empty(inputs, ranks, sizes)


def _empty(inputs: list[Tensor], ranks: list[int], sizes: list[int]) -> list[Tensor]:
    made, start = [], 0
    for rank in ranks:
        made.append(inputs[0].new_empty(sizes[start : start + rank]))
        start += rank
    return made


class _Closed(nn.Module):
    """Stands for a submodule of which only the shapes of the results are known."""

    def __init__(self, inner: nn.Module, result: Any) -> None:
        super().__init__()
        for name, child in inner.named_children():
            self.add_module(name, child)
        for name, parameter in inner.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in inner.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        leaves, self._structure = pytree.tree_flatten(result)
        self._ranks = [leaf.dim() for leaf in leaves]
        self._sizes = [size for leaf in leaves for size in leaf.shape]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = torch.ops.sokmerge.opaque(tensors, self._ranks, self._sizes)
        return pytree.tree_unflatten(made, self._structure)


def _close(skeleton: nn.Module, name: str, inputs: tuple[Any, ...]) -> None:
    modules = dict(skeleton.named_modules())
    if name not in modules or not name:
        raise ArgumentError(
            "opaque",
            found=repr(name),
            expected="names of submodules, such as " + ", ".join(map(repr, list(modules)[1:4])),
        )
    seen: list[Any] = []
    handle = modules[name].register_forward_hook(lambda _, __, result: seen.append(result))
    with torch.no_grad():
        skeleton(*inputs)
    handle.remove()
    shapes = [[getattr(leaf, "shape", None) for leaf in pytree.tree_leaves(r)] for r in seen]
    if not seen or None in shapes[0] or shapes.count(shapes[0]) < len(shapes):
        told = "returns other things than tensors of one shape" if seen else "is not called"
        raise ArgumentError(
            "opaque",
            found=f"{name!r}, which {told}",
            expected="a submodule that is called, and returns tensors, the same at every call",
        )
    parent, _, last = name.rpartition(".")
    setattr(skeleton.get_submodule(parent), last, _Closed(modules[name], seen[-1]))


# --- walking ----------------------------------------------------------------------------------


class _Walk:
    def __init__(self, program: torch.export.ExportedProgram, state: dict[str, int]) -> None:
        self.program = program
        self.state = state
        self.known: dict[int, str] = {}  # what each tensor is first called
        self.units = Units()
        self.found: dict[torch.fx.Node, Any] = {}
        self.tensors: dict[str, Label] = {}
        self.buffers: set[str] = set()
        self.readers: list[Reader] = []
        self.layers: list[tuple[str, int]] = []
        self.named: dict[torch.fx.Node, str] = {}
        self.unknown: list[str] = []
        self.base: dict[torch.fx.Node, torch.fx.Node] = {}

    def run(self) -> Trace:
        nodes = list(self.program.graph.nodes)
        written = self._written(nodes)
        inputs = {s.arg.name: s for s in self.program.graph_signature.input_specs}
        for node in nodes:
            if node.op == "placeholder":
                self.found[node] = self._given(node, inputs[node.name])
            elif node.op == "call_function":
                result = self._result(node)
                if node in written and isinstance(result, Label):  # its values will vary
                    result = Label(result.shape, result.factors)
                self.found[node] = result
            elif node.op == "output":
                self.units.reason = OUTPUT
                for label in _leaves(pytree.tree_map(self._value, node.args)):
                    lb.pin_all(self.units, label)
            else:
                value = node.meta.get("val")
                self.found[node] = lb.fixed(value.shape) if isinstance(value, Tensor) else None
        self._mutated()
        used = {self.named[node] for node in nodes if node in self.named and node.users}
        for name in self.tensors.keys() - used:
            lb.pin_all(self.units, self.tensors[name], "not seen in the graph")
        for name, identity in self.state.items():  # further names of tied parameters
            first = self.known.get(identity, name)
            if first != name:
                self.tensors[name] = self.tensors[first]
                self.buffers.add(name)
        return Trace(
            self.units,
            self.tensors,
            frozenset(self.buffers),
            tuple(dict.fromkeys(self.layers)),
            tuple(self.readers),
            tuple(dict.fromkeys(self.unknown)),
            Graph(self.program, self.state, self.base),
        )

    def _given(self, node: torch.fx.Node, spec: Any) -> Any:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return value
        if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER):
            return lb.fixed(value.shape)
        if not value.is_floating_point():
            return lb.fixed(value.shape)
        if spec.kind == InputKind.BUFFER and not _statistics(node):
            return lb.fixed(value.shape)  # who merges parameters alone would leave it behind
        first = self.known.setdefault(self.state[spec.target], spec.target)
        self.named[node] = first
        if first == spec.target:
            self.tensors[first] = lb.fresh(self.units, tuple(value.shape))
            if spec.kind == InputKind.BUFFER:
                self.buffers.add(first)
        return self.tensors[first]

    def _written(self, nodes: list[torch.fx.Node]) -> set[torch.fx.Node]:
        """Find what is written to through a view, and note what is a view of what."""
        written = set()
        for node in nodes:
            if node.op != "call_function":
                continue
            if node.target is operator.getitem:
                if node.args[0] in self.base:
                    self.base[node] = self.base[node.args[0]]
                continue
            schema = getattr(node.target, "_schema", None)
            if schema is None or not node.args or not isinstance(node.args[0], torch.fx.Node):
                continue
            source = node.args[0]
            alias = schema.arguments[0].alias_info if schema.arguments else None
            if alias is not None and alias.is_write:
                if source in self.base:
                    written.add(self.base[source])
                self.base[node] = self.base.get(source, source)
            elif alias is not None or operator_name(node.target) in _VIEWS | {
                "reshape", "contiguous", "to", "flatten", "dropout", "expand_as",
            }:  # fmt: skip
                self.base[node] = self.base.get(source, source)
        return written

    def _value(self, argument: Any) -> Any:
        return self.found[argument] if isinstance(argument, torch.fx.Node) else argument

    def _result(self, node: torch.fx.Node) -> Any:
        if node.target is operator.getitem:
            value, index = self._value(node.args[0]), node.args[1]
            return value[index] if isinstance(value, (list, tuple)) else value
        values = [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
        args = torch.fx.node.map_arg(node.args, self._value)
        kwargs = torch.fx.node.map_arg(node.kwargs, self._value)
        operands = _leaves((args, kwargs))
        if not values and not operands:
            return node.meta.get("val")
        name = operator_name(node.target)
        self.units.reason = f"{name} ({where(node)})"
        named = arguments(node.target, args, kwargs)
        call = Call(self.units, named, tuple(tuple(v.shape) for v in values))
        made = self._apply(node, name, call) if values else _quiet(name)
        if made is None:
            made = self._pinned(node, name, operands, call.shapes)
        self._observe(node, name, named)
        self._write(node, named, made)
        if isinstance(node.meta.get("val"), Tensor) and isinstance(made, list):
            made = made[0]
        return made

    def _apply(self, node: torch.fx.Node, name: str, call: Call) -> Any:
        rule = RULES.get(name)
        tags = getattr(node.target, "tags", ())
        if rule is None and torch.Tag.pointwise in tags:
            rule = elementwise
        if rule is None:
            return None
        made = rule(call)
        if made is None:
            return None
        shapes = [m.shape for m in (made if isinstance(made, list) else [made])]
        if tuple(shapes) != call.shapes:
            raise AssertionError(f"{name}: labels of shapes {shapes} for {call.shapes}")
        return made

    def _pinned(self, node: torch.fx.Node, name: str, operands: list[Label], shapes: Any) -> Any:
        if name == "opaque":
            reason = f"border of an opaque submodule ({where(node)})"
        else:
            self.unknown.append(f"{name} at {line(node)}")
            reason = f"unknown operator {name} ({where(node)}, {line(node)})"
        for label in operands:
            lb.pin_all(self.units, label, reason)
        return [lb.fixed(shape) for shape in shapes]

    def _observe(self, node: torch.fx.Node, name: str, named: dict[str, Any]) -> None:
        """Note the weights of layers, and what a linear layer or a convolution reads."""
        if name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            weights = [n for part in node.args if isinstance(part, (list, tuple)) for n in part]
            self.layers += [(self.named[n], 0) for n in weights if n in self.named]
        if name == "addmm" and node.args[2] in self.named:  # a weight of shape (in, out)
            self.layers.append((self.named[node.args[2]], 1))
        if name != "linear" and not name.startswith("conv"):
            return
        weight = self.base.get(node.args[1], node.args[1])
        if weight in self.named:
            self.layers.append((self.named[weight], 0))
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        x = named.get("input")
        if not stack or not isinstance(x, Label):
            return
        path, kind = stack[-1]
        kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        if not kind.startswith(("torch.nn.modules.linear.Linear", "torch.nn.modules.conv.Conv")):
            return
        dim = len(x.shape) - 1 if name == "linear" else 1
        factors = x.on(dim)
        if len(factors) == 1 and factors[0].dims == (dim,):
            place = -1 if name == "linear" else 1
            self.readers.append(Reader(path, place, factors[0].units))

    def _write(self, node: torch.fx.Node, named: dict[str, Any], made: Any) -> None:
        """What an operator in place leaves behind in what it wrote to."""
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.arguments:
            return
        alias = schema.arguments[0].alias_info
        if alias is None or not alias.is_write or not isinstance(node.args[0], torch.fx.Node):
            return
        source, result = node.args[0], made[0] if isinstance(made, list) else made
        before = self.found[source]
        if source in self.base or any(self.base.get(n) is source for n in self.found):
            ours = {f.dims for f in before.factors}
            if not {f.dims for f in result.factors} <= ours:
                lb.pin_all(self.units, result)
                lb.pin_all(self.units, before)
        if source not in self.base:
            self.found[source] = result
        else:
            self.found[source] = Label(before.shape, before.factors)

    def _mutated(self) -> None:
        self.units.reason = "written to by the module"
        names = {node.name: node for node in self.found}
        for spec in self.program.graph_signature.output_specs:
            if spec.kind == OutputKind.BUFFER_MUTATION:
                if spec.target in self.tensors:
                    lb.pin_all(self.units, self.tensors[spec.target])
                if isinstance(found := self.found.get(names.get(spec.arg.name)), Label):
                    lb.pin_all(self.units, found)


def _statistics(node: torch.fx.Node) -> bool:
    """Say whether a buffer holds the running statistics of a normalisation, and nothing else."""
    return bool(node.users) and all(
        operator_name(user.target) in ("batch_norm", "instance_norm") and node in user.args[3:5]
        for user in node.users
    )


def _quiet(name: str) -> Any:
    """Operators without a tensor as result: sizes and assertions."""
    return []


def _leaves(tree: Any) -> list[Label]:
    if isinstance(tree, Label):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        return [label for item in tree for label in _leaves(item)]
    return []


def operator_name(target: Any) -> str:
    """Return the name of an operator, without overload and without a last underscore."""
    schema = getattr(target, "_schema", None)
    name = schema.name.split("::")[-1] if schema is not None else getattr(
        target, "__name__", str(target)
    )  # fmt: skip
    if name.endswith("_") and not name.startswith("__"):
        name = name[:-1]
    return name


def arguments(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    schema = getattr(target, "_schema", None)
    if schema is None:
        return {str(i): value for i, value in enumerate(args)} | dict(kwargs)
    named = {a.name: value for a, value in zip(schema.arguments, args, strict=False)}
    named |= kwargs
    for argument in schema.arguments:
        if argument.name not in named and argument.has_default_value():
            named[argument.name] = argument.default_value
    return named


def where(node: torch.fx.Node) -> str:
    """The submodule that an operator belongs to."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return (stack[-1][0] if stack else "") or "the module itself"


def line(node: torch.fx.Node) -> str:
    """The line of code that calls an operator."""
    lines = [part for part in (node.meta.get("stack_trace") or "").split("\n") if "File" in part]
    if not lines:
        return "an unknown line"
    parts = lines[-1].split('"')
    number = lines[-1].split("line ")[-1].split(",")[0]
    return f"{parts[1].rsplit('/', 1)[-1]}:{number}" if len(parts) > 1 else lines[-1].strip()
