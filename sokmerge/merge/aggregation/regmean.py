"""RegMean: merge linear layers as if one regression had been fitted to the data of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.operands import proportions, require_models, require_statistics
from sokmerge.merge.taxonomy import method
from sokmerge.network import Network
from sokmerge.params import Params, combine, wide

__all__ = ["gram_matrices", "regmean"]


def gram_matrices(
    module: nn.Module, params: Params, inputs: Tensor, *, chunk: int = 256
) -> dict[str, Tensor]:
    r"""Return the Gram matrix :math:`G = X^\top X` of what each linear layer is given.

    :math:`X` has a row for each input (and, for sequences, each place) and a column for each
    input feature of the layer. It is a sum, not a mean: a network that saw more data counts
    more.

    Args:
        module: the network's architecture, in evaluation mode; its own parameters are not used,
            and it is not changed.
        params: the point at which the activations are taken.
        inputs: shape (n, ...). No labels are needed.
        chunk: examples in one forward pass.

    Returns:
        Under the name of its weight, for each ``nn.Linear`` that is called, shape
        (in_features, in_features), in double precision where the device has it. A layer whose
        weight is used without calling the layer, as the output projection within
        ``nn.MultiheadAttention``, has none.

    Raises:
        ArgumentError: no inputs, params that do not belong to the module or are not finite, or
            a network without linear layers.

    >>> net = nn.Linear(2, 1).eval()
    >>> theta = {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}
    >>> gram_matrices(net, theta, torch.tensor([[1.0, 2.0], [0.0, 1.0]]))["weight"]
    tensor([[1., 2.],
            [2., 5.]], dtype=torch.float64)
    """
    for name, number in (("inputs", len(inputs)), ("chunk", chunk)):
        if number < 1:
            raise ArgumentError(name, found=f"{number}", expected="at least one example")
    network = Network(module, inputs.device)
    network.require(params=params)
    state = network.state(params, inputs)
    grams: dict[str, Tensor] = {}

    def observe(key: str):
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            rows = wide(arguments[0]).flatten(0, -2)
            gram = rows.T @ rows
            grams[key] = grams[key] + gram if key in grams else gram

        return hook

    # A weight that several layers share is known by one name.
    names = {id(p): name for name, p in network.skeleton.named_parameters()}
    for layer in network.skeleton.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(observe(names[id(layer.weight)]))
    with torch.inference_mode():
        for x in inputs.split(chunk):
            network(state, x)
    if not grams:
        raise ArgumentError("module", found="no nn.Linear that is called", expected="at least one")
    return {key: gram.clone() for key, gram in grams.items()}


@method(
    branch="weight aggregation",
    paper="jin2022dataless",
    needs=("statistics",),
    scope="layer",
    equation=r"W=\bigl(\textstyle\sum_i w_iW_iG_i\bigr)\bigl(\sum_i w_iG_i\bigr)^{-1}",
)
def regmean(
    models: Sequence[Params],
    *,
    grams: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float] | None = None,
    scale: float = 0.9,
) -> Params:
    r"""Return the average of networks, the linear layers merged by a regression.

    For a layer :math:`x\mapsto x\,W` the point that differs least from what the layers do on their
    own data,

    .. math:: W = \arg\min_W \sum_i w_i\,\lVert X_i W - X_i W_i\rVert^2
                = \Bigl(\sum_i w_i\,G_i\Bigr)^{-1} \sum_i w_i\,G_i\,W_i,
              \qquad G_i = X_i^\top X_i,

    needs no data but their Gram matrices (Jin et al. 2022). PyTorch keeps :math:`W^\top`, shape
    (out_features, in_features), and so does the result. The entries of :math:`G_i` off the
    diagonal are multiplied by ``scale`` first: few data make them unreliable. With 0, each input
    feature is averaged on its own, weighted by its sum of squares. For equal Gram matrices the
    result is the :func:`average`. Everything else, biases too, is averaged.

    Where the sum of the Gram matrices is singular (a pixel that is always black) the data leave
    the solution open. Then it is the one nearest to the average :math:`\bar W`, as what is solved
    is :math:`W=\bar W+\bigl(\sum_i w_iG_i\bigr)^{+}\sum_i w_iG_i(W_i-\bar W)`.

    Scope: per layer. The decomposition of the matrices, :math:`O(\text{in\_features}^3)`, waits
    for the device.

    Args:
        models: parameters of networks of one architecture. Entries that are not floating point
            are taken from the first.
        grams: for each model, the Gram matrices of its linear layers, as from
            :func:`gram_matrices`.
        weights: one non-negative number for each model, by default all equal; they need not sum
            to one.
        scale: from 0, which looks at each input feature on its own, to 1, the plain regression.

    Raises:
        ArgumentError: models, Gram matrices, weights or a scale that are not as described.

    >>> a, b = {"weight": torch.tensor([[1.0, 1.0]])}, {"weight": torch.tensor([[0.0, 0.0]])}
    >>> grams = [{"weight": torch.diag(torch.tensor(d))} for d in ([3.0, 1.0], [1.0, 1.0])]
    >>> regmean([a, b], grams=grams)["weight"]
    tensor([[0.7500, 0.5000]])
    """
    require_models(models)
    shares = proportions(weights, models)
    if not 0 <= scale <= 1:
        raise ArgumentError("scale", found=f"{scale}", expected="a number from 0 to 1")
    require_statistics("grams", grams, models)
    for key, gram in grams[0].items():
        shape = tuple(models[0][key].shape)
        if len(shape) != 2 or tuple(gram.shape) != (shape[1], shape[1]):
            raise ArgumentError(
                f"grams[0][{key!r}]",
                found=f"shape {tuple(gram.shape)} for a weight of shape {shape}",
                expected="(in_features, in_features) for a weight (out_features, in_features)",
            )
    averaged = combine(shares, models)
    for key in grams[0]:
        layers = [wide(model[key]) for model in models]
        shrunk = [_shrunk(wide(gram[key]), scale) for gram in grams]
        averaged[key] = _regressed(layers, shrunk, shares).to(models[0][key].dtype)
    return averaged


def _shrunk(gram: Tensor, scale: float) -> Tensor:
    """Return a Gram matrix whose entries off the diagonal are multiplied by a number."""
    return scale * gram + (1 - scale) * torch.diag(gram.diagonal())


def _regressed(
    layers: Sequence[Tensor], grams: Sequence[Tensor], shares: Sequence[float]
) -> Tensor:
    """Return the weight, shape (out, in), that is merged by the Gram matrices, shape (in, in)."""
    mean = sum(share * layer for share, layer in zip(shares, layers, strict=True))
    weighted = [share * gram for share, gram in zip(shares, grams, strict=True)]
    # Gram matrices are symmetric: (G (W_i - mean)^T)^T = (W_i - mean) G.
    pull = sum((layer - mean) @ gram for layer, gram in zip(layers, weighted, strict=True))
    return mean + pull @ torch.linalg.pinv(sum(weighted), hermitian=True)
