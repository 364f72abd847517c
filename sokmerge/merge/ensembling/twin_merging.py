r"""Twin-Merging: what the tasks share is merged once, what is a task's own for each input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.ensembling.predictor import Predictor, count
from sokmerge.merge.ensembling.routing import (
    Features,
    cost,
    flat,
    merged_for_each,
    require_applicable,
    task_router,
)
from sokmerge.merge.task_vectors.matrices import as_matrix, is_matrix
from sokmerge.merge.task_vectors.task_arithmetic import task_arithmetic, task_vectors
from sokmerge.merge.taxonomy import method
from sokmerge.network import Network
from sokmerge.params import Params, wide

__all__ = ["twin_merging"]


@method(
    branch="ensembling",
    paper="lu2024twin",
    needs=("base", "inputs"),
    returns="predictor",
    scope="tensor",
    equation=r"\theta(x)=\theta_s+\textstyle\sum_i r_i(x)\,\mathrm{SVD}_k(\theta_i-\theta_s),\ "
    r"\theta_s=\theta_0+\lambda\textstyle\sum_i\tau_i",
)
def twin_merging(
    models: Sequence[Params],
    *,
    base: Params,
    module: nn.Module,
    router: Callable[[Tensor], Tensor] | None = None,
    inputs: Sequence[Tensor] | None = None,
    features: Features = flat,
    scale: float = 0.3,
    rank: int | None = None,
    steps: int = 200,
    lr: float = 0.05,
) -> Predictor:
    r"""Return the predictor that adds to a merged network what the router finds exclusive.

    .. math:: \theta(x) = \theta_s + \sum_i r_i(x)\,\operatorname{SVD}_k(\theta_i-\theta_s),
              \qquad \theta_s = \theta_0+\lambda\sum_i(\theta_i-\theta_0), \qquad \sum_i r_i(x)=1

    The shared knowledge :math:`\theta_s` is what task arithmetic makes; the exclusive knowledge of
    a task is what is missing to its own network, cut to the k largest singular values of each
    matrix (Twin-Merging, Lu et al. 2024). A router says from which task an input
    comes: a logistic regression on features (:func:`~sokmerge.merge.ensembling.task_router`). With
    all singular values and a router that is sure, each input is seen by the network of its task.

    What it costs: one forward pass, a merge for each input (see :func:`~sokmerge.merge.smear`) and
    what the features take. Kept as factors, the exclusive parts need
    :math:`k\,(\text{rows}+\text{columns})` numbers for each matrix and task; that is counted in
    ``parameters``.

    Scope: the tensor; each with two axes or more is read as a matrix with its first axis as rows,
    others are kept whole. There is neither a tie rule nor a sign rule.

    Args:
        models: parameters of the networks, one for each task; with their buffers, if the network
            keeps BatchNorm statistics.
        base: parameters of the network that they were trained from.
        module: the architecture, in evaluation mode.
        router: a function from inputs to coefficients, shape (n, models); it takes the place of
            training.
        inputs: unlabelled inputs of one task after the other, on which a router is trained.
        features: what the router reads; in the paper the embedding in the shared network.
        scale: :math:`\lambda`.
        rank: k; by default all singular values are kept.
        steps: steps of Adam for the router.
        lr: its rate.

    Raises:
        ArgumentError: models that do not match the base or the module or are not finite, a
            network with BatchNorm statistics that the models do not hold, a rank below 1, or
            neither a router nor inputs of each task.

    >>> net = nn.Linear(1, 1, bias=False).eval()
    >>> base = {"weight": torch.zeros(1, 1)}
    >>> models = [{"weight": torch.tensor([[1.0]])}, {"weight": torch.tensor([[-1.0]])}]
    >>> one_hot = lambda x: torch.cat([x > 0, x < 0], 1).float()
    >>> twin_merging(models, base=base, module=net, router=one_hot)(torch.tensor([[2.0], [-3.0]]))
    tensor([[2.],
            [3.]])
    """
    shared = task_arithmetic(models, base=base, scale=scale)
    network = Network(module)
    require_applicable(network, [base, *models], router, least=2)
    if rank is not None and rank < 1:
        raise ArgumentError("rank", found=f"{rank}", expected="at least 1, or None for all")
    if router is None:
        if inputs is None or len(inputs) != len(models):
            raise ArgumentError(
                "inputs",
                found="None" if inputs is None else f"inputs of {len(inputs)} tasks",
                expected="inputs of each task, or a router",
            )
        router = task_router(inputs, features=features, steps=steps, lr=lr)
    own = task_vectors(models, shared)
    names = [name for name, tensor in shared.items() if tensor.is_floating_point()]
    vectors = {name: torch.stack([_cut(v[name], rank) for v in own]) for name in names}
    fixed = {**network.buffers, **shared}
    origin = {name: shared[name] for name in names}

    def outputs(x: Tensor) -> Tensor:
        return merged_for_each(network, fixed, origin, vectors, dict.fromkeys(names, router(x)), x)

    passes, parameters = cost(router)
    stored = len(models) * sum(_stored(shared[name], rank) for name in names)
    merging = len(models) * count(shared)
    return Predictor(outputs, 1 + passes, count(shared) + stored + parameters, merging=merging)


def _cut(tensor: Tensor, rank: int | None) -> Tensor:
    """Return a tensor with only the largest singular values of it as a matrix."""
    if rank is None or not is_matrix(tensor) or rank >= min(as_matrix(tensor).shape):
        return tensor
    u, values, vt = torch.linalg.svd(wide(as_matrix(tensor)), full_matrices=False)
    kept = (u[:, :rank] * values[:rank]) @ vt[:rank]
    return kept.view(tensor.shape).to(tensor.dtype)


def _stored(tensor: Tensor, rank: int | None) -> int:
    """Return how many numbers the cut tensor takes: its factors, where they are smaller."""
    if rank is None or not is_matrix(tensor):
        return tensor.numel()
    rows, columns = as_matrix(tensor).shape
    return min(tensor.numel(), rank * (rows + columns))
