r"""CCA Merge: bring the units of one network to those of another by linear maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation.average import average
from sokmerge.merge.alignment.activations import observe, require_examples
from sokmerge.merge.alignment.soft import act_softly
from sokmerge.merge.operands import proportions, require_models
from sokmerge.merge.taxonomy import method
from sokmerge.network import Network
from sokmerge.params import Params, wide
from sokmerge.symmetry import Axis, PermutationGroup

__all__ = ["cca_merge"]

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_REST = 1e-6  # of the identity, for directions in which nothing varies


@method(
    branch="neuron alignment",
    paper="horoi2024harmony",
    needs=("symmetry", "inputs"),
    scope="layer",
    equation=r"T=S_A^{1/2}\,U V^\top S_B^{-1/2},\qquad "
    r"U\Lambda V^\top=S_A^{-1/2}\,S_{AB}\,S_B^{-1/2}",
)
def cca_merge(
    module: nn.Module,
    models: Sequence[Params],
    group: PermutationGroup,
    inputs: Tensor,
    *,
    weights: Sequence[float] | None = None,
    regularisation: float = 0.1,
    chunk: int = 256,
) -> Params:
    r"""Return the average of networks whose units were first mapped linearly to the first one's.

    A permutation gives each unit one partner. Canonical correlation analysis gives linear
    combinations of one layer's units those of the other's with which they correlate most. From
    the covariances :math:`S_A`, :math:`S_B`, :math:`S_{AB}` of a layer's activations in networks A
    and B,

    .. math:: U\Lambda V^\top = S_A^{-1/2}\,S_{AB}\,S_B^{-1/2},\qquad
              T = S_A^{1/2}\,UV^\top S_B^{-1/2},

    and T takes B's activations to A's: it makes the canonical directions meet, and what it gives
    has A's covariance (Horoi et al. 2024). The layer that makes the units is multiplied by T,
    each that reads them by :math:`T^{-1}`. Were the network linear, B's function would stay; a
    nonlinearity does not commute with T, and the paper, too, takes that as an approximation. All
    networks are mapped to the first, then averaged.

    The covariances get :math:`\gamma\,\tfrac1n\operatorname{tr}S` on the diagonal. Directions in
    which nothing varies keep the place that they have. With equal networks T is the identity.

    Args:
        module: the architecture, in evaluation mode; its own parameters are not used.
        models: parameters of at least two networks.
        group: what the units are. Each block has one layer that makes its units and layers that
            read them, nothing else: no normalisation, whose scales belong to single units.
        inputs: shape (n, ...), at least two. No labels are needed.
        weights: one non-negative number for each model, by default all equal.
        regularisation: :math:`\gamma`, positive.
        chunk: examples in one forward pass.

    Raises:
        ArgumentError: an argument is not as described.

    >>> from sokmerge import params, symmetry
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    >>> theta, x = params.of(net), torch.randn(50, 2)
    >>> merged = cca_merge(net, [theta, theta], symmetry.chain(net, ["0", "2"]), x)
    >>> float(params.distance(merged, theta)) < 1e-5
    True
    """
    require_models(models, least=2)
    proportions(weights, models)
    require_examples(inputs, chunk)
    if not regularisation > 0:
        raise ArgumentError("regularisation", found=f"{regularisation}", expected="above zero")
    network = Network(module, inputs.device)
    network.require(**{f"models[{i}]": model for i, model in enumerate(models)})
    group.require_fits(models[0], "models[0]")
    _require_linear(network, group)
    first, *others = models
    mapped = [first]
    for other in others:
        maps = {
            name: _canonical(*covariances, regularisation)
            for name, covariances in _covariances(
                network, group, first, other, inputs, chunk
            ).items()
        }
        forth = {name: there for name, (there, _) in maps.items()}
        back = {name: home.T for name, (_, home) in maps.items()}
        mapped.append(
            act_softly(group, forth, other, readers=back, reads=lambda x: _reads(network, x))
        )
    return average(mapped, weights=weights)


def _reads(network: Network, axis: Axis) -> bool:
    """Say whether along this axis a layer reads units: its input features or channels."""
    owner = axis.parameter.rpartition(".")[0]
    return axis.dim == 1 and isinstance(network.skeleton.get_submodule(owner), _LINEAR)


def _require_linear(network: Network, group: PermutationGroup) -> None:
    for block in group.blocks:
        makers = {x.parameter.rpartition(".")[0] for x in block.axes if not _reads(network, x)}
        fine = len(makers) == 1 and block.site is not None and block.within is None
        fine = fine and all(axis.places is None for axis in block.axes)
        if not fine or not isinstance(network.skeleton.get_submodule(*makers), _LINEAR):
            raise ArgumentError(
                "group",
                found=f"block {block.name!r}, whose units {sorted(makers)} make or change",
                expected="units that one linear layer or convolution makes and only such read, "
                "at a site where they can be observed",
                do="Leave the block out of the group: a linear map of units does not pass through "
                "a normalisation.",
            )


def _covariances(
    network: Network,
    group: PermutationGroup,
    a: Params,
    b: Params,
    inputs: Tensor,
    chunk: int,
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return for each block the covariances of A's units, of B's, and between the two."""
    state_a, state_b = network.state(a, inputs), network.state(b, inputs)
    seen, handles = observe(network, group)
    sums: dict[str, tuple[int, Tensor | int, Tensor | int]] = {}
    with torch.inference_mode():
        for x in inputs.split(chunk):
            network(state_a, x)
            of_a = dict(seen)
            network(state_b, x)
            for name, of_b in seen.items():
                rows = wide(torch.cat([of_a[name], of_b], 1))
                count, total, products = sums.get(name, (0, 0, 0))
                sums[name] = (count + len(rows), total + rows.sum(0), products + rows.T @ rows)
    for handle in handles:
        handle.remove()
    found = {}
    for name, (count, total, products) in sums.items():
        mean = total / count
        joint = (products / count - torch.outer(mean, mean)).clone()
        n = len(mean) // 2
        found[name] = joint[:n, :n], joint[n:, n:], joint[:n, n:]
    return found


def _canonical(a: Tensor, b: Tensor, ab: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Return the map from B's units to A's, and its inverse."""
    identity = torch.eye(len(a), dtype=a.dtype, device=a.device)
    tiny = torch.finfo(a.dtype).tiny
    roots = []
    for covariance in (a, b):
        level = (covariance.diagonal().mean() * gamma).clamp(min=tiny)
        values, vectors = torch.linalg.eigh(covariance + level * identity)
        values = torch.maximum(values, level).sqrt()
        roots.append(((vectors * values) @ vectors.T, (vectors / values) @ vectors.T))
    (root_a, inverse_a), (root_b, inverse_b) = roots
    u, _, vh = torch.linalg.svd(inverse_a @ ab @ inverse_b + _REST * identity)
    turn = u @ vh
    return root_a @ turn @ inverse_b, root_b @ turn.T @ inverse_a
