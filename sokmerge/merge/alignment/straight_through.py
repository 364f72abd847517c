r"""Align two networks by descending the loss half way, through a projection onto permutations."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.alignment.matching import Matching
from sokmerge.merge.alignment.weight_matching import weight_matching
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, host, require_finite, require_matching
from sokmerge.symmetry import PermutationGroup

__all__ = ["straight_through_matching"]


@method(
    branch="neuron alignment",
    paper="ainsworth2022git",
    needs=("symmetry", "data"),
    returns="permutation",
    scope="model",
    equation=r"\min_{\tilde\theta}\ "
    r"L\bigl(\tfrac12(\theta_A+\operatorname{proj}(\tilde\theta))\bigr)",
    ties="as SciPy's linear_sum_assignment breaks them; of equal losses the first",
)
def straight_through_matching(
    a: Params,
    b: Params,
    group: PermutationGroup,
    *,
    loss: Callable[[Params], Tensor],
    steps: int = 50,
    lr: float = 3e-3,
    seed: int = 0,
) -> Matching:
    r"""Find the permutation of b's units at which the loss half way to a is low.

    .. math:: \min_{\tilde\theta}\ L\Bigl(\tfrac12\bigl(\theta_A+
              \operatorname{proj}(\tilde\theta)\bigr)\Bigr),\qquad
              \operatorname{proj}(\tilde\theta)=\pi\cdot\theta_B,\quad
              \pi=\arg\max_{\pi\in G}\langle\tilde\theta,\pi\cdot\theta_B\rangle

    The projection is a :func:`weight_matching` to :math:`\tilde\theta`; it has no useful
    derivative. The straight-through estimator takes the projected point forward and hands the
    gradient to :math:`\tilde\theta` as if there had been no projection (Ainsworth et al. 2022,
    section 3.3). It begins at :math:`\tilde\theta=\theta_A`, so the first permutation is that of
    weight matching. The steps are Adam's. Kept is the best permutation that was visited: on what
    the loss sees the result is never worse than weight matching.

    Args:
        a: parameters of the reference network.
        b: parameters of the network to re-index.
        group: the symmetry of their architecture.
        loss: from parameters to a scalar tensor that can be differentiated, the same at each call.
        steps: gradient steps; each makes one projection and one call of the loss.
        lr: Adam's learning rate.
        seed: fixes the order in which the layers take turns in the projection.

    Returns:
        The permutation, minus the loss half way (``similarity``), and the number of steps.

    Raises:
        ArgumentError: a and b do not match, are not finite, or do not fit the group; or there is
            no step to make.

    >>> from torch import nn
    >>> from sokmerge import params, symmetry
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> group, theta = symmetry.chain(net, ["0", "2"]), params.of(net)
    >>> x = torch.randn(32, 4)
    >>> def loss(point):
    ...     found = torch.func.functional_call(net, point, (x,))
    ...     return (found - net(x).detach()).square().mean()
    >>> shuffled = group.act(group.sample(seed=1), theta)
    >>> straight_through_matching(theta, shuffled, group, loss=loss, steps=2).similarity > -1e-6
    True
    """
    require_matching(a=a, b=b)
    require_finite(a=a, b=b)
    group.require_fits(a, "a")
    if steps < 1:
        raise ArgumentError("steps", found=f"{steps}", expected="at least one")
    floating = [name for name, tensor in a.items() if tensor.is_floating_point()]
    relaxed = {name: a[name].detach().clone().requires_grad_() for name in floating}
    optimizer = torch.optim.Adam(relaxed.values(), lr=lr)
    best, lowest = group.identity(), math.inf
    for _ in range(steps):
        present = {**a, **{name: tensor.detach() for name, tensor in relaxed.items()}}
        permutation = weight_matching(present, b, group, seed=seed).permutation
        projected = group.act(permutation, b)
        # The difference is zero in value and the identity in its derivative.
        through = {n: projected[n] + (t - t.detach()) for n, t in relaxed.items()}
        middle = {**a, **{n: (a[n] + t) / 2 for n, t in through.items()}}
        value = loss(middle)
        reached = float(host(value))
        if not reached >= lowest:
            best, lowest = permutation, reached
        gradients = torch.autograd.grad(value, list(relaxed.values()), allow_unused=True)
        for tensor, gradient in zip(relaxed.values(), gradients, strict=True):
            tensor.grad = gradient
        optimizer.step()
    return Matching(best, -lowest, steps)
