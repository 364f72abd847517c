r"""FedMA: match and average layer by layer, and let the clients train what comes behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.alignment.mapping import carry, layer_order, membership, reads, rounded, rows
from sokmerge.merge.alignment.pfnm import match_units, require_clients, require_positive
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, wide
from sokmerge.symmetry import PermutationGroup

__all__ = ["ClientTraining", "fedma"]

ClientTraining = Callable[[int, Params, frozenset[str]], Params]
"""From a client's number, its parameters and the names that stay frozen to trained parameters."""


@method(
    branch="neuron alignment",
    paper="wang2020federated",
    needs=("symmetry", "training"),
    scope="layer",
    equation=r"W_n=\tfrac1J\textstyle\sum_jW_{j,n}\Pi_j^\top,\qquad "
    r"W_{j,n+1}\leftarrow\Pi_jW_{j,n+1}",
    ties="as SciPy's linear_sum_assignment breaks them",
)
def fedma(
    module: nn.Module,
    models: Sequence[Params],
    group: PermutationGroup,
    *,
    train: ClientTraining | None = None,
    counts: Sequence[Tensor] | None = None,
    noise: float = 1.0,
    prior: float = 10.0,
    mass: float = 1.0,
    passes: int = 5,
    seed: int = 0,
) -> Params:
    r"""Merge the networks of clients by matched averaging, layer by layer.

    From the first layer on, the units of all clients are matched with a pool of global units, by
    the Bayesian matching of :func:`pfnm` on what makes them; matched ones are averaged, the
    others kept, so that a layer may become wider. Then each client's next layer is made to read
    the global units, with zeros for those that it did not have, and the client trains what comes
    behind on its own data, while the layers that are merged stay frozen (Wang et al. 2020).
    The last layer is averaged.

    Args:
        module: the architecture, which says what makes and what reads units; its parameters are
            not used.
        models: parameters of the clients, which may differ in their widths.
        group: what the units of the first network are; one layer makes those of each block.
        train: how client j trains on: ``train(j, params, frozen)`` gives parameters of the same
            shapes. What it makes of the frozen ones is not used. None for a single pass without
            training.
        counts: for each client the number of examples of each class, shape (classes,); the
            outputs of a class are averaged in that proportion.
        noise: the variance of a client's unit around the global one.
        prior: the variance of global units.
        mass: the larger, the more global units.
        passes: how often each client is matched anew.
        seed: fixes the order in which clients are matched.

    Returns:
        The global network; :func:`sokmerge.merge.resized` makes a module for it.

    Raises:
        ArgumentError: an argument is not as described.

    >>> from sokmerge import params, symmetry
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> group, theta = symmetry.chain(net, ["0", "2"]), params.of(net)
    >>> shuffled = group.act(group.sample(seed=1), theta)
    >>> found = fedma(net, [theta, shuffled], group, noise=1e-4)
    >>> float(params.distance(found, theta)) < 1e-5
    True
    """
    require_clients(models, group)
    require_positive(noise=noise, prior=prior, mass=mass)
    for block in group.blocks:
        makers = {
            x.parameter
            for x in block.axes
            if not x.buffer and not reads(module, x) and models[0][x.parameter].dim() > 1
        }
        if len(makers) != 1:
            raise ArgumentError(
                "group",
                found=f"block {block.name!r}, whose units {sorted(makers)} make",
                expected="one layer that makes the units of each block",
            )
    clients = [_wide(model) for model in models]
    merged: dict[str, Tensor] = {}
    settled: frozenset[str] = frozenset()
    for block in layer_order(module, group, models[0]):
        features = [rows(module, group, block, client, settled) for client in clients]
        trust = [f.new_full((f.shape[1],), 1 / noise) for f in features]
        labels, count = match_units(features, trust, 1 / prior, mass=mass, passes=passes, seed=seed)
        held = [membership(each, count, features[0]) for each in labels]
        copies = sum(each.sum(1, keepdim=True) for each in held)
        clients = [
            carry(module, block, client, each / copies, each)
            for client, each in zip(clients, held, strict=True)
        ]
        made = {x.parameter for x in block.axes if not reads(module, x)} & models[0].keys()
        merged |= {name: sum(client[name] for client in clients) for name in made}
        clients = [{**client, **merged} for client in clients]
        settled |= {block.name}
        if train is not None:
            frozen = frozenset(merged)
            clients = [
                {**_trained(train, j, rounded(client, models[0]), frozen), **merged}
                for j, client in enumerate(clients)
            ]
    shares = _shares(counts, len(models))
    for name, tensor in models[0].items():
        if name in merged or not tensor.is_floating_point():
            continue
        parts = [client[name] for client in clients]
        if shares is not None and parts[0].shape[0] == shares.shape[1]:
            along = shares.to(parts[0]).reshape(len(models), -1, *[1] * (parts[0].dim() - 1))
            merged[name] = (torch.stack(parts) * along).sum(0)
        else:
            merged[name] = sum(parts) / len(parts)
    return {
        name: merged[name].to(tensor.dtype) if name in merged else tensor
        for name, tensor in models[0].items()
    }


def _trained(
    train: ClientTraining, j: int, params: Params, frozen: frozenset[str]
) -> dict[str, Tensor]:
    found = train(j, params, frozen)
    if found.keys() != params.keys() or any(found[k].shape != params[k].shape for k in params):
        raise ArgumentError(
            "train",
            found=f"parameters of other names or shapes for client {j}",
            expected="parameters as those given",
        )
    return _wide(found)


def _wide(params: Params) -> dict[str, Tensor]:
    return {n: wide(t.detach()) if t.is_floating_point() else t for n, t in params.items()}


def _shares(counts: Sequence[Tensor] | None, clients: int) -> Tensor | None:
    """Return the share of each client in each class, shape (clients, classes)."""
    if counts is None:
        return None
    if len(counts) != clients or any(c.shape != counts[0].shape or c.dim() != 1 for c in counts):
        raise ArgumentError(
            "counts",
            found=f"shapes {[tuple(c.shape) for c in counts]}",
            expected=f"one number for each class from each of {clients} clients",
        )
    seen = wide(torch.stack(list(counts)))
    total = seen.sum(0)
    return torch.where(total > 0, seen / total, 1 / clients)
