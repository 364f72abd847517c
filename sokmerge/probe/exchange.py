r"""Read what one network computes with what another one has learned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sokmerge.errors import ArgumentError
from sokmerge.params import host, wide
from sokmerge.probe.risk import mean_and_stderr

__all__ = ["WAYS", "Exchange", "exchange", "readout", "relative"]

#: How features of one network can be handed to the readout of another.
WAYS = ("direct", "mapped", "relative")


def relative(features: Tensor, anchors: Tensor) -> Tensor:
    r"""Return relative representations: the cosine of each input's features with each anchor's.

    .. math:: r_{ij} = \frac{\langle h(x_i),\,h(a_j)\rangle}
              {\lVert h(x_i)\rVert\,\lVert h(a_j)\rVert}

    (Moschella et al. 2022.) They do not change if all features are rotated, reflected, permuted
    or scaled, so that two networks which differ by no more than that give the same ones.

    Args:
        features: shape (n, d).
        anchors: features of the anchors in the same network, shape (k, d).

    Returns:
        Shape (n, k), in double precision. Features that are zero have the cosine zero with all.

    Raises:
        ArgumentError: no two matrices of one width.

    >>> x = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    >>> relative(x, torch.tensor([[3.0, 0.0], [0.0, 5.0]])).square().round(decimals=6)
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000]], dtype=torch.float64)
    """
    if features.dim() != 2 or anchors.dim() != 2 or features.shape[1] != anchors.shape[1]:
        raise ArgumentError(
            "anchors",
            found=f"shape {tuple(anchors.shape)} with features of shape {tuple(features.shape)}",
            expected="two matrices with the same number of columns",
        )
    first, second = (F.normalize(wide(t), dim=1) for t in (features, anchors))
    return first @ second.mT


def readout(features: Tensor, targets: Tensor, classes: int, ridge: float = 1e-3) -> Tensor:
    r"""Return the affine map from features to class scores that fits one-hot targets best.

    .. math:: \min_{W,b}\ \sum_i\lVert W^\top h_i+b-e_{y_i}\rVert^2
              + \rho\,\operatorname{tr}(C)\,\lVert W\rVert_F^2/d

    with C the centred second moment of the d features, so that the penalty does not depend on the
    unit of the features. In double precision.

    Args:
        features: shape (n, d).
        targets: class indices, shape (n,).
        classes: how many classes there are.
        ridge: :math:`\rho\ge0`.

    Returns:
        Shape (d + 1, classes): the weights, and below them the offset.

    >>> x = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    >>> readout(x, torch.tensor([0, 1, 0, 1]), 2, ridge=0.0).round(decimals=6).abs()
    tensor([[1., 1.],
            [1., 0.]], dtype=torch.float64)
    """
    return _affine(features, F.one_hot(targets, classes), ridge)


@dataclass(frozen=True)
class Exchange:
    """How often the readout of one network errs on features of another.

    Attributes:
        error: name of a way, one of :data:`WAYS`, to the share of wrong answers on features of a.
        error_stderr: their standard errors.
        own: the share of wrong answers of the same readout on the features of b, for which it was
            made; ``mapped`` and ``direct`` share a readout.
        anchors: how many inputs both networks were shown without labels.
        n: how many inputs were judged.
    """

    error: dict[str, float]
    error_stderr: dict[str, float]
    own: dict[str, float]
    anchors: int
    n: int


def exchange(
    fit: tuple[Tensor, Tensor],
    anchors: tuple[Tensor, Tensor],
    judged: tuple[Tensor, Tensor, Tensor],
    classes: int,
    *,
    ridge: float = 1e-3,
) -> Exchange:
    r"""Give features of a network a to a readout that was fitted to a network b.

    ``direct``
        as they are: what is asked of a merge by averaging.
    ``mapped``
        after the affine map from a's features to b's that fits best on the anchors.
    ``relative``
        as cosines with the anchors; the readout was fitted to those of b (zero-shot stitching,
        Moschella et al. 2022).

    Args:
        fit: features of b, shape (m, d), and their classes, shape (m,), to fit the readouts.
        anchors: features in a and in b of the same k inputs, shapes (k, c) and (k, d).
        judged: features in a and in b of the same n inputs, and their classes.
        classes: how many classes there are.
        ridge: penalty of readouts and map, see :func:`readout`.

    Raises:
        ArgumentError: anchors or judged inputs that are not the same number in both networks, or
            features of a and b of different widths.

    >>> b = torch.eye(2, dtype=torch.float64).repeat(4, 1)
    >>> y, a = torch.tensor([0, 1] * 4), b.flip(1)  # a has the two units in the other order
    >>> exchange((b, y), (a[:2], b[:2]), (a, b, y), 2).error
    {'direct': 1.0, 'mapped': 0.0, 'relative': 0.0}
    """
    of_b, labels = fit
    shared_a, shared_b = anchors
    a, b, targets = judged
    for name, one, two in (("anchors", shared_a, shared_b), ("judged", a, b)):
        if len(one) != len(two) or one.shape[1] != two.shape[1]:
            raise ArgumentError(
                name,
                found=f"shapes {tuple(one.shape)} and {tuple(two.shape)}",
                expected="features of the same inputs, as many in a as in b",
            )
    absolute = readout(of_b, labels, classes, ridge)
    relation = readout(relative(of_b, shared_b), labels, classes, ridge)
    bridge = _affine(shared_a, shared_b, ridge)
    views = {
        "direct": (absolute, wide(a), wide(b)),
        "mapped": (absolute, _applied(bridge, a), wide(b)),
        "relative": (relation, relative(a, shared_a), relative(b, shared_b)),
    }
    error, stderr, own = {}, {}, {}
    for way, (scores, foreign, native) in views.items():
        wrong = [(_applied(scores, x).argmax(1) != targets).double() for x in (foreign, native)]
        error[way], stderr[way] = (float(host(each)) for each in mean_and_stderr(wrong[0]))
        own[way] = float(host(wrong[1].mean()))
    return Exchange(error, stderr, own, len(shared_a), len(targets))


def _affine(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """Return the affine map from x to y that fits best, the offset in the last row."""
    x, y = wide(x), wide(y)
    mean_x, mean_y = x.mean(0), y.mean(0)
    centred = x - mean_x
    gram = centred.mT @ centred
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    # The last term keeps features that never vary from making it singular.
    penalty = ridge * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny ** 0.5
    weight = torch.linalg.solve(gram + penalty * eye, centred.mT @ (y - mean_y))
    return torch.cat([weight, (mean_y - mean_x @ weight)[None]])


def _applied(affine: Tensor, x: Tensor) -> Tensor:
    return wide(x) @ affine[:-1] + affine[-1]
