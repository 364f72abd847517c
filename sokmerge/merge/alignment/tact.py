r"""TACT: one merged network, its units corrected anew for each task."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation.average import average
from sokmerge.merge.alignment.activations import require_examples, spread
from sokmerge.merge.alignment.repair import correctable, corrected
from sokmerge.merge.operands import require_models
from sokmerge.merge.taxonomy import method
from sokmerge.network import Network
from sokmerge.params import Params
from sokmerge.symmetry import PermutationGroup

__all__ = ["tact"]


@method(
    branch="neuron alignment",
    paper="sharma2024nonlocal",
    needs=("symmetry", "inputs"),
    returns="params per task",
    scope="layer",
    equation=r"z_i\mapsto\frac{\sigma_i^{(t)}}{\sigma_{i,t}}(z_i-\mu_{i,t})+\mu_i^{(t)}"
    r"\quad\text{on task }t",
)
def tact(
    module: nn.Module,
    models: Sequence[Params],
    group: PermutationGroup,
    inputs: Sequence[Tensor],
    *,
    merged: Params | None = None,
    chunk: int = 256,
) -> list[Params]:
    r"""Return for each task the merged network, corrected to the statistics of that task's expert.

    When experts of different tasks are merged that do not share a start, the activations of the
    merge vary too little, even after alignment. Sharma et al. (2024) re-scale and shift the
    merge's activations for each task t, so that their statistics on inputs of that task are those
    of that task's expert there,

    .. math:: z_i\mapsto\frac{\sigma_i^{(t)}}{\sigma_{i,t}}\,(z_i-\mu_{i,t})+\mu_i^{(t)},

    where :math:`\mu_{i,t},\sigma_{i,t}` belong to the merged network and
    :math:`\mu_i^{(t)},\sigma_i^{(t)}` to expert t, all on inputs of task t. So it is
    :func:`repair` with one expert as the target and that expert's inputs, and one has to know the
    task to use the result. Which layers are corrected follows :func:`repair` here: the paper's
    abstract, from which this is built, leaves it open.

    Args:
        module: the architecture, in evaluation mode; its own parameters are not used.
        models: parameters of the experts, aligned, one for each task.
        group: the symmetry of the architecture, which says what the units are.
        inputs: for each task some of its inputs, shape (n, ...). No labels are needed.
        merged: the network to correct, by default the average of the experts.
        chunk: examples in one forward pass.

    Returns:
        For each task the parameters to use on it. They share all weights up to the sizes of
        units.

    Raises:
        ArgumentError: an argument is not as described.

    >>> import torch
    >>> from sokmerge import params, symmetry
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    >>> expert, x = params.of(net), torch.randn(20, 2)
    >>> one, two = tact(net, [expert, expert], symmetry.chain(net, ["0", "2"]), [x, x + 1])
    >>> float(params.distance(one, expert)) < 1e-5
    True
    """
    require_models(models)
    if len(inputs) != len(models):
        raise ArgumentError(
            "inputs",
            found=f"{len(inputs)} for {len(models)} models",
            expected="inputs of one task for each model, in the same order",
        )
    for x in inputs:
        require_examples(x, chunk)
    merged = average(models) if merged is None else merged
    network = Network(module, inputs[0].device)
    network.require(**{f"models[{i}]": model for i, model in enumerate(models)}, merged=merged)
    group.require_fits(merged, "merged")
    layers = correctable(network, group)
    return [
        corrected(network, merged, spread(network, expert, x, layers, chunk), x, chunk)
        for expert, x in zip(models, inputs, strict=True)
    ]
