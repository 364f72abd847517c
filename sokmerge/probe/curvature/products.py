r"""Hessian, Gauss-Newton matrix and Fisher information of a network, as products with vectors.

For the risk :math:`L(\theta)=\frac1n\sum_i\ell\bigl(f_\theta(x_i),y_i\bigr)` with the Jacobian
:math:`J_i=\partial f_\theta(x_i)/\partial\theta` and class probabilities :math:`p_i`,

.. math::

   H &= \nabla^2_\theta L && \text{Hessian} \\
   G &= \tfrac1n\textstyle\sum_i J_i^\top\,\bigl[\nabla^2_f\,\ell(f_i,y_i)\bigr]\,J_i
     && \text{generalised Gauss-Newton} \\
   F &= \tfrac1n\textstyle\sum_i J_i^\top\bigl(\operatorname{diag}p_i-p_ip_i^\top\bigr)J_i
     && \text{Fisher information of the predicted classes} \\
   E &= \tfrac1n\textstyle\sum_i \nabla_\theta\ell_i\,\nabla_\theta\ell_i^\top
     && \text{"empirical" Fisher}

A product never forms the matrix. That of the Hessian is the derivative of the gradient along the
vector (Pearlmutter 1994); that of the others goes through the network twice, once forward
(:math:`J v`) and once back (Schraudolph 2002).

How it is done: the examples come in chunks, and the graph of each chunk's gradient is built once
and kept, so that a product is one walk over graphs that are there. Where they would take more
memory than is allowed, the chunks that do not fit are built anew for each product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.autograd.graph import saved_tensors_hooks

from sokmerge import params as vectors
from sokmerge.errors import ArgumentError
from sokmerge.params import Params
from sokmerge.probe.curvature.layers import Layers
from sokmerge.probe.curvature.operator import Layout, Operator
from sokmerge.probe.risk import EmpiricalRisk

__all__ = ["empirical_fisher", "fisher", "gauss_newton", "hessian"]

# Several vectors at once, by vmap over the graph. On a processor this is slower than one after the
# other; on a GPU small networks leave most of it idle, so that it is expected to pay there.
_TOGETHER = {"cpu": 1}
_TOGETHER_ELSEWHERE = 8

_MEMORY = 2**32

# What a chunk's graph makes of tangents, one tensor for each parameter: as many again.
_Map = Callable[[list[Tensor], bool], list[Tensor]]


def hessian(
    risk: EmpiricalRisk,
    params: Params,
    *,
    names: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    statistics: str = "estimated",
    memory: int = _MEMORY,
) -> Operator:
    r"""Return the Hessian of the risk at a point, :math:`H=\nabla^2_\theta L(\theta)`.

    The gradient comes along: it is the ``gradient`` of the operator.

    BatchNorm: the statistics are estimated at the point, on the risk's calibration inputs, and
    then held fixed; H does not contain how they would change with the parameters. This is the
    curvature of the function that is used for prediction.

    Args:
        risk: network, data and loss. The loss must be twice differentiable where it is used; for
            ReLU the second derivative is taken to be 0.
        params: the point, on the risk's device; buffers may be among them.
        names: the parameters whose block of H is wanted; by default all.
        dtype: the precision of the computation, ``torch.float64`` for one that can be checked;
            by default that of the parameters.
        statistics: "estimated", or "given" to take BatchNorm statistics as they stand in
            ``params`` or, if not there, in the module.
        memory: bytes that graphs may take, 4 GiB by default. Each chunk that does not fit costs
            the time of its gradient again in every product.

    Raises:
        ArgumentError: params that do not belong to the network or are not finite, an unknown
            name, or statistics that are neither of the two.

    >>> net = nn.Linear(2, 1, bias=False).eval()
    >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.zeros(2, 1)
    >>> risk = EmpiricalRisk(net, x, y, loss=lambda f, y, reduction: ((f - y) ** 2 / 2).sum(1))
    >>> h = hessian(risk, {"weight": torch.ones(1, 2)})  # the second moment of the inputs
    >>> h @ torch.eye(2), h.gradient
    (tensor([[1., 1.],
            [1., 2.]]), tensor([2., 3.]))
    """

    def piece(graph: _Graph, outputs: Tensor, y: Tensor) -> tuple[_Map, list[Tensor]]:
        total = risk.losses(outputs, y).sum() / risk.n
        gradient = graph.pull(total, None, create_graph=True)
        return graph.linear(gradient), gradient

    return _operator(risk, params, piece, names, dtype, statistics, memory, gradient=True)


def gauss_newton(
    risk: EmpiricalRisk,
    params: Params,
    *,
    names: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    statistics: str = "estimated",
    memory: int = _MEMORY,
) -> Operator:
    r"""Return the generalised Gauss-Newton matrix of the risk at a point.

    .. math:: G = \frac1n\sum_i J_i^\top\,\bigl[\nabla^2_f\,\ell(f_i,y_i)\bigr]\,J_i

    It is the Hessian of the risk of the network linearised at the point (Schraudolph 2002). If
    the loss is convex in the outputs, G has no negative eigenvalue. For cross-entropy it is the
    :func:`fisher` information. Arguments and errors are those of :func:`hessian`.

    >>> net = nn.Linear(1, 2, bias=False).eval()
    >>> risk = EmpiricalRisk(net, torch.tensor([[2.0]]), torch.tensor([0]))
    >>> gauss_newton(risk, {"weight": torch.zeros(2, 1)}) @ torch.eye(2)
    tensor([[ 1., -1.],
            [-1.,  1.]])
    """

    def piece(graph: _Graph, outputs: Tensor, y: Tensor) -> tuple[_Map, None]:
        z = outputs.detach().requires_grad_()
        (slope,) = grad(risk.losses(z, y).sum() / risk.n, z, create_graph=True)

        def bend(u: Tensor, batched: bool) -> Tensor:
            if not slope.requires_grad:  # the loss is linear in the outputs
                return torch.zeros_like(u)
            (bent,) = grad(
                slope, z, u, retain_graph=True, is_grads_batched=batched, allow_unused=True
            )
            return torch.zeros_like(u) if bent is None else bent

        return graph.sandwich(outputs, bend), None

    return _operator(risk, params, piece, names, dtype, statistics, memory)


def fisher(
    risk: EmpiricalRisk,
    params: Params,
    *,
    names: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    statistics: str = "estimated",
    memory: int = _MEMORY,
) -> Operator:
    r"""Return the Fisher information of a classifier at a point.

    .. math:: F = \frac1n\sum_i\sum_c
              p_i(c)\,\nabla_\theta\log p_i(c)\,\nabla_\theta\log p_i(c)^\top
              = \frac1n\sum_i J_i^\top\bigl(\operatorname{diag}p_i-p_ip_i^\top\bigr)J_i

    The expectation is over the classes that the network itself predicts: neither the labels nor
    the loss of the risk enter. Arguments and errors are those of :func:`hessian`.

    Raises:
        ArgumentError: also if the outputs are not class scores, shape (n, C).

    >>> net = nn.Linear(1, 2, bias=False).eval()
    >>> risk = EmpiricalRisk(net, torch.tensor([[2.0]]), torch.tensor([0]))
    >>> fisher(risk, {"weight": torch.zeros(2, 1)}) @ torch.tensor([1.0, 0.0])
    tensor([ 1., -1.])
    """

    def piece(graph: _Graph, outputs: Tensor, y: Tensor) -> tuple[_Map, None]:
        if outputs.dim() != 2:
            raise ArgumentError(
                "risk",
                found=f"outputs of shape {tuple(outputs.shape)}",
                expected="class scores, shape (n, C)",
            )
        p = outputs.detach().softmax(1)

        def bend(u: Tensor, batched: bool) -> Tensor:
            weighted = p * u
            return (weighted - p * weighted.sum(-1, keepdim=True)) / risk.n

        return graph.sandwich(outputs, bend), None

    return _operator(risk, params, piece, names, dtype, statistics, memory)


def empirical_fisher(
    risk: EmpiricalRisk,
    params: Params,
    *,
    names: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    statistics: str = "estimated",
    memory: int = _MEMORY,
) -> Operator:
    r"""Return the second moment of the gradients of single examples at their labels.

    .. math:: E = \frac1n\sum_i \nabla_\theta\ell_i\,\nabla_\theta\ell_i^\top

    It is often called the empirical Fisher, but it is not the :func:`fisher` information, nor an
    approximation of the Hessian away from a model that fits (Kunstner et al. 2019). Arguments and
    errors are those of :func:`hessian`.

    >>> net = nn.Linear(1, 2, bias=False).eval()
    >>> risk = EmpiricalRisk(net, torch.tensor([[2.0]]), torch.tensor([0]))
    >>> empirical_fisher(risk, {"weight": torch.zeros(2, 1)}) @ torch.tensor([1.0, 0.0])
    tensor([ 1., -1.])
    """

    def piece(graph: _Graph, outputs: Tensor, y: Tensor) -> tuple[_Map, None]:
        return graph.sandwich(risk.losses(outputs, y), lambda u, batched: u / risk.n), None

    return _operator(risk, params, piece, names, dtype, statistics, memory)


class _Graph:
    """The leaves of the graphs: the parameters with respect to which all is derived."""

    def __init__(self, leaves: list[Tensor]) -> None:
        self.leaves = leaves

    def pull(
        self, outputs: Tensor, cotangent: Tensor | None, batched: bool = False, **kept: bool
    ) -> list[Tensor]:
        """Return the derivative of the outputs along a cotangent, zeros where there is none."""
        before = cotangent.shape[:1] if batched and cotangent is not None else ()
        if not outputs.requires_grad:
            return [t.new_zeros(*before, *t.shape) for t in self.leaves]
        found = grad(
            outputs,
            self.leaves,
            cotangent,
            allow_unused=True,
            is_grads_batched=batched,
            **kept,
        )
        pairs = zip(found, self.leaves, strict=True)
        return [t.new_zeros(*before, *t.shape) if f is None else f for f, t in pairs]

    def linear(self, gradient: list[Tensor]) -> _Map:
        """Return the derivative of a gradient along tangents."""
        live = [i for i, g in enumerate(gradient) if g.requires_grad]

        def product(tangents: list[Tensor], batched: bool) -> list[Tensor]:
            if not live:
                return [torch.zeros_like(t) for t in tangents]
            found = grad(
                [gradient[i] for i in live],
                self.leaves,
                [tangents[i] for i in live],
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=batched,
            )
            pairs = zip(found, tangents, strict=True)
            return [torch.zeros_like(t) if f is None else f for f, t in pairs]

        return product

    def sandwich(self, outputs: Tensor, bend: Callable[[Tensor, bool], Tensor]) -> _Map:
        r"""Return :math:`v\mapsto J^\top B J v`, J of the outputs and B what ``bend`` does.

        J v is the derivative, with respect to w, of :math:`J^\top w`, which is linear in w: so
        both directions walk over graphs that are kept.
        """
        w = torch.zeros_like(outputs, requires_grad=True)
        backward = self.pull(outputs, w, create_graph=True)
        live = [i for i, g in enumerate(backward) if g.requires_grad]

        def product(tangents: list[Tensor], batched: bool) -> list[Tensor]:
            if not live:
                return [torch.zeros_like(t) for t in tangents]
            (moved,) = grad(
                [backward[i] for i in live],
                w,
                [tangents[i] for i in live],
                retain_graph=True,
                is_grads_batched=batched,
            )
            return self.pull(outputs, bend(moved, batched), batched, retain_graph=True)

        return product


_Piece = Callable[[_Graph, Tensor, Tensor], tuple[_Map, list[Tensor] | None]]


def _operator(
    risk: EmpiricalRisk,
    params: Params,
    piece: _Piece,
    names: Sequence[str] | None,
    dtype: torch.dtype | None,
    statistics: str,
    memory: int,
    gradient: bool = False,
) -> Operator:
    risk.require_valid(params=params)
    network = risk.network
    chosen = _chosen(names, network.parameters)
    state = _state(risk, params, dtype, statistics)
    leaves = {name: state[name].clone().requires_grad_() for name in chosen}
    layout = Layout({name: leaf.shape for name, leaf in leaves.items()})
    graph, precision = _Graph(list(leaves.values())), leaves[chosen[0]].dtype
    chunks = [(_cast(x, precision), _cast(y, precision)) for x, y in risk.chunks()]

    def build(x: Tensor, y: Tensor) -> tuple[_Map, list[Tensor] | None]:
        def work(function: nn.Module) -> tuple[_Map, list[Tensor] | None]:
            with Layers(second=gradient):
                outputs = function(x)
            return piece(graph, outputs, y)

        with torch.enable_grad():
            return network.at({**state, **leaves}, work)

    fit = max(0, memory) // max(1, _bytes(build, *chunks[0]))
    kept: list[_Map] = []
    slope = [torch.zeros_like(leaf) for leaf in graph.leaves] if gradient else None
    for i, chunk in enumerate(chunks):
        if i >= fit and not gradient:
            break
        product, part = build(*chunk)
        if i < fit:
            kept.append(product)
        for total, term in zip(slope or (), part or (), strict=True):
            total.add_(term.detach())

    def products(flat: Tensor) -> Tensor:
        batched = len(flat) > 1
        given = layout.unflatten(flat.to(precision) if batched else flat[0].to(precision))
        tangents = list(given.values())
        totals = [torch.zeros_like(t) for t in tangents]
        for i, chunk in enumerate(chunks):
            product = kept[i] if i < len(kept) else build(*chunk)[0]
            for total, term in zip(totals, product(tangents, batched), strict=True):
                total.add_(term)
        return torch.cat([t.reshape(len(flat), -1) for t in totals], dim=1)

    return Operator(
        products=products,
        layout=layout,
        device=risk.device,
        dtype=precision,
        together=_TOGETHER.get(risk.device.type, _TOGETHER_ELSEWHERE),
        gradient=torch.cat([t.reshape(-1) for t in slope]) if slope is not None else None,
    )


def _chosen(names: Sequence[str] | None, parameters: Params) -> list[str]:
    """Return the names in the network's own order: the order they are given in does not count."""
    if names is None:
        return [name for name, p in parameters.items() if p.is_floating_point()]
    unknown = sorted(set(names) - parameters.keys())
    if unknown or not names:
        raise ArgumentError(
            "names",
            found=f"the unknown {unknown}" if unknown else "no names",
            expected=f"some of {list(parameters)}",
        )
    return [name for name in parameters if name in set(names)]


def _state(
    risk: EmpiricalRisk, params: Params, dtype: torch.dtype | None, statistics: str
) -> dict[str, Tensor]:
    if statistics not in ("estimated", "given"):
        raise ArgumentError("statistics", found=repr(statistics), expected="'estimated' or 'given'")
    point = vectors.to({**risk.network.buffers, **params}, dtype=dtype)
    # Parameters first: their dtype is that of the calibration inputs.
    point = {**{k: point[k] for k in risk.network.parameters}, **point}
    state = risk.state(point) if statistics == "estimated" else point
    # In the plain order, in which convolutions are faster the second time back (measured).
    return {k: t.detach().clone(memory_format=torch.contiguous_format) for k, t in state.items()}


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return data in the precision of the parameters and in the plain order."""
    if tensor.is_floating_point():
        return tensor.to(dtype).clone(memory_format=torch.contiguous_format)
    return tensor


def _bytes(build: Callable[[Tensor, Tensor], object], x: Tensor, y: Tensor) -> int:
    """Return how much the graph of a chunk keeps at most, by keeping it once.

    A tensor that is kept twice counts twice. What is kept here is cut off from its own graph: a
    tensor that held itself would never be freed.
    """
    count = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal count
        count += tensor.numel() * tensor.element_size()
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        build(x, y)
    return count
