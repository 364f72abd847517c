r"""Ask several networks, and take the mean of what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sokmerge.merge.ensembling.predictor import Predictor, count, members
from sokmerge.merge.operands import proportions
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, wide

__all__ = ["logit_ensemble", "probability_ensemble"]


@method(
    branch="ensembling",
    paper="lakshminarayanan2017simple",
    returns="predictor",
    scope="output",
    equation=r"p(c\mid x)=\textstyle\sum_i w_i\operatorname{softmax}(f_{\theta_i}(x))_c",
)
def probability_ensemble(
    models: Sequence[Params],
    *,
    module: nn.Module,
    weights: Sequence[float] | None = None,
    calibration: Tensor | None = None,
) -> Predictor:
    r"""Return the predictor whose probabilities are the mean of the networks' probabilities.

    .. math:: p(c\mid x) = \sum_i w_i\,\operatorname{softmax}\bigl(f_{\theta_i}(x)\bigr)_c,
              \qquad \sum_i w_i = 1

    A mixture (Lakshminarayanan et al. 2017, section 2.4), there of networks trained from
    different random starts. Since the logarithm is concave, its loss is never above the mean
    loss of the networks; nothing of the kind holds for its accuracy. The outputs are
    :math:`\log p`.

    Scope: the output. There is neither a tie rule nor a sign rule. The order of the models does
    not matter; a model of weight 0 is not called.

    Args:
        models: parameters of the networks, with or without their buffers.
        module: their architecture, a classifier, in evaluation mode; its own parameters are not
            used.
        weights: one non-negative number for each model, by default all the same.
        calibration: inputs on which BatchNorm statistics are estimated for each model, where the
            network keeps them and the models do not hold them.

    Raises:
        ArgumentError: no models, models that do not match, do not belong to the module or are not
            finite, weights that cannot be used, or no calibration where it is needed.

    >>> net = nn.Linear(1, 2, bias=False).eval()
    >>> models = [{"weight": torch.tensor(w)} for w in ([[9.0], [0.0]], [[0.0], [9.0]])]
    >>> predict = probability_ensemble(models, module=net)
    >>> predict(torch.ones(1, 1)).exp(), predict.passes, predict.parameters
    (tensor([[0.5000, 0.5000]]), 2, 4)
    """

    def mixture(outputs: list[Tensor], weights: list[float]) -> Tensor:
        logs = [wide(f).log_softmax(1) + math.log(w) for f, w in zip(outputs, weights, strict=True)]
        return torch.stack(logs).logsumexp(0).to(outputs[0].dtype)

    return _ensemble(models, module, weights, calibration, mixture)


@method(
    branch="ensembling",
    paper="lakshminarayanan2017simple",
    returns="predictor",
    scope="output",
    equation=r"f(x)=\textstyle\sum_i w_i f_{\theta_i}(x)",
)
def logit_ensemble(
    models: Sequence[Params],
    *,
    module: nn.Module,
    weights: Sequence[float] | None = None,
    calibration: Tensor | None = None,
) -> Predictor:
    r"""Return the predictor whose outputs are the mean of the networks' outputs.

    .. math:: f(x) = \sum_i w_i\,f_{\theta_i}(x), \qquad \sum_i w_i = 1

    For a regression this is the mean of the predictive mixture (Lakshminarayanan et al. 2017,
    section 2.4). For a classifier it is the normalised geometric mean of the probabilities,
    :math:`p(c\mid x)\propto\prod_i p_i(c\mid x)^{w_i}`: one network that is sure that a class is
    wrong can veto it. Its loss, too, is never above the mean loss of the networks.

    Scope: the output. There is neither a tie rule nor a sign rule. The order of the models does
    not matter; a model of weight 0 is not called.

    Args:
        models: parameters of the networks, with or without their buffers.
        module: their architecture, in evaluation mode; its own parameters are not used.
        weights: one non-negative number for each model, by default all the same.
        calibration: inputs on which BatchNorm statistics are estimated for each model, where the
            network keeps them and the models do not hold them.

    Raises:
        ArgumentError: as for :func:`~sokmerge.merge.probability_ensemble`.

    >>> net = nn.Linear(1, 2, bias=False).eval()
    >>> models = [{"weight": torch.tensor(w)} for w in ([[4.0], [0.0]], [[0.0], [2.0]])]
    >>> logit_ensemble(models, module=net)(torch.ones(1, 1))
    tensor([[2., 1.]])
    """

    def mean(outputs: list[Tensor], weights: list[float]) -> Tensor:
        total = sum(w * wide(f) for f, w in zip(outputs, weights, strict=True))
        return total.to(outputs[0].dtype)

    return _ensemble(models, module, weights, calibration, mean)


def _ensemble(models, module, weights, calibration, combined) -> Predictor:
    """Return a predictor that calls every model with a weight and combines what they say."""
    network, states = members(models, module, calibration)
    called = [(s, w) for s, w in zip(states, proportions(weights, models), strict=True) if w > 0]
    shares = [w for _, w in called]

    def predict(inputs: Tensor) -> Tensor:
        return combined([network(state, inputs) for state, _ in called], shares)

    return Predictor(predict, passes=len(called), parameters=len(called) * count(models[0]))
