"""AdaMerging: coefficients of task vectors that make the merged network sure of itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation.coefficients import Blend
from sokmerge.merge.descent import descend, require_schedule
from sokmerge.merge.operands import require_models
from sokmerge.merge.taxonomy import method
from sokmerge.network import Network
from sokmerge.params import Params, wide

__all__ = ["adamerging"]


@method(
    branch="weight aggregation",
    paper="yang2023adamerging",
    needs=("base", "inputs"),
    scope="layer",
    equation=r"\theta^l=\theta_0^l+\textstyle\sum_i\lambda_i^l(\theta_i^l-\theta_0^l),\ "
    r"\lambda=\arg\min_\lambda\sum_xH\bigl(f_\theta(x)\bigr)",
)
def adamerging(
    models: Sequence[Params],
    *,
    base: Params,
    module: nn.Module,
    inputs: Sequence[Tensor],
    layerwise: bool = True,
    start: float = 0.3,
    bounds: tuple[float, float] = (0.0, 1.0),
    steps: int = 500,
    lr: float = 1e-3,
) -> Params:
    r"""Return the base and a sum of task vectors whose coefficients were learned without labels.

    .. math:: \theta^l = \theta_0^l + \sum_i \lambda_i^l\,(\theta_i^l-\theta_0^l), \qquad
              \min_\lambda \sum_t \frac{1}{n_t}\sum_{x\in X_t} H\bigl(f_\theta(x)\bigr), \qquad
              H(z) = -\sum_c p_c\log p_c,\ p=\operatorname{softmax}(z)

    A network that is unsure of its predictions often errs, so that the entropy of the predictions
    stands in for the loss, which would need labels (Yang et al. 2023). Coefficients belong to
    models (task-wise) or to models and layers :math:`l` (layer-wise), and are clamped to
    ``bounds``. Start, bounds, steps and rate are those of the authors' code. They draw a small
    batch for each step of Adam; here a step is on all the inputs.

    An entropy also falls where a network is made surer of its errors. What the method is worth
    should be looked at with some labels.

    Statistics of BatchNorm are estimated on the inputs of a task, at each step anew, and held
    fixed in its gradient.

    Scope: per layer, or per model if not ``layerwise``.

    Args:
        models: parameters of the networks, one for each task.
        base: parameters of the network that they were trained from. Entries that are not
            floating point are taken from it.
        module: the architecture, a classifier, in evaluation mode; its own parameters are not
            used, and it is not changed.
        inputs: unlabelled inputs of one task after the other, each of shape (n, ...). All tasks
            count the same.
        layerwise: whether each layer has coefficients of its own.
        start: the coefficients before the first step.
        bounds: the least and the greatest coefficient.
        steps: steps of Adam; with 0 the result is task arithmetic with scale ``start``.
        lr: the rate of Adam.

    Raises:
        ArgumentError: models that do not match the base or the module or are not finite, no
            inputs, outputs that are not class scores, a start outside of the bounds, steps or a
            rate that cannot be used, or coefficients that did not stay finite.

    >>> net = nn.Linear(1, 2, bias=False).eval()
    >>> base = {"weight": torch.tensor([[0.5], [-0.5]])}
    >>> model = {"weight": torch.tensor([[1.0], [-1.0]])}
    >>> merged = adamerging([model], base=base, module=net, inputs=[torch.ones(4, 1)])
    >>> bool(merged["weight"][0] > 0.7)  # 0.65 is where it started, with a coefficient of 0.3
    True
    """
    require_models(models, base=base)
    require_schedule(steps, lr)
    low, high = bounds
    if not low <= start <= high:
        raise ArgumentError(
            "start", found=f"{start}", expected=f"within the bounds, {low} to {high}"
        )
    network = Network(module, next(iter(base.values())).device)
    network.require(base=base)
    if not inputs or any(len(x) == 0 for x in inputs):
        raise ArgumentError(
            "inputs", found="a task without inputs" if inputs else "no task", expected="examples"
        )
    with torch.no_grad():
        shape = network(network.state(base, inputs[0]), inputs[0][:1]).shape
    if len(shape) != 2:
        raise ArgumentError(
            "module",
            found=f"outputs of shape {tuple(shape)} for one input",
            expected="class scores, shape (1, C)",
        )
    blend = Blend(models, base=base, layerwise=layerwise)
    first = wide(torch.full(blend.shape, float(start), device=blend.device))

    def entropy(coefficients: dict[str, Tensor], _: int) -> Tensor:
        params = blend(coefficients["coefficients"].clamp(low, high))
        return torch.stack([_entropy(network, params, x) for x in inputs]).sum()

    found = descend({"coefficients": first}, entropy, steps=steps, lr=lr)
    return blend(found["coefficients"].clamp(low, high))


def _entropy(network: Network, params: Params, inputs: Tensor) -> Tensor:
    """Return the mean entropy of predictions, differentiable in the parameters."""
    fixed = {**network.buffers, **{k: t for k, t in params.items() if k in network.buffers}}
    if network.keeps_statistics:
        here = {key: tensor.detach() for key, tensor in params.items()}
        state = network.state(here, inputs)
        fixed = {key: state[key].clone() for key in network.buffers}
    logs = network({**params, **fixed}, inputs).log_softmax(1)
    return -(logs.exp() * logs).sum(1).mean()
