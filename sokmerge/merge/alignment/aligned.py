r"""Align networks, average them and correct the statistics of the average, in one call."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from sokmerge import symmetry
from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation.average import average
from sokmerge.merge.alignment.activation_matching import activation_matching
from sokmerge.merge.alignment.activations import require_examples
from sokmerge.merge.alignment.repair import correctable, repair
from sokmerge.merge.alignment.weight_matching import weight_matching
from sokmerge.merge.operands import proportions, require_models
from sokmerge.network import Network
from sokmerge.params import Params
from sokmerge.symmetry import Permutation, PermutationGroup

__all__ = ["Aligned", "aligned"]


@dataclass(frozen=True)
class Aligned:
    """An average of networks whose units were put in one order, and what was done to it.

    Attributes:
        params: the merged parameters, and with them the statistics of BatchNorm layers where they
            were estimated anew.
        permutations: for each model the element of the group that was applied to it; that of the
            first model changes nothing.
        repaired: the layers whose units were given the spread that they have in the models.
        recalibrated: the BatchNorm layers whose statistics were estimated at the merged point.
        stale: the layers of both kinds that were left as the average made them.
    """

    params: dict[str, Tensor]
    permutations: tuple[Permutation, ...]
    repaired: tuple[str, ...]
    recalibrated: tuple[str, ...]
    stale: tuple[str, ...]


def aligned(
    module: nn.Module,
    models: Sequence[Params],
    inputs: Tensor | None = None,
    *,
    group: PermutationGroup | None = None,
    weights: Sequence[float] | None = None,
    matching: Literal["weights", "activations"] = "weights",
    corrected: bool = True,
    seed: int = 0,
    orders: int = 1,
    chunk: int = 256,
) -> Aligned:
    r"""Return the average of networks, each re-indexed to the first, with its statistics corrected.

    .. math:: \theta=\sum_k w_k\,\pi_k\cdot\theta_k\,\Big/\sum_k w_k,\qquad
              \pi_1=\mathrm{id},\quad \pi_k=\text{the matching of }\theta_k\text{ to }\theta_1

    What follows is read off the group, which may have been derived from the network's graph.

    - **BatchNorm** keeps a mean and a variance that belong to the parameters before it. At the
      average they are estimated anew on ``inputs`` (:meth:`~sokmerge.network.Network.state`).
    - **REPAIR** (Jordan et al. 2022) corrects each other layer whose weight and bias both run
      along units of one block: see :func:`repair`. These are
      linear layers and convolutions with a bias, and normalisations with an affine map. A layer
      without a bias of its own, such as a convolution before a normalisation, is corrected by
      what follows it. In a transformer these are the layers around the attention; where its
      projections are no layers of their own, as in ``nn.MultiheadAttention``, they are left.

    The correction needs examples, but no labels: a few hundred to a thousand, such as the networks
    were trained on. Without them the average is returned as it is, with a warning.

    Two networks of one group have one matching each way. Of more than two, each is matched to the
    first; :func:`cycle_consistent_matching` treats all alike.

    Args:
        module: the architecture, in evaluation mode; its own parameters are not used.
        models: parameters of the networks; buffers may be among them, the same ones in all.
        inputs: shape (n, ...), at least two; BatchNorm takes them as one batch.
        group: the symmetry of the architecture. By default it is derived from the graph, for which
            one of ``inputs`` is needed.
        weights: one non-negative number for each model, by default all equal.
        matching: by ``"weights"``, which needs no data, or by ``"activations"`` on ``inputs``,
            compared by their correlation.
        corrected: whether REPAIR is applied. BatchNorm statistics are estimated in any case.
        seed: of the order in which layers take turns in weight matching.
        orders: how many such orders are tried; the best is kept.
        chunk: examples in one forward pass, where they need not be taken as one batch.

    Raises:
        ArgumentError: neither inputs nor a group, no inputs to match activations, or operands that
            do not belong to the module, do not match or are not finite.

    Warns:
        UserWarning: there are no inputs, and the network has layers that should be corrected.

    >>> import torch
    >>> from sokmerge import params
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    >>> theta, x = params.of(net), torch.randn(8, 2)
    >>> moved = symmetry.of(net, x).act({"0": torch.tensor([2, 0, 1])}, theta)
    >>> merged = aligned(net, [theta, moved], x)
    >>> merged.repaired, merged.permutations[1]["0"]
    (('0',), tensor([1, 2, 0]))
    >>> all(torch.allclose(merged.params[name], theta[name], atol=1e-4) for name in theta)
    True
    """
    require_models(models)
    proportions(weights, models)
    if matching not in ("weights", "activations"):
        raise ArgumentError(
            "matching", found=repr(matching), expected="'weights' or 'activations'"
        )
    if inputs is not None:
        require_examples(inputs, chunk)
    elif group is None or matching == "activations":
        raise ArgumentError(
            "inputs",
            found="None",
            expected="examples, from which the group is derived or activations are matched",
            do="Pass inputs=, or group=symmetry.of(module, example) and match by weights.",
        )
    group = symmetry.of(module, inputs[:1]) if group is None else group
    network = Network(module, None if inputs is None else inputs.device)
    network.require(**{f"models[{i}]": model for i, model in enumerate(models)})
    found: list[Permutation] = [group.identity()]
    for model in models[1:]:
        if matching == "weights":
            best = weight_matching(models[0], model, group, seed=seed, orders=orders)
        else:
            best = activation_matching(
                module, models[0], model, group, inputs, similarity="correlation", chunk=chunk
            )
        found.append(best.permutation)
    placed = [group.act(p, model) for p, model in zip(found, models, strict=True)]
    keeping = network.keeping
    layers = [name for name in correctable(network, group) if name not in keeping]
    merged = average(placed, weights=weights)
    if inputs is None:
        _warn(keeping, layers if corrected else [])
        return Aligned(merged, tuple(found), (), (), (*keeping, *layers))
    if corrected and layers:
        merged = repair(
            module, placed, group, inputs, weights=weights, merged=merged, layers=layers,
            chunk=chunk,
        )  # fmt: skip
    if keeping:
        merged = network.state(merged, inputs)
    done = layers if corrected else []
    stale = [name for name in layers if name not in done]
    return Aligned(merged, tuple(found), tuple(done), keeping, tuple(stale))


def _warn(keeping: Sequence[str], layers: Sequence[str]) -> None:
    told = []
    if keeping:
        told.append(
            f"the statistics of {_some(keeping, 'BatchNorm layer')} belong to other parameters, "
            "and the network may be useless before they are estimated anew"
        )
    if layers:
        told.append(f"{_some(layers, 'layer')} may have lost variance and are not repaired")
    if told:
        warnings.warn(
            f"aligned: no inputs were given, so {'; and '.join(told)}. Pass inputs=, a few hundred "
            "examples such as the networks were trained on; labels are not needed.",
            stacklevel=3,
        )


def _some(names: Sequence[str], what: str) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what}{'s' * (len(names) > 1)} ({shown})"
