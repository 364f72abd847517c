r"""PFNM: which units of several networks are one, and how many there are in all, by Bayes' rule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.alignment.mapping import averaged, membership, sizes
from sokmerge.merge.alignment.matching import assign
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, has_values, host, require_finite, wide
from sokmerge.symmetry import Block, PermutationGroup

__all__ = ["match_units", "pfnm"]


@method(
    branch="neuron alignment",
    paper="yurochkin2019bayesian",
    needs=("symmetry",),
    scope="layer",
    equation=r"\hat\theta_i=\frac{\mu_0/\sigma_0^2+\sum_{(j,l)\in i}v_{jl}/\sigma_j^2}"
    r"{1/\sigma_0^2+\sum_{(j,l)\in i}1/\sigma_j^2}",
    ties="as SciPy's linear_sum_assignment breaks them",
)
def pfnm(
    models: Sequence[Params],
    group: PermutationGroup,
    *,
    counts: Sequence[Tensor] | None = None,
    noise: float = 1.0,
    prior: float = 10.0,
    mass: float = 1.0,
    passes: int = 5,
    seed: int = 0,
) -> Params:
    r"""Merge networks whose units are noisy copies of some of a pool of global units.

    Yurochkin et al. (2019) model the unit l of network j, a vector :math:`v_{jl}` of weights, as
    :math:`v_{jl}\sim\mathcal N(\theta_i,\sigma^2)` for one global unit
    :math:`\theta_i\sim\mathcal N(0,\sigma_0^2)`, where a Beta-Bernoulli process says which global
    units a network has. How many global units there are follows from the networks: the result may
    be wider than each of them. The networks take turns; one network's units are matched with the
    global units that the others have, or become new ones, by a linear assignment
    (:func:`match_units`). Given the matching, each global unit is the posterior mean of its copies.

    Layers are matched from the last to the first, a unit described by its outgoing weights and
    its bias, in the first layer by its incoming weights as well. A weight to a global unit that a
    network does not have counts as zero. The prior shrinks: what one network alone has is
    multiplied by :math:`\sigma_0^2/(\sigma_0^2+\sigma^2)`.

    Args:
        models: parameters of networks of linear layers, whose widths may differ.
        group: what the units of the first network are, in the order of its layers.
        counts: for each model the number of examples of each class that it was trained on, shape
            (classes,). A class's output weights are then believed in that proportion.
        noise: :math:`\sigma^2`.
        prior: :math:`\sigma_0^2`.
        mass: :math:`\gamma_0`; the larger, the more global units.
        passes: how often each network is matched anew.
        seed: fixes the order in which the networks take turns.

    Returns:
        The global network; :func:`sokmerge.merge.resized` makes a module for it.

    Raises:
        ArgumentError: an argument is not as described, or the group is not that of a chain of
            linear layers.

    >>> from torch import nn
    >>> from sokmerge import params, symmetry
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> group, theta = symmetry.chain(net, ["0", "2"]), params.of(net)
    >>> shuffled = group.act(group.sample(seed=1), theta)
    >>> found = pfnm([theta, shuffled], group, noise=1e-4)
    >>> found["0.weight"].shape, float(params.distance(found, theta)) < 1e-3
    (torch.Size([8, 4]), True)
    """
    require_clients(models, group)
    require_positive(noise=noise, prior=prior, mass=mass)
    layers = [_linear(block, models[0]) for block in group.blocks]
    for (_, _, reader), (maker, _, _) in zip(layers, layers[1:], strict=False):
        if reader != maker:
            raise ArgumentError(
                "group",
                found=f"units that {reader!r} reads before those that {maker!r} makes",
                expected="the blocks in the order of the layers",
            )
    wides = [{n: wide(t) for n, t in model.items() if t.is_floating_point()} for model in models]
    believed = _believed(counts, models, layers[-1][2])
    done: dict[str, Tensor] = {}
    held: list[Tensor] | None = None  # which global units of the layer behind each network has
    for k in reversed(range(len(layers))):
        maker, bias, reader = layers[k]
        features, precisions = [], []
        for j, model in enumerate(wides):
            outgoing = model[reader] if held is None else held[j] @ model[reader]
            trust = believed[j] if held is None else torch.ones_like(outgoing[:, 0])
            parts = [model[maker]] if k == 0 else []
            parts += [model[bias][:, None]] if bias else []
            width = sum(part.shape[1] for part in parts)
            features.append(torch.cat([*parts, outgoing.T], 1))
            precisions.append(torch.cat([trust.new_ones(width), trust]) / noise)
        labels, count = match_units(
            features, precisions, 1 / prior, mass=mass, passes=passes, seed=seed
        )
        held = [membership(each, count, features[0]) for each in labels]
        total, precision = _posterior(features, precisions, held, 1 / prior)
        split = (total / precision).split([width, features[0].shape[1] - width], 1)
        done[reader] = split[1].T
        if bias:
            done[bias] = split[0][:, -1]
        if k == 0:
            done[maker] = split[0][:, : wides[0][maker].shape[1]]
    for name in models[0]:
        if name not in done and models[0][name].is_floating_point():
            if models[0][name].shape == believed[0].shape:  # the bias of the outputs
                weighed = sum(b * m[name] for b, m in zip(believed, wides, strict=True))
                done[name] = weighed / (sum(believed) + noise / prior)
            else:
                done[name] = averaged(wides, name)
    return {
        name: done[name].to(tensor.dtype) if name in done else tensor
        for name, tensor in models[0].items()
    }


def match_units(
    features: Sequence[Tensor],
    precisions: Sequence[Tensor],
    prior: float,
    *,
    mass: float,
    passes: int,
    seed: int,
) -> tuple[list[list[int]], int]:
    r"""Say to which global unit each unit of each network belongs, and how many there are.

    With all networks but j matched, let global unit i have the precision
    :math:`\pi_i=1/\sigma_0^2+\sum 1/\sigma^2` and the weighted sum :math:`s_i=\sum v/\sigma^2`
    over its copies, of which there are :math:`m_i` in :math:`J-1` networks. Network j's units are
    then assigned so that the sum of

    .. math:: \frac{(s_i+v_{jl}/\sigma_j^2)^2}{\pi_i+1/\sigma_j^2}-\frac{s_i^2}{\pi_i}
              +2\log\frac{m_i}{J-m_i}\quad\text{(unit i)},\qquad
              \frac{(v_{jl}/\sigma_j^2)^2}{1/\sigma_0^2+1/\sigma_j^2}-2\log\frac{kJ}{\gamma_0}
              \quad\text{(the k-th new unit)}

    is largest, squares and quotients summed over entries (Yurochkin et al. 2019).
    Constants of the densities are left out, as in the authors' code. Hence the noise is a
    threshold rather than a variance: to be told from new units, copies have to differ by much
    less than it says.

    Args:
        features: for each network a matrix, a row for each unit.
        precisions: for each network :math:`1/\sigma_j^2` for each column.
        prior: :math:`1/\sigma_0^2`.
        mass: :math:`\gamma_0`.
        passes: how often each network is matched anew, after once in the beginning.
        seed: fixes the order.

    Returns:
        For each network the numbers of its units, and how many global units there are. They are
        numbered as they come when one network after the other is read.
    """
    count = len(features)
    first, *others = sorted(range(count), key=lambda j: -len(features[j]))
    labels: list[list[int]] = [[] for _ in features]
    labels[first] = list(range(len(features[first])))
    generator = np.random.default_rng(seed)
    turns = others + [int(j) for _ in range(passes) for j in generator.permutation(count)]
    for j in turns:
        labels[j] = []
        names = {old: new for new, old in enumerate(sorted({i for own in labels for i in own}))}
        labels = [[names[i] for i in own] for own in labels]
        scores = _scores(features, precisions, prior, labels, len(names), j, mass)
        columns = assign(scores)
        units = range(len(features[j]))
        chosen = [int(i) for i in host(columns)] if has_values(columns) else [*units]
        labels[j] = chosen
    names = {old: new for new, old in enumerate(dict.fromkeys(i for own in labels for i in own))}
    return [[names[i] for i in own] for own in labels], len(names)


def _scores(
    features: Sequence[Tensor],
    precisions: Sequence[Tensor],
    prior: float,
    labels: Sequence[Sequence[int]],
    known: int,
    j: int,
    mass: float,
) -> Tensor:
    """Return what each unit of network j gains by each global unit and by each new one."""
    own, trust, count = features[j], precisions[j], len(features)
    new_units = torch.arange(1, len(own) + 1, dtype=own.dtype, device=own.device)
    alone = (own * trust).square() @ (1 / (prior + trust))
    new = alone[:, None] - 2 * (new_units * count / mass).log()
    if known == 0:
        return new
    others = [k for k in range(count) if labels[k]]
    held = [membership(labels[k], known, own) for k in others]
    total, precision = _posterior(
        [features[k] for k in others], [precisions[k] for k in others], held, prior
    )
    after = precision + trust
    together = (own * trust).square() @ (1 / after).T + 2 * (own * trust) @ (total / after).T
    together = together + (total.square() * (1 / after - 1 / precision)).sum(1)
    copies = sum(each.sum(1) for each in held)
    return torch.cat([together + 2 * (copies / (count - copies)).log(), new], 1)


def _posterior(
    features: Sequence[Tensor],
    precisions: Sequence[Tensor],
    held: Sequence[Tensor],
    prior: float,
) -> tuple[Tensor, Tensor]:
    """Return for each global unit the sum of its copies over their variance, and its precision."""
    total = sum(h @ (f * p) for h, f, p in zip(held, features, precisions, strict=True))
    precision = prior + sum(torch.outer(h.sum(1), p) for h, p in zip(held, precisions, strict=True))
    return total, precision


def _linear(block: Block, params: Params) -> tuple[str, str | None, str]:
    """Return the names of the weight that makes the units, of the bias, and of the reader."""
    shapes = {x: params[x.parameter].dim() for x in block.axes if x.parameter in params}
    makers = [x.parameter for x, dims in shapes.items() if x.dim == 0 and dims == 2]
    biases = [x.parameter for x, dims in shapes.items() if x.dim == 0 and dims == 1]
    readers = [x for x, dims in shapes.items() if x.dim == 1 and dims == 2]
    plain = len(makers) == len(readers) == 1 and len(biases) <= 1 and readers[0].repeat == 1
    if not plain or len(makers) + len(biases) + 1 != len(block.axes):
        raise ArgumentError(
            "group",
            found=f"block {block.name!r} with the axes of "
            f"{sorted({x.parameter for x in block.axes})}",
            expected="one linear layer that makes the units and one that reads them",
        )
    return makers[0], biases[0] if biases else None, readers[0].parameter


def _believed(
    counts: Sequence[Tensor] | None, models: Sequence[Params], outputs: str
) -> list[Tensor]:
    """Return for each model a number for each output, their mean over the models one."""
    ones = [wide(model[outputs])[:, 0].new_ones(model[outputs].shape[0]) for model in models]
    if counts is None:
        return ones
    if len(counts) != len(models) or any(
        c.shape != one.shape for c, one in zip(counts, ones, strict=False)
    ):
        raise ArgumentError(
            "counts",
            found=f"shapes {[tuple(c.shape) for c in counts]}",
            expected=f"for each of {len(models)} models shape {tuple(ones[0].shape)}",
        )
    seen = [c.to(ones[0]) for c in counts]
    total = sum(seen)
    return [torch.where(total > 0, len(models) * each / total, 1.0) for each in seen]


def require_clients(models: Sequence[Params], group: PermutationGroup) -> None:
    """Raise unless there are two finite networks of one architecture up to their widths."""
    if len(models) < 2:
        raise ArgumentError("models", found=f"{len(models)} models", expected="at least 2")
    group.require_fits(models[0], "models[0]")
    named = {f"models[{j}]": model for j, model in enumerate(models)}
    require_finite(**named)
    along = {(x.parameter, x.dim) for block in group.blocks for x in block.axes}
    for name, model in named.items():
        sizes(group, model, name)
        if model.keys() != models[0].keys():
            raise ArgumentError(
                name, found="other names of parameters", expected="those of models[0]"
            )
        for key, tensor in model.items():
            ours = models[0][key]
            same = tensor.dim() == ours.dim() and all(
                x == y or (key, dim) in along
                for dim, (x, y) in enumerate(zip(tensor.shape, ours.shape, strict=False))
            )
            if not same or tensor.device != ours.device:
                raise ArgumentError(
                    f"{name}[{key!r}]",
                    found=f"shape {tuple(tensor.shape)} on {tensor.device}",
                    expected=f"{tuple(ours.shape)} but for the number of units, on {ours.device}",
                )


def require_positive(**numbers: float) -> None:
    """Raise unless all numbers are positive and finite."""
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ArgumentError(name, found=f"{number}", expected="a positive number")
