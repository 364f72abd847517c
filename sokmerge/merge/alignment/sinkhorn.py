r"""Align two networks by soft permutations, made by Sinkhorn's normalisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.alignment.matching import Matching, assign
from sokmerge.merge.alignment.soft import act_softly, completed, free_blocks, harden
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, distance, host, require_finite, require_matching, stream
from sokmerge.symmetry import PermutationGroup

__all__ = ["sinkhorn", "sinkhorn_matching"]

_START = 0.1  # of the random logits: what is symmetric at the start would stay so


def sinkhorn(logits: Tensor, iterations: int = 20) -> Tensor:
    r"""Return the doubly stochastic matrix that is :math:`e^{X}` with its rows and columns scaled.

    Rows and columns are divided by their sums in turn, in the logarithm (Sinkhorn 1964). Among
    the doubly stochastic matrices the limit maximises :math:`\langle X,S\rangle` plus the entropy
    of S, so for large X it comes close to a permutation. Differentiable, step by step.

    Args:
        logits: X, shape (n, n).
        iterations: how often rows and columns take turns. The columns come last and sum to one.

    >>> sinkhorn(torch.tensor([[4.0, 0.0], [0.0, 4.0]])).round(decimals=3)
    tensor([[0.9820, 0.0180],
            [0.0180, 0.9820]])
    """
    for _ in range(iterations):
        logits = logits - logits.logsumexp(1, keepdim=True)
        logits = logits - logits.logsumexp(0, keepdim=True)
    return logits.exp()


@method(
    branch="neuron alignment",
    paper="guerreropena2022rebasin",
    needs=("symmetry", "data"),
    returns="permutation",
    scope="model",
    equation=r"\min_X\ L\bigl(\tfrac12(\theta_A+S(X)\cdot\theta_B)\bigr)",
    ties="as SciPy's linear_sum_assignment breaks them",
)
def sinkhorn_matching(
    a: Params,
    b: Params,
    group: PermutationGroup,
    *,
    loss: Callable[[Params], Tensor] | None = None,
    steps: int = 100,
    lr: float = 0.1,
    temperature: float = 1.0,
    iterations: int = 20,
    seed: int = 0,
) -> Matching:
    r"""Find a permutation of b's units by descending through soft permutations.

    Each block has a matrix X of free numbers. Sinkhorn's normalisation makes it a doubly
    stochastic matrix :math:`S(X/\tau)`, a soft permutation, which mixes units as a permutation
    re-indexes them. Adam descends

    .. math:: L\bigl(\tfrac12(\theta_A+S\cdot\theta_B)\bigr)\qquad\text{or, without a loss,}\qquad
              \lVert\theta_A-S\cdot\theta_B\rVert^2/\lVert\theta_A-\theta_B\rVert^2

    (Guerrero-Peña et al. 2022; their losses :math:`L_\text{Mid}` and :math:`L_\text{L2}`). They
    differentiate the fixed point of the normalisation; here its steps are differentiated, which
    gives the derivative of what is computed. In the end each X is rounded to the permutation that
    it is most in favour of. Since the normalisation only adds a number to each row and each
    column of X, this is also the best assignment for :math:`\log S`. Units that lie within others,
    as channels in heads, go with these.

    Args:
        a: parameters of the reference network.
        b: parameters of the network to re-index.
        group: the symmetry of their architecture.
        loss: from parameters to a scalar tensor that can be differentiated. By default the
            squared distance, which needs no data.
        steps: gradient steps.
        lr: Adam's learning rate, for X.
        temperature: :math:`\tau`; the smaller, the harder the permutations.
        iterations: of the normalisation.
        seed: of the random numbers near zero from which X starts, one stream for each block.

    Returns:
        The permutation, minus the objective at it (not at the soft one), and the number of steps.

    Raises:
        ArgumentError: a and b do not match, are not finite, or do not fit the group; no step, no
            iteration, or a temperature that is not positive.

    >>> from torch import nn
    >>> from sokmerge import params, symmetry
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> group, theta = symmetry.chain(net, ["0", "2"]), params.of(net)
    >>> shuffled = group.act(group.sample(seed=1), theta)
    >>> found = sinkhorn_matching(theta, shuffled, group)
    >>> all(torch.equal(theta[k], t) for k, t in group.act(found.permutation, shuffled).items())
    True
    """
    require_matching(a=a, b=b)
    require_finite(a=a, b=b)
    group.require_fits(a, "a")
    for name, number in (("steps", steps), ("iterations", iterations)):
        if number < 1:
            raise ArgumentError(name, found=f"{number}", expected="at least one")
    if not temperature > 0:
        raise ArgumentError("temperature", found=f"{temperature}", expected="a positive number")
    like = next(tensor for tensor in a.values() if tensor.is_floating_point())
    free = {
        block.name: _start(block.size, f"{seed}:{block.name}", like).requires_grad_()
        for block in free_blocks(group)
    }
    scale = distance(a, b).square()
    optimizer = torch.optim.Adam(free.values(), lr=lr)

    def objective(moved: Params) -> Tensor:
        if loss is None:
            return distance(a, moved).square() / scale
        return loss({n: (t + moved[n]) / 2 if t.is_floating_point() else t for n, t in a.items()})

    for _ in range(steps):
        soft = {name: sinkhorn(x / temperature, iterations) for name, x in free.items()}
        value = objective(act_softly(group, soft, b))
        for x, gradient in zip(
            free.values(), torch.autograd.grad(value, list(free.values())), strict=True
        ):
            x.grad = gradient
        optimizer.step()
    permutation = completed(group, harden(free, assign))
    with torch.no_grad():
        reached = objective(group.act(permutation, b))
    return Matching(permutation, -float(host(reached)), steps)


def _start(size: int, key: str, like: Tensor) -> Tensor:
    drawn = torch.randn(size, size, generator=stream(key), dtype=torch.float32)
    return (_START * drawn).to(like.device, torch.promote_types(like.dtype, torch.float32))
