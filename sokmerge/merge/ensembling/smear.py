r"""Soft merging of experts: for each input the average of the experts that a router asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.descent import require_schedule
from sokmerge.merge.ensembling.predictor import Predictor, count
from sokmerge.merge.ensembling.routing import (
    Features,
    Router,
    constant,
    cost,
    flat,
    merged_for_each,
    require_applicable,
)
from sokmerge.merge.operands import require_models
from sokmerge.merge.taxonomy import method
from sokmerge.network import Network
from sokmerge.params import Params, stream

__all__ = ["smear"]


@method(
    branch="ensembling",
    paper="muqeeth2023soft",
    needs=("data",),
    returns="predictor",
    scope="model",
    equation=r"f(x)=f_{\theta(x)}(x),\ \theta(x)=\textstyle\sum_i r_i(x)\,\theta_i,"
    r"\ r(x)=\operatorname{softmax}(W\phi(x)+b)",
)
def smear(
    models: Sequence[Params],
    *,
    module: nn.Module,
    router: Callable[[Tensor], Tensor] | None = None,
    inputs: Tensor | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    features: Features = flat,
    steps: int = 200,
    lr: float = 1e-2,
    batch: int = 64,
    seed: int = 0,
) -> Predictor:
    r"""Return the predictor that averages the parameters of the experts anew for each input.

    .. math:: f(x) = f_{\theta(x)}(x), \qquad \theta(x) = \sum_i r_i(x)\,\theta_i, \qquad
              \sum_i r_i(x) = 1

    A network that chooses one expert cannot be trained by gradient descent; one that merges them
    can, for its loss is smooth in the router (SMEAR, Muqeeth et al. 2023). There
    router and experts are trained together and each block has a router that reads the block's
    input; here the experts are given, and one router reads features of the network's input.

    What it costs: one forward pass, and a merge for each input, of as many multiplications as
    there are parameters in all experts. In a layer that an input passes once, these are as many
    as it takes to ask every expert. The merge pays where one input passes a layer often: as a
    sequence, or as an image through a convolution.

    Scope: the model. There is neither a tie rule nor a sign rule. Buffers of the models are
    averaged like parameters.

    Args:
        models: parameters of the experts; with their buffers, if the network keeps BatchNorm
            statistics.
        module: their architecture, in evaluation mode.
        router: a function from inputs to coefficients, shape (n, models); it takes the place of
            training. With coefficients that do not depend on the input the result is a weighted
            average.
        inputs: examples on which a router is trained, shape (n, ...).
        loss: a differentiable function of the outputs for some of the inputs and of their row
            numbers, a scalar.
        features: what the router reads, standardised over the inputs.
        steps: steps of Adam; with 0 the result is the average of the models.
        lr: the rate of Adam.
        batch: inputs in a step, drawn with replacement.
        seed: decides which.

    Raises:
        ArgumentError: no models, models that do not match, do not belong to the module or are not
            finite, a network with BatchNorm statistics that the models do not hold, neither a
            router nor inputs and loss, or steps, a rate or a batch that cannot be used.

    >>> net = nn.Linear(1, 1, bias=False).eval()
    >>> experts = [{"weight": torch.tensor([[1.0]])}, {"weight": torch.tensor([[-1.0]])}]
    >>> absolute = smear(experts, module=net, router=lambda x: torch.cat([x > 0, x < 0], 1).float())
    >>> absolute(torch.tensor([[2.0], [-3.0]])), absolute.passes, absolute.merging
    (tensor([[2.],
            [3.]]), 1, 2)
    """
    require_models(models)
    network = Network(module)
    require_applicable(network, models, router, least=1)
    floating = [name for name, tensor in models[0].items() if tensor.is_floating_point()]
    vectors = {
        n: torch.stack([m[n].to(torch.promote_types(m[n].dtype, torch.float32)) for m in models])
        for n in floating
    }
    fixed = {**network.buffers, **models[0]}
    origin = dict.fromkeys(floating, 0.0)

    def outputs(router: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        shares = dict.fromkeys(floating, router(x))
        return merged_for_each(network, fixed, origin, vectors, shares, x)

    if router is None:
        if inputs is None or loss is None:
            raise ArgumentError(
                "router", found="None", expected="a router, or inputs and a loss to train one"
            )
        require_schedule(steps, lr)
        if batch < 1 or not len(inputs):
            raise ArgumentError("batch", found=f"{batch}", expected="1 or more of some inputs")
        start = constant(0.0, len(models), features, inputs, normalised=True)

        def objective(router: Router, step: int) -> Tensor:
            drawn = torch.randint(len(inputs), (batch,), generator=stream(f"{seed}:smear:{step}"))
            rows = drawn.to(inputs.device)
            return loss(outputs(router, inputs[rows]), rows)

        router = start.trained(objective, steps=steps, lr=lr)
    passes, parameters = cost(router)
    held = len(models) * count(models[0])
    return Predictor(lambda x: outputs(router, x), 1 + passes, held + parameters, merging=held)
