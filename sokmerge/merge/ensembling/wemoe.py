r"""Weight-ensembling mixture of experts: the coefficients of task vectors depend on the input."""

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
from sokmerge.merge.task_vectors.task_arithmetic import task_arithmetic, task_vectors
from sokmerge.merge.taxonomy import method
from sokmerge.network import Network
from sokmerge.params import Params, stream

__all__ = ["wemoe"]


@method(
    branch="ensembling",
    paper="tang2024merging",
    needs=("base", "inputs"),
    returns="predictor",
    scope="layer",
    equation=r"\theta^l(x)=\theta_0^l+\textstyle\sum_i r_i(x)\tau_i^l,\ "
    r"\min_r\textstyle\sum_x H\bigl(f_{\theta(x)}(x)\bigr)",
)
def wemoe(
    models: Sequence[Params],
    *,
    base: Params,
    module: nn.Module,
    layers: Sequence[str] | None = None,
    router: Callable[[Tensor], Tensor] | None = None,
    inputs: Sequence[Tensor] | None = None,
    features: Features = flat,
    start: float = 0.3,
    steps: int = 100,
    lr: float = 1e-3,
    batch: int = 64,
    seed: int = 0,
) -> Predictor:
    r"""Return the predictor whose chosen layers add task vectors as a router says for the input.

    .. math:: \theta^l(x) = \theta_0^l + \sum_i r_i(x)\,(\theta_i^l-\theta_0^l)

    for the chosen layers l, and task arithmetic with scale ``start`` for all others (WEMoE, Tang
    et al. 2024). There the chosen layers are the MLPs of a transformer. The router
    begins with the coefficient ``start`` for every task and every input. It is trained without
    labels: its predictions are to have a low entropy on the inputs of all tasks. The coefficients
    are free in sign and size.

    There each MLP has a router of two layers that reads what goes into the MLP. Here one linear
    router serves all the chosen layers; a shared router is what its authors use in a later,
    cheaper form (Shen et al. 2024).

    What it costs: one forward pass, and a merge for each input of the chosen layers of all
    models; see :func:`~sokmerge.merge.smear`.

    Scope: the layer. There is neither a tie rule nor a sign rule.

    Args:
        models: parameters of the networks, one for each task; with their buffers, if the network
            keeps BatchNorm statistics.
        base: parameters of the network that they were trained from.
        module: the architecture, a classifier, in evaluation mode.
        layers: the beginnings of the names of the entries that depend on the input, such as
            ``"layers.0.mlp"``; by default all entries do.
        router: a function from inputs to coefficients, shape (n, models); it takes the place of
            training.
        inputs: unlabelled inputs of one task after the other, on which a router is trained.
        features: what the router reads, standardised over the inputs.
        start: the coefficients before training, and those of the layers that are not chosen.
        steps: steps of Adam; with 0 the result is task arithmetic.
        lr: the rate of Adam.
        batch: inputs of each task in a step, drawn with replacement.
        seed: decides which.

    Raises:
        ArgumentError: models that do not match the base or the module or are not finite, a
            network with BatchNorm statistics that the models do not hold, no entry of the chosen
            layers, neither a router nor inputs, or steps, a rate or a batch that cannot be used.

    >>> net = nn.Linear(1, 1, bias=False).eval()
    >>> base, models = {"weight": torch.zeros(1, 1)}, [{"weight": torch.ones(1, 1)}]
    >>> square = wemoe(models, base=base, module=net, router=lambda x: x)
    >>> square(torch.tensor([[2.0], [-3.0]]))
    tensor([[4.],
            [9.]])
    """
    static = task_arithmetic(models, base=base, scale=start)
    network = Network(module)
    require_applicable(network, [base, *models], router, least=2)
    chosen = [
        name
        for name, tensor in base.items()
        if tensor.is_floating_point() and (layers is None or name.startswith(tuple(layers)))
    ]
    if not chosen:
        raise ArgumentError(
            "layers",
            found=f"{layers}",
            expected=f"beginnings of names such as {next(iter(base))!r}",
        )
    taus = task_vectors(models, base)
    vectors = {name: torch.stack([tau[name] for tau in taus]) for name in chosen}
    fixed = {**network.buffers, **static}
    origin = {name: base[name] for name in chosen}

    def outputs(router: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        coefficients = dict.fromkeys(chosen, router(x))
        return merged_for_each(network, fixed, origin, vectors, coefficients, x)

    if router is None:
        if not inputs or not all(len(x) for x in inputs) or batch < 1:
            raise ArgumentError(
                "inputs", found=f"{inputs and [len(x) for x in inputs]}, in batches of {batch}",
                expected="inputs of each task, or a router"
            )  # fmt: skip
        require_schedule(steps, lr)
        first = constant(start, len(models), features, torch.cat(list(inputs)), normalised=False)

        def entropy(router: Router, step: int) -> Tensor:
            total = []
            for t, x in enumerate(inputs):
                key = stream(f"{seed}:wemoe:{step}:{t}")
                rows = torch.randint(len(x), (batch,), generator=key).to(x.device)
                logs = outputs(router, x[rows]).log_softmax(1)
                total.append(-(logs.exp() * logs).sum(1).mean())
            return torch.stack(total).mean()

        router = first.trained(entropy, steps=steps, lr=lr)
    passes, parameters = cost(router)
    merging = sum(vector.numel() for vector in vectors.values())
    held = count(static) + merging
    return Predictor(lambda x: outputs(router, x), 1 + passes, held + parameters, merging=merging)
