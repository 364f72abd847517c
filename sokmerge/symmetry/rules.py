"""What each operator does with the labels of its operands: a function for each family.

A rule takes a :class:`Call` and returns the label of the result, or a list of labels. It is found
under the operator's name, without overload and without the underscore of an in-place variant. An
operator without a rule pins the axes of everything it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from sokmerge.symmetry import labels as lb
from sokmerge.symmetry.labels import Label
from sokmerge.symmetry.units import Units

__all__ = ["Call", "RULES", "elementwise"]


@dataclass(frozen=True)
class Call:
    """One operator in the graph.

    Attributes:
        units: the registry.
        args: its arguments by name, as its schema names them; labels stand for tensors.
        shapes: the shapes of its results.
        floats: for each result, whether it holds floating-point numbers.
    """

    units: Units
    args: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, *names: str, default: Any = None) -> Any:
        for name in names:
            if self.args.get(name) is not None:
                return self.args[name]
        return default

    @property
    def x(self) -> Label:
        return self.get("self", "input", "tensor")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[0]


Rule = Callable[[Call], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a function as the rule for operators of these names."""

    def enter(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return enter


def elementwise(call: Call) -> Label:
    """Each entry of the result depends on the entries at its place."""
    return _sized(call, lb.combine(call.units, *_labels(call.args.values())))


@rule(
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "contiguous", "clone",
    "to", "_to_copy", "type_as", "alias", "detach", "lift_fresh_copy", "positive", "rrelu",
)  # fmt: skip
def unchanged(call: Call) -> Label:
    return call.x


@rule("relu6", "silu", "mish", "gelu", "hardswish", "hardsigmoid", "hardtanh", "selu", "celu",
      "elu", "leaky_relu", "softplus", "softsign", "logit", "where", "clip", "copy", "clamp",
      "masked_fill", "lerp", "addcmul", "addcdiv", "float_power", "square", "rsub", "true_divide",
      "divide", "multiply", "subtract", "threshold", "hardshrink", "softshrink", "log_sigmoid",
      "nan_to_num", "relu", "sigmoid", "tanh", "__and__", "__or__", "__xor__")  # fmt: skip
def pointwise(call: Call) -> Label:
    return elementwise(call)


@rule("zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones",
      "new_full", "scalar_tensor", "fill", "zero")  # fmt: skip
def constant(call: Call) -> Label:
    return lb.uniform(call.shape)


@rule("arange", "linspace", "eye", "tril_indices", "triu_indices", "lift_fresh", "empty",
      "new_empty", "empty_like")  # fmt: skip
def places(call: Call) -> Label:
    return lb.fixed(call.shape)


# --- products ---------------------------------------------------------------------------------


def _contract(units: Units, a: Label, b: Label, dim: int = -1) -> Label:
    """A product of entries that broadcast, summed over one dimension."""
    product = lb.combine(units, a, b)
    return lb.total(units, product, [dim])


def _insert(label: Label, dim: int) -> Label:
    dim %= len(label.shape) + 1
    shape = (*label.shape[:dim], 1, *label.shape[dim:])
    moved = {d: d + (d >= dim) for d in range(len(label.shape))}
    made = lb.renumber(label, moved, shape)
    return Label(shape, made.factors, made.uniform)


def _linear(units: Units, x: Label, weight: Label, bias: Label | None = None) -> Label:
    if len(weight.shape) == 1:
        return _contract(units, x, weight)
    y = _contract(units, _insert(x, -2), weight)
    return y if bias is None else lb.combine(units, y, bias)


@rule("linear")
def linear(call: Call) -> Label:
    return _linear(call.units, call["input"], call["weight"], call.get("bias"))


@rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(call: Call) -> Label:
    a, b = call.x, call.get("other", "mat2", "vec", "tensor")
    return _matmul(call.units, a, b)


def _matmul(units: Units, a: Label, b: Label) -> Label:
    if len(b.shape) == 1:
        return _contract(units, a, b)
    swapped = lb.permute(b, [*range(len(b.shape) - 2), -1, -2])
    if len(a.shape) == 1:
        return _contract(units, a, swapped)
    return _contract(units, _insert(a, -2), _insert(swapped, -3))


@rule("addmm", "baddbmm", "addmv")
def addmm(call: Call) -> Label:
    a = call.get("mat1", "batch1", "mat")
    b = call.get("mat2", "batch2", "vec")
    return lb.combine(call.units, _matmul(call.units, a, b), call.x)


@rule("bilinear")
def bilinear(call: Call) -> Label:
    x = _insert(_insert(call["input1"], -2), -1)  # (..., 1, i, 1)
    y = _insert(_insert(call["input2"], -2), -2)  # (..., 1, 1, j)
    half = lb.combine(call.units, x, call["weight"])
    made = lb.total(call.units, lb.combine(call.units, half, y), [-2, -1])
    bias = call.get("bias")
    return made if bias is None else lb.combine(call.units, made, bias)


@rule("einsum")
def einsum(call: Call) -> Label:
    equation, tensors = call["equation"].replace(" ", ""), list(call["tensors"])
    if "." in equation or "->" not in equation:
        return None
    inputs, output = equation.split("->")
    terms = inputs.split(",")
    if any(len(set(term)) < len(term) for term in [*terms, output]):
        return None
    letters = list(dict.fromkeys(output + "".join(terms)))
    aligned = []
    for term, label in zip(terms, tensors, strict=True):
        order = sorted(range(len(term)), key=lambda i, t=term: letters.index(t[i]))
        label = lb.permute(label, order)
        for i, letter in enumerate(letters):
            if letter not in term:
                label = _insert(label, i)
        aligned.append(label)
    product = lb.combine(call.units, *aligned)
    gone = range(len(output), len(letters))
    return lb.total(call.units, product, list(gone)) if len(gone) else product


@rule("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d",
      "conv_transpose3d", "_convolution")  # fmt: skip
def convolution(call: Call) -> Label:
    units, x, weight = call.units, call["input"], call["weight"]
    groups = call.get("groups", default=1)
    turned = call.get("transposed", default="output_padding" in call.args)
    spatial = len(weight.shape) - 2
    batched = len(x.shape) == spatial + 2
    if not batched:
        x = _insert(x, 0)
    x, weight = _corner(units, x, spatial), _corner(units, weight, spatial)
    a, b = weight.shape
    weight = lb.reshape(units, weight, (groups, a // groups, b))
    if turned:  # it is stored as (in, out / groups) instead of (out, in / groups)
        weight = lb.permute(weight, (0, 2, 1))
    n, channels = x.shape
    x = lb.reshape(units, x, (n, groups, 1, channels // groups))
    y = _contract(units, x, weight)  # (n, groups, out / groups)
    y = lb.reshape(units, y, (n, y.shape[1] * y.shape[2]))
    bias = call.get("bias")
    if bias is not None:
        y = lb.combine(units, y, bias)
    shape = call.shape if batched else (1, *call.shape)
    made = Label(shape, y.factors, y.uniform)
    return made if batched else _drop(made, 0)


def _corner(units: Units, label: Label, spatial: int) -> Label:
    """The label at one place: without the last dimensions, which stay."""
    left = range(len(label.shape) - spatial)
    label = lb.only(units, label, left)
    return Label(label.shape[: len(left)], label.factors, label.uniform)


def _drop(label: Label, dim: int) -> Label:
    """Without a dimension of size one."""
    dim %= len(label.shape)
    left = [d for d in range(len(label.shape)) if d != dim]
    return lb.renumber(label, {d: i for i, d in enumerate(left)}, [label.shape[d] for d in left])


# --- normalisation ----------------------------------------------------------------------------


def _scaled(call: Call, y: Label, dim: int, names: Sequence[str]) -> Label:
    for name in names:
        vector = call.get(name)
        if vector is not None:
            for _ in range(len(y.shape) - dim - 1):
                vector = _insert(vector, -1)
            y = lb.combine(call.units, y, vector)
    return y


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training",
      "_batch_norm_with_update", "cudnn_batch_norm")  # fmt: skip
def batch_norm(call: Call) -> Label:
    y = _scaled(call, call["input"], 1, ("weight", "bias", "running_mean", "running_var"))
    estimated = call.get("use_input_stats", "training", default=False)
    if estimated:
        dims = [d for d in range(len(y.shape)) if d != 1 and (d or "training" in call.args)]
        lb.keep_rows(call.units, y, dims)
    return y


@rule("group_norm")
def group_norm(call: Call) -> Label:
    x, groups = call["input"], call["num_groups"]
    n, channels, *rest = x.shape
    split = lb.reshape(call.units, x, (n, groups, channels // groups, *rest))
    lb.keep_rows(call.units, split, range(2, len(split.shape)))
    return _scaled(call, x, 1, ("weight", "bias"))


@rule("layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(call: Call) -> Label:
    x, last = call["input"], len(call["normalized_shape"])
    lb.keep_rows(call.units, x, range(-last, 0))
    vectors = [call.get(name) for name in ("weight", "bias")]
    return lb.combine(call.units, x, *[v for v in vectors if v is not None])


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "softmin")
def softmax(call: Call) -> Label:
    return lb.keep_rows(call.units, call.x, [call["dim"]])


@rule("glu")
def glu(call: Call) -> Label:
    dim = call.get("dim", default=-1)
    half = call.x.shape[dim] // 2
    parts = [lb.take(call.units, call.x, dim, np.arange(half) + half * i) for i in range(2)]
    return lb.combine(call.units, *parts)


@rule("prelu")
def prelu(call: Call) -> Label:
    return _scaled(call, call.x, 1, ("weight",))


# --- sums -------------------------------------------------------------------------------------


@rule("mean", "sum", "amax", "amin", "prod", "var", "std", "norm", "linalg_vector_norm", "nansum",
      "logsumexp", "all", "any")  # fmt: skip
def reduction(call: Call) -> Label:
    dims = call.get("dim", default=None)
    if dims is None or dims == []:
        dims = range(len(call.x.shape))
    dims = [dims] if isinstance(dims, int) else list(dims)
    return lb.total(call.units, call.x, dims, bool(call.get("keepdim", default=False)))


@rule("max", "min")
def extremum(call: Call) -> Any:
    if "other" in call.args:
        return elementwise(call)
    if "dim" not in call.args:
        return reduction(call)
    lb.pin(call.units, call.x, call["dim"])  # for its place is told
    return [reduction(call), reduction(call)]


@rule("diff")
def differences(call: Call) -> Label:
    dim = call.get("dim", default=-1) % len(call.x.shape)
    for label in _labels([call.get("prepend"), call.get("append")]):
        lb.pin_all(call.units, label)
    made = lb.only(call.units, call.x, [d for d in range(len(call.x.shape)) if d != dim])
    return Label(call.shape, made.factors, made.uniform - {dim})


@rule("cumsum", "cumprod", "sort", "topk", "argmax", "argmin", "logcumsumexp", "cummax", "cummin",
      "argsort")  # fmt: skip
def ordered(call: Call) -> Any:
    dim = call.get("dim", default=-1)
    if not isinstance(dim, int):
        return None
    dim %= len(call.x.shape)
    made = lb.only(call.units, call.x, [d for d in range(len(call.x.shape)) if d != dim])
    if any(len(shape) != len(call.x.shape) for shape in call.shapes):
        made = _drop(Label((*made.shape[:dim], 1, *made.shape[dim + 1 :]), made.factors), dim)
    return [Label(shape, made.factors) for shape in call.shapes]


# --- pooling and what else treats places ------------------------------------------------------


def _spatial(call: Call, last: int) -> Label:
    """An operator on the last dimensions that treats all others alike."""
    made = lb.only(call.units, call.x, range(len(call.x.shape) - last))
    return Label(call.shape, made.factors, made.uniform)


for _n in (1, 2, 3):
    for _name in ("max_pool{}d", "avg_pool{}d", "adaptive_avg_pool{}d", "adaptive_max_pool{}d",
                  "max_pool{}d_with_indices", "_adaptive_avg_pool{}d", "lp_pool{}d",
                  "reflection_pad{}d", "replication_pad{}d", "upsample_nearest{}d"):  # fmt: skip

        @rule(_name.format(_n))
        def pooling(call: Call, last: int = _n) -> Any:
            made = _spatial(call, last)
            return [made] * len(call.shapes) if len(call.shapes) > 1 else made


@rule("upsample_bilinear2d", "upsample_bicubic2d", "pixel_shuffle_", "roll_")
def resampling(call: Call) -> Label:
    return _spatial(call, 2)


@rule("pad", "constant_pad_nd")
def padding(call: Call) -> Label:
    padded, rank = call["pad"], len(call.shape)
    touched = {rank - 1 - i // 2 for i, width in enumerate(padded) if width}
    made = lb.only(call.units, call.x, [d for d in range(rank) if d not in touched])
    return Label(call.shape, made.factors, made.uniform)


@rule("roll", "flip")
def moved(call: Call) -> Label:
    x = call.x
    dims = call["dims"]
    dims = [dims] if isinstance(dims, int) else list(dims)
    shifts = call.get("shifts", default=[None] * len(dims))
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    if not dims:
        return None
    for dim, shift in zip(dims, shifts, strict=True):
        order = np.arange(x.shape[dim])
        order = order[::-1].copy() if shift is None else np.roll(order, shift)
        x = lb.take(call.units, x, dim, order)
    return x


# --- shapes -----------------------------------------------------------------------------------


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze",
      "view_as", "reshape_as", "ravel")  # fmt: skip
def shaped(call: Call) -> Label:
    return lb.reshape(call.units, call.x, call.shape)


@rule("expand", "expand_as", "broadcast_to")
def expanded(call: Call) -> Label:
    return lb.expand(call.x, call.shape)


@rule("permute")
def permuted(call: Call) -> Label:
    return lb.permute(call.x, call["dims"])


@rule("transpose", "swapaxes", "swapdims")
def transposed(call: Call) -> Label:
    order = list(range(len(call.x.shape)))
    if not order:
        return call.x
    a, b = call.get("dim0", "axis0"), call.get("dim1", "axis1")
    order[a], order[b] = order[b], order[a]
    return lb.permute(call.x, order)


@rule("t", "numpy_T", "mT", "adjoint")
def turned(call: Call) -> Label:
    rank = len(call.x.shape)
    return lb.permute(call.x, [*range(rank - 2), -1, -2]) if rank > 1 else call.x


@rule("movedim", "moveaxis")
def dimensions_moved(call: Call) -> Label:
    rank = len(call.x.shape)
    source, target = call["source"], call["destination"]
    source = [source] if isinstance(source, int) else source
    target = [target] if isinstance(target, int) else target
    order: list[int | None] = [None] * rank
    for s, t in zip(source, target, strict=True):
        order[t % rank] = s % rank
    left = iter(d for d in range(rank) if d not in order)
    return lb.permute(call.x, [next(left) if d is None else d for d in order])


@rule("slice", "narrow")
def sliced(call: Call) -> Label:
    x, dim = call.x, call.get("dim", default=0)
    size = x.shape[dim]
    if "length" in call.args:
        index = np.arange(size)[call["start"] :][: call["length"]]
    else:
        index = np.arange(size)[slice(call.get("start"), call.get("end"), call.get("step"))]
    return lb.take(call.units, x, dim, index)


@rule("select")
def selected(call: Call) -> Label:
    index = np.arange(call.x.shape[call["dim"]])[[call["index"]]]
    return lb.take(call.units, call.x, call["dim"], index, squeeze=True)


@rule("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk")
def divided(call: Call) -> list[Label]:
    dim, start, made = call.get("dim", default=0), 0, []
    for shape in call.shapes:
        made.append(lb.take(call.units, call.x, dim, np.arange(start, start + shape[dim])))
        start += shape[dim]
    return made


@rule("unbind")
def unbound(call: Call) -> list[Label]:
    dim = call.get("dim", default=0)
    count = range(call.x.shape[dim])
    return [lb.take(call.units, call.x, dim, np.array([i]), squeeze=True) for i in count]


@rule("cat", "concat", "concatenate")
def concatenated(call: Call) -> Label:
    kept = [label for label in call["tensors"] if label.shape != (0,)]
    return lb.concatenate(call.units, kept, call.get("dim", default=0))


@rule("stack")
def stacked(call: Call) -> Label:
    dim = call.get("dim", default=0) % len(call.shape)
    parts = [_insert(label, dim) for label in call["tensors"]]
    made = lb.combine(call.units, *parts)
    return Label(call.shape, made.factors, made.uniform - {dim})


@rule("repeat", "tile")
def repeated(call: Call) -> Label:
    counts = list(call.get("repeats", "dims"))
    x = call.x
    while len(x.shape) < len(counts):
        x = _insert(x, 0)
    counts = [1] * (len(x.shape) - len(counts)) + counts
    paired = [n for pair in zip([1] * len(counts), x.shape, strict=True) for n in pair]
    wide = [n for pair in zip(counts, x.shape, strict=True) for n in pair]
    x = lb.expand(lb.reshape(call.units, x, paired), wide)
    return lb.reshape(call.units, x, call.shape)


@rule("repeat_interleave")
def interleaved(call: Call) -> Label:
    count, dim = call.get("repeats"), call.get("dim")
    if not isinstance(count, int) or dim is None:
        return None
    dim %= len(call.x.shape)
    x = _insert(call.x, dim + 1)
    wide = [count if d == dim + 1 else n for d, n in enumerate(x.shape)]
    return lb.reshape(call.units, lb.expand(x, wide), call.shape)


@rule("channel_shuffle", "native_channel_shuffle")
def shuffled(call: Call) -> Label:
    n, channels, *rest = call.x.shape
    groups = call["groups"]
    x = lb.reshape(call.units, call.x, (n, groups, channels // groups, *rest))
    x = lb.permute(x, (0, 2, 1, *range(3, len(x.shape))))
    return lb.reshape(call.units, x, call.shape)


@rule("pixel_shuffle")
def pixels(call: Call) -> Label:
    n, channels, h, w = call.x.shape
    r = call["upscale_factor"]
    x = lb.reshape(call.units, call.x, (n, channels // r**2, r, r, h, w))
    return lb.reshape(call.units, lb.permute(x, (0, 1, 4, 2, 5, 3)), call.shape)


# --- indexing ---------------------------------------------------------------------------------


@rule("embedding")
def embedding(call: Call) -> Label:
    weight, index = call["weight"], call["indices"]
    lb.pin_all(call.units, index)
    made = _corner(call.units, lb.permute(weight, (1, 0)), 1)
    return lb.expand(_freed(made, index.shape), call.shape)


def _freed(last: Label, before: Sequence[int]) -> Label:
    """A label for the last dimension after fixed ones."""
    offset = len(before)
    factors = tuple(lb.Factor(tuple(d + offset for d in f.dims), f.units) for f in last.factors)
    return Label((*before, *last.shape), factors, frozenset(d + offset for d in last.uniform))


@rule("index")
def indexed(call: Call) -> Label:
    x, indices = call.x, call["indices"]
    at = [d for d, index in enumerate(indices) if index is not None]
    for label in indices:
        if label is not None:
            lb.pin_all(call.units, label)
    rank = len(lb.combine(call.units, *[indices[d] for d in at]).shape)
    together = at == list(range(at[0], at[0] + len(at)))
    left = [d for d in range(len(x.shape)) if d not in at]
    first = at[0] if together else 0
    before = [d for d in left if d < first] if together else []
    name = {d: i if d in before else i + rank for i, d in enumerate(left)}
    made = lb.renumber(lb.only(call.units, x, left), name, call.shape)
    return Label(call.shape, made.factors, made.uniform)


@rule("index_select", "gather", "take_along_dim")
def looked_up(call: Call) -> Label:
    index = call.get("index", "indices")
    lb.pin_all(call.units, index)
    dim = call.get("dim", default=0) % len(call.x.shape)
    if len(index.shape) > 1:  # gather: an index for every entry
        lb.pin_all(call.units, call.x)
        return lb.fixed(call.shape)
    made = lb.only(call.units, call.x, [d for d in range(len(call.x.shape)) if d != dim])
    return Label(call.shape, made.factors, made.uniform)


@rule("tril", "triu")
def triangle(call: Call) -> Label:
    made = lb.only(call.units, call.x, range(len(call.shape) - 2))
    return Label(call.shape, made.factors, made.uniform)


# --- attention and recurrence -----------------------------------------------------------------


@rule("scaled_dot_product_attention")
def attention(call: Call) -> Label:
    units, q, k, v = call.units, call["query"], call["key"], call["value"]
    if call.get("enable_gqa", default=False):
        return None
    scores = _contract(units, _insert(q, -2), _insert(k, -3))  # (..., L, S)
    mask = call.get("attn_mask")
    if mask is not None:
        scores = lb.combine(units, scores, mask)
    if call.get("is_causal", default=False):
        scores = lb.only(units, scores, range(len(scores.shape) - 2))
    lb.keep_rows(units, scores, [-1])
    made = _matmul(units, scores, v)
    return Label(call.shape, made.factors, made.uniform)


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(call: Call) -> Any:
    units, args = call.units, call.args
    x, weights = args.get("input"), args.get("params")
    if x is None or "num_layers" not in args:
        return None
    states = args["hx"] if isinstance(args["hx"], (list, tuple)) else [args["hx"]]
    ways = 2 if args["bidirectional"] else 1
    hidden = states[-1].shape[-1]
    projected = len(states) == 2 and states[0].shape[-1] != hidden
    each = 2 + 2 * bool(args["has_biases"]) + projected
    gates = weights[1].shape[0] // hidden
    places = len(x.shape) - 1
    ends: list[list[Label]] = [[] for _ in states]
    x = lb.only(units, x, [places])
    for layer in range(args["num_layers"]):
        outputs = []
        for way in range(ways):
            number = layer * ways + way
            w_in, w_back, *rest = weights[number * each : (number + 1) * each]
            last = states[0].shape[-1]
            before = lb.take(units, states[0], 0, np.array([number]), squeeze=True)
            steps = _contract(units, _insert(x, -2), w_in)
            again = _contract(units, _insert(before, -2), w_back)
            for bias in rest[: 2 * bool(args["has_biases"])]:
                steps = lb.combine(units, steps, bias)
            again = lb.combine(units, again, _last(steps))
            parts = lb.reshape(units, _last(again), (gates, hidden))
            unit = lb.combine(
                units,
                *[lb.take(units, parts, 0, np.array([g]), squeeze=True) for g in range(gates)],
            )
            if len(states) == 2:
                cell = lb.take(units, states[1], 0, np.array([number]), squeeze=True)
                unit = lb.combine(units, unit, _last(cell))
                ends[1].append(unit)
            if projected:
                unit = _contract(units, unit, rest[-1])
            # what comes out of a step goes into the next
            _contract(units, unit, w_back)
            unit = lb.combine(units, unit, _last(before))
            assert unit.shape == (last,)
            ends[0].append(unit)
            outputs.append(_freed(unit, x.shape[:-1]))
        x = lb.concatenate(units, outputs, -1) if ways > 1 else outputs[0]
    finals = []
    for state, parts in zip(states, ends, strict=True):
        last = len(state.shape) - 1
        rows = [units.resolve(f.units) for part in parts for f in part.factors]
        if len(rows) == len(parts) and all(r.shape == rows[0].shape for r in rows):
            finals.append(Label(state.shape, (lb.Factor((0, last), np.stack(rows)),)))
        else:
            for part in parts:
                lb.pin_all(units, part)
            finals.append(lb.fixed(state.shape))
    return [x, *finals]


def _last(label: Label) -> Label:
    """The label of the last dimension alone."""
    rank = len(label.shape)
    factors = tuple(lb.Factor((0,), f.units) for f in label.factors if f.dims == (rank - 1,))
    odd = [f for f in label.factors if rank - 1 in f.dims and f.dims != (rank - 1,)]
    if odd:
        raise NotImplementedError("units of a recurrence that share an axis with its steps")
    even = frozenset({0} if rank - 1 in label.uniform else ())
    return Label((label.shape[-1],), factors, even)


# --- inside -----------------------------------------------------------------------------------


def _labels(values: Any) -> list[Label]:
    found = []
    for value in values:
        if isinstance(value, Label):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _labels(value)
    return found


def _sized(call: Call, label: Label) -> Label:
    if label.shape != call.shape and prod(label.shape) == prod(call.shape):
        return lb.expand(label, call.shape)
    return label
