r"""What the layers of a network compute on data, and how alike two such representations are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.network import Network
from sokmerge.params import Params, host, wide

__all__ = ["activations", "disagreement", "feature_cosine", "linear_cka"]


def activations(
    network: Network,
    params: Params,
    inputs: Tensor,
    layers: Sequence[str],
    *,
    at: Literal["output", "input"] = "output",
    chunk: int = 500,
    calibration: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return what layers give out, or are given, on each input.

    Where an activation function is a plain call and not a module, as in this book's networks, what
    stands after it is seen at the input of the next layer.

    Args:
        network: the network.
        params: the point; buffers may be among them.
        inputs: shape (n, ...).
        layers: names of submodules, each of them called once in a pass.
        at: ``"output"`` for what a layer gives out, ``"input"`` for what it is given.
        chunk: examples in one forward pass.
        calibration: inputs on which BatchNorm statistics are estimated; by default ``inputs``.

    Returns:
        For each layer a tensor of shape (n, features): all channels and places of an example in
        one row. It has no gradient.

    Raises:
        ArgumentError: a layer that the network does not have or does not call, no inputs, or
            params that do not belong to the network.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    >>> own = {name: p.detach() for name, p in net.named_parameters()}
    >>> found = activations(Network(net), own, torch.zeros(4, 2), ["0", "2"], at="input")
    >>> {name: tuple(rows.shape) for name, rows in found.items()}
    {'0': (4, 2), '2': (4, 3)}
    """
    known = dict(network.skeleton.named_modules())
    for name in layers:
        if name not in known:
            raise ArgumentError(
                "layers", found=repr(name), expected=f"submodules of the network: {[*known][1:]}"
            )
    if at not in ("output", "input"):
        raise ArgumentError("at", found=repr(at), expected="'output' or 'input'")
    if len(inputs) == 0 or chunk < 1:
        raise ArgumentError(
            "inputs", found=f"{len(inputs)} in chunks of {chunk}", expected="at least one of each"
        )
    network.require(params=params)
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str):
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            rows = output if at == "output" else arguments[0]
            seen[name].append(rows.flatten(1))

        return hook

    state = network.state(params, inputs if calibration is None else calibration)
    handles = [known[name].register_forward_hook(keep(name)) for name in layers]
    try:
        with torch.no_grad():
            for x in inputs.split(chunk):
                network(state, x)
    finally:
        for handle in handles:
            handle.remove()
    for name, parts in seen.items():
        if sum(map(len, parts)) != len(inputs):
            raise ArgumentError(
                "layers", found=f"{name!r}", expected="layers that are called once in a pass"
            )
    return {name: torch.cat(parts) for name, parts in seen.items()}


def linear_cka(x: Tensor, y: Tensor) -> float:
    r"""Return the linear centred kernel alignment of two representations of the same inputs.

    .. math:: \operatorname{CKA}(X,Y) = \frac{\lVert Y^\top X\rVert_F^2}
              {\lVert X^\top X\rVert_F\,\lVert Y^\top Y\rVert_F}

    where the columns of X and Y are centred (Kornblith et al. 2019, section 3). It is 1 where one
    is the other turned, shifted or scaled as a whole, 0 where no feature of one is correlated with
    one of the other. On fewer examples than features it is biased upwards.

    Args:
        x: shape (n, p).
        y: shape (n, q), of the same inputs in the same order.

    Returns:
        A number in [0, 1]; NaN where one of the two is constant.

    Raises:
        ArgumentError: shapes that do not fit, or fewer than two examples.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> round(linear_cka(x, 3 * x.flip(1) + 1), 6)
    1.0
    """
    _require_pairs(x=x, y=y, least=2)
    x, y = (wide(t) - wide(t).mean(0) for t in (x, y))
    n = len(x)
    if x.shape[1] > n or y.shape[1] > n:  # the same number from the Gram matrices of examples
        a, b = x @ x.mT, y @ y.mT
        value = (a * b).sum() / (a.norm() * b.norm())
    else:
        value = (y.mT @ x).square().sum() / ((x.mT @ x).norm() * (y.mT @ y).norm())
    return float(host(value))


def feature_cosine(x: Tensor, y: Tensor) -> Tensor:
    r"""Return the cosine between two representations of each input, a tensor of shape (n,).

    .. math:: \cos(x_i,y_i)=\frac{\langle x_i,y_i\rangle}{\lVert x_i\rVert\,\lVert y_i\rVert}

    In double precision where there is any. Unlike :func:`linear_cka` it compares unit by unit, so
    it falls when the units of one are permuted. It is NaN where one of the two is zero.

    Args:
        x: shape (n, p).
        y: shape (n, p), of the same inputs in the same order.

    Raises:
        ArgumentError: the shapes differ.

    >>> feature_cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])).square()
    tensor([0.5000], dtype=torch.float64)
    """
    _require_pairs(x=x, y=y)
    if x.shape != y.shape:
        raise ArgumentError(
            "y", found=f"shape {tuple(y.shape)}", expected=f"shape {tuple(x.shape)}, as x"
        )
    x, y = wide(x), wide(y)
    return (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))


def disagreement(logits_a: Tensor, logits_b: Tensor) -> float:
    """Return the share of inputs that two networks put into different classes.

    Args:
        logits_a: scores or probabilities of one network, shape (n, classes).
        logits_b: those of the other on the same inputs.

    Returns:
        A number in [0, 1]. It cannot be more than the sum of the two shares of wrong answers.

    Raises:
        ArgumentError: the shapes differ.

    >>> disagreement(torch.eye(4), torch.eye(4).roll(1, 0))
    1.0
    """
    _require_pairs(logits_a=logits_a, logits_b=logits_b)
    if logits_a.shape != logits_b.shape:
        raise ArgumentError(
            "logits_b",
            found=f"shape {tuple(logits_b.shape)}",
            expected=f"shape {tuple(logits_a.shape)}, as logits_a",
        )
    return float(host((logits_a.argmax(1) != logits_b.argmax(1)).double().mean()))


def _require_pairs(least: int = 1, **two: Tensor) -> None:
    (first, x), (second, y) = two.items()
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < least:
        raise ArgumentError(
            second,
            found=f"shape {tuple(y.shape)} with {first} of shape {tuple(x.shape)}",
            expected=f"two matrices with a row for each input, at least {least}",
        )
