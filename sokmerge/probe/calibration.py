r"""Calibration: whether a network that says 80 % is right in 80 of 100 cases."""

from __future__ import annotations

from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import host, wide

__all__ = ["brier_score", "expected_calibration_error"]


def expected_calibration_error(probabilities: Tensor, targets: Tensor, *, bins: int = 15) -> float:
    r"""Return how far confidence and accuracy lie apart, on average over bins of confidence.

    .. math:: \text{ECE} = \sum_b \frac{n_b}{n}\,\bigl|\text{acc}_b-\text{conf}_b\bigr|

    The confidence of an example is its greatest probability. Bins of equal width part (0, 1];
    bin b holds the :math:`n_b` examples whose confidence lies in ((b - 1)/B, b/B], with their
    mean accuracy and mean confidence (Guo et al. 2017, section 2, equation 3). The measure is
    biased upwards on few examples.

    Args:
        probabilities: shape (n, classes), each row sums to one.
        targets: shape (n,), whole numbers.
        bins: B, the number of bins.

    Returns:
        A number in [0, 1].

    Raises:
        ArgumentError: shapes that do not fit, rows that do not sum to one, or no bins.

    >>> import torch
    >>> sure = torch.tensor([[0.9, 0.1], [0.9, 0.1]])
    >>> round(expected_calibration_error(sure, torch.tensor([0, 1])), 6)
    0.4
    """
    _require(probabilities, targets)
    if bins < 1:
        raise ArgumentError("bins", found=f"{bins}", expected="1 or more")
    confidence, said = wide(probabilities).max(dim=1)
    right = (said == targets).to(confidence.dtype)
    # Rounded up, so that a bin holds its upper end and not its lower one.
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    # In a bin, |acc - conf| n_b is the difference of two sums.
    gap = confidence.new_zeros(bins).index_add(0, place, right - confidence)
    return float(host(gap.abs().sum() / len(targets)))


def brier_score(probabilities: Tensor, targets: Tensor) -> float:
    r"""Return the mean squared distance of the probabilities from the truth.

    .. math:: \frac1n\sum_i\sum_c\bigl(p_{ic}-\mathbb 1[c=y_i]\bigr)^2

    (Brier 1950.) It is 0 for a network that is sure and right, and 2 for one that is sure and
    wrong.

    Args:
        probabilities: shape (n, classes), each row sums to one.
        targets: shape (n,), whole numbers.

    Raises:
        ArgumentError: shapes that do not fit, or rows that do not sum to one.

    >>> import torch
    >>> brier_score(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    1.0
    """
    _require(probabilities, targets)
    p = wide(probabilities)
    own = p.gather(1, targets[:, None]).squeeze(1)
    return float(host((p.square().sum(dim=1) - 2 * own + 1).mean()))


def _require(probabilities: Tensor, targets: Tensor) -> None:
    if probabilities.ndim != 2 or targets.shape != probabilities.shape[:1] or not len(targets):
        raise ArgumentError(
            "probabilities",
            found=f"shape {tuple(probabilities.shape)} with targets {tuple(targets.shape)}",
            expected="shape (n, classes) with targets of shape (n,), n at least 1",
        )
    off = float(host((wide(probabilities).sum(dim=1) - 1).abs().max()))
    if off > 1e-3:
        raise ArgumentError(
            "probabilities",
            found=f"a row that sums to one only up to {off:.3g}",
            expected="probabilities",
            do="Take the softmax of logits first.",
        )
