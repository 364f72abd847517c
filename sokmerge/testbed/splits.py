r"""Who holds which images: splits of a data set among clients, whose classes may differ.

A split is made of targets alone and gives numbers of rows; it is fixed by a text, the key.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sokmerge import params
from sokmerge.errors import ArgumentError

__all__ = ["dirichlet_split", "holdings"]

TRIES = 1000


def dirichlet_split(
    targets: Tensor, clients: int, *, alpha: float, key: str, smallest: int = 1
) -> list[Tensor]:
    r"""Divide images among clients; how much the clients' classes differ is one number.

    Of each class c the shares of the K clients are drawn from a symmetric Dirichlet distribution,
    and the class, in random order, is cut where the shares' sums, times its size, round to:

    .. math:: p_c\sim\mathrm{Dir}(\alpha,\ldots,\alpha),\qquad \mathbb E\,p_{ck}=\tfrac1K,\quad
              \mathrm{Var}\,p_{ck}=\frac{K-1}{K^2(K\alpha+1)} .

    With :math:`\alpha\to\infty` all clients hold the same share of each class; with
    :math:`\alpha\to0` each class goes to one client. This is the split of Yurochkin et al.
    (2019, arXiv:1905.12022), in which clients differ in size as well. Hsu et al. (2019,
    arXiv:1909.06335), whom the number :math:`\alpha` is mostly quoted from, draw the classes of
    each client instead.

    **Smallest client.** With a small alpha a client may be left with nothing. The whole split is
    then drawn again, until each client has ``smallest`` images; what is returned is drawn from
    the distribution above under that condition. After 1000 draws in vain it is an error.

    Args:
        targets: the class of each image, shape (n,).
        clients: K.
        alpha: the concentration, above 0; ``math.inf`` for equal shares.
        key: a text that fixes the split.
        smallest: images that each client must have.

    Returns:
        For each client its rows, ascending, int64, on the device of the targets. Each row is in
        one of them.

    Raises:
        ArgumentError: an argument is not as described, or no split with clients of that size was
            found.

    >>> targets = torch.arange(10).repeat_interleave(6)
    >>> [len(rows) for rows in dirichlet_split(targets, 3, alpha=math.inf, key="a")]
    [20, 20, 20]
    >>> apart = dirichlet_split(targets, 3, alpha=1e-3, key="a")
    >>> holdings(targets, apart).count_nonzero(0).tolist()
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    """
    if targets.dim() != 1 or targets.is_floating_point() or len(targets) == 0:
        raise ArgumentError(
            "targets",
            found=f"{targets.dtype} of shape {tuple(targets.shape)}",
            expected="whole numbers of shape (n,), one or more",
        )
    if not (isinstance(clients, int) and clients >= 1):
        raise ArgumentError("clients", found=f"{clients}", expected="a whole number, at least 1")
    if not alpha > 0:
        raise ArgumentError("alpha", found=f"{alpha}", expected="a positive number, or infinity")
    if not 0 <= smallest <= len(targets) // clients:
        raise ArgumentError(
            "smallest",
            found=f"{smallest}",
            expected=f"0 to {len(targets) // clients}, as {len(targets)} images are divided",
        )
    classes = targets.cpu().numpy()
    generator = np.random.default_rng(params.stream(key).initial_seed())
    for _ in range(TRIES):
        parts = _drawn(classes, clients, alpha, generator)
        if min(len(part) for part in parts) >= smallest:
            return [torch.from_numpy(np.sort(part)).to(targets.device) for part in parts]
    raise ArgumentError(
        "alpha",
        found=f"{alpha}, with which {TRIES} splits had a client of fewer than {smallest} images",
        expected="splits among clients that all have images",
        do="Take a larger alpha, fewer clients, or a smaller smallest.",
    )


def holdings(targets: Tensor, parts: list[Tensor]) -> Tensor:
    """Return how many images of each class each client holds, shape (clients, classes).

    >>> holdings(torch.tensor([0, 1, 1]), [torch.tensor([1]), torch.tensor([0, 2])])
    tensor([[0, 1],
            [1, 1]])
    """
    classes = int(targets.max()) + 1
    return torch.stack([torch.bincount(targets[rows], minlength=classes) for rows in parts])


def _drawn(
    classes: np.ndarray, clients: int, alpha: float, generator: np.random.Generator
) -> list[np.ndarray]:
    """Return the rows of each client, class by class."""
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for each in np.unique(classes):
        rows = generator.permutation(np.flatnonzero(classes == each))
        shares = np.full(clients, 1 / clients)
        if math.isfinite(alpha):
            shares = generator.dirichlet(np.full(clients, alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(int)
        for part, some in zip(parts, np.split(rows, cuts), strict=True):
            part.append(some)
    return [np.concatenate(part) for part in parts]
