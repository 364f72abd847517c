r"""What the methods of this branch give: a function of inputs that says what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.operands import require_models
from sokmerge.network import Network
from sokmerge.params import Params

__all__ = ["Predictor", "count", "members"]


@dataclass(frozen=True, eq=False)
class Predictor:
    r"""A function of inputs made of one or several networks, and what it costs.

    Its outputs are logits: their softmax are the probabilities.

    Attributes:
        function: from inputs, shape (n, ...), to logits, shape (n, classes).
        passes: forward passes through a network of the common architecture, for one input.
        parameters: numbers that have to be held.
        merging: numbers that are multiplied and added for one input to make the parameters of
            its own network; 0 where they are made once for all inputs. In a layer that is used
            once for each input, one forward pass multiplies and adds as many numbers as it has
            parameters.

    >>> double = Predictor(lambda x: 2 * x, passes=1, parameters=1)
    >>> double(3), double.merging
    (6, 0)
    """

    function: Callable[[Tensor], Tensor]
    passes: float
    parameters: int
    merging: int = 0

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the logits."""
        return self.function(inputs)


def count(params: Params) -> int:
    """Return how many numbers Params hold, entries that are not floating point left out.

    >>> import torch
    >>> count({"w": torch.zeros(2, 3), "steps": torch.tensor(1)})
    6
    """
    return sum(tensor.numel() for tensor in params.values() if tensor.is_floating_point())


def members(
    models: Sequence[Params], module: nn.Module, calibration: Tensor | None
) -> tuple[Network, list[dict[str, Tensor]]]:
    """Return the architecture as a function, and the state of each model: with its buffers.

    Args:
        models: parameters of the networks; their buffers may be among them.
        module: their architecture, in evaluation mode.
        calibration: inputs on which the BatchNorm statistics of each model are estimated.

    Raises:
        ArgumentError: no models, models that do not match, do not belong to the module or are not
            finite, or a network that keeps statistics of which nothing is known.
    """
    require_models(models)
    network = Network(module)
    network.require(**{f"models[{i}]": model for i, model in enumerate(models)})
    known = network.buffers.keys() <= models[0].keys()
    if network.keeps_statistics and calibration is None and not known:
        raise ArgumentError(
            "calibration",
            found="None",
            expected="inputs, as this network keeps BatchNorm statistics",
            do="Give training inputs, or models that hold their buffers.",
        )
    if known:  # they are each model's own: nothing is estimated
        return network, [dict(model) for model in models]
    return network, [network.state(model, calibration) for model in models]
