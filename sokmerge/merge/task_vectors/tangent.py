r"""Task arithmetic in the tangent space: with the first-order model of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.func import jvp

from sokmerge.merge.task_vectors.task_arithmetic import task_arithmetic
from sokmerge.merge.taxonomy import method
from sokmerge.network import Network
from sokmerge.params import Params, require_matching

__all__ = ["linearised", "tangent"]


def linearised(module: nn.Module, base: Params) -> Callable[[Params, Tensor], Tensor]:
    r"""Return the first-order model of a network around a base, a function of point and inputs.

    .. math:: f^{\mathrm{lin}}_\theta(x) = f_{\theta_0}(x)
              + J_\theta f_{\theta_0}(x)\,(\theta-\theta_0)

    (Ortiz-Jimenez et al. 2023.) It is affine in :math:`\theta` and as nonlinear in x as the
    network. One pass gives the value and the directional derivative together (forward-mode
    differentiation), so it costs about two passes of the network and no Jacobian is formed. It can
    be differentiated in :math:`\theta`, and so used for fine-tuning as well.

    Args:
        module: the network, in evaluation mode; its buffers are used as they are.
        base: :math:`\theta_0`, parameters that fit the module.

    Raises:
        ArgumentError: the module is in training mode, the base does not belong to it or is not
            finite, or, in a call, the point does not match the base.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh()).eval()
    >>> predict = linearised(net, {"0.weight": torch.tensor([[0.0]])})
    >>> predict({"0.weight": torch.tensor([[3.0]])}, torch.tensor([[1.0]]))  # tanh'(0) is 1
    tensor([[3.]])
    """
    network = Network(module)
    network.require(base=base)
    start = {name: tensor for name, tensor in base.items() if tensor.is_floating_point()}
    fixed = {name: tensor for name, tensor in base.items() if name not in start}

    def predict(point: Params, inputs: Tensor) -> Tensor:
        require_matching(base=base, point=point)
        change = {name: point[name] - tensor for name, tensor in start.items()}

        def outputs(at: Params) -> Tensor:
            return network({**network.buffers, **fixed, **at}, inputs)

        value, derivative = jvp(outputs, (start,), (change,))
        return value + derivative

    return predict


@method(
    branch="weight aggregation",
    paper="ortizjimenez2023task",
    needs=("base",),
    returns="predictor",
    scope="model",
    equation=r"f(x)=f_{\theta_0}(x)+J_\theta f_{\theta_0}(x)\,\lambda\textstyle\sum_i w_i\tau_i",
)
def tangent(
    models: Sequence[Params],
    *,
    module: nn.Module,
    base: Params,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
) -> Callable[[Tensor], Tensor]:
    r"""Add task vectors, and predict with the first-order model around the base.

    .. math:: f(x) = f_{\theta_0}(x) + \lambda\sum_i w_i\,J_\theta f_{\theta_0}(x)\,\tau_i

    (Ortiz-Jimenez et al. 2023.) In the tangent space the outputs add up as the task vectors do.
    The models should have been fine-tuned there too, with
    :func:`~sokmerge.merge.task_vectors.linearised` in place of the network: a task vector of the
    network itself means something else to its first-order model.

    * **Scope**: the model as a whole. There is neither a tie rule nor a sign rule. The order of
      the models does not matter.

    Args:
        models: parameters of networks fine-tuned from the base, in the tangent space.
        module: the network, in evaluation mode.
        base: parameters of the network from which they started.
        scale: :math:`\lambda`, the length of the common step.
        weights: one number of any sign for each model, by default all 1.

    Returns:
        A function of inputs that returns outputs.

    Raises:
        ArgumentError: no models, models and base that do not match, do not belong to the module
            or are not finite, or a scale or weights that cannot be used.

    >>> import torch
    >>> net, base = nn.Linear(1, 1, bias=False).eval(), {"weight": torch.tensor([[1.0]])}
    >>> predict = tangent([{"weight": torch.tensor([[2.0]])}], module=net, base=base, scale=3)
    >>> predict(torch.tensor([[1.0]]))  # a linear network is its own first-order model
    tensor([[4.]])
    """
    point = task_arithmetic(models, base=base, scale=scale, weights=weights)
    model = linearised(module, base)

    def predict(inputs: Tensor) -> Tensor:
        return model(point, inputs)

    return predict
