r"""Branch-Train-Merge: experts of domains, weighed by where an input is likely to come from."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation.average import average
from sokmerge.merge.ensembling.predictor import Predictor, count, members
from sokmerge.merge.ensembling.routing import Features, flat
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, host, wide

__all__ = ["Domains", "branch_train_merge", "discover_domains", "domains", "posterior_average"]

# Smallest variance of a feature, as a share of the mean variance: features that never vary in one
# domain must not decide alone.
_FLOOR = 1e-2


@dataclass(frozen=True, eq=False)
class Domains:
    r"""Where inputs come from: for each domain a normal distribution of features, and a prior.

    .. math:: p(d\mid x) = \frac{\pi_d\,p(\phi(x)\mid d)^{1/T}}
              {\sum_{d'}\pi_{d'}\,p(\phi(x)\mid d')^{1/T}}, \qquad
              p(\phi\mid d) = \prod_j\mathcal N(\phi_j;\ \mu_{dj},\sigma_{dj}^2)

    Attributes:
        means: :math:`\mu`, shape (domains, d).
        variances: :math:`\sigma^2`, shape (domains, d).
        prior: :math:`\pi`, shape (domains,), its sum one.
        features: :math:`\phi`.
        temperature: T; features are not independent, so that T = 1 makes the posterior too sure.
    """

    means: Tensor
    variances: Tensor
    prior: Tensor
    features: Features = flat
    temperature: float = 1.0

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the posterior over domains for each input, shape (n, domains), its rows one."""
        return (self.log_likelihoods(inputs) / self.temperature + self.prior.log()).softmax(1)

    def log_likelihoods(self, inputs: Tensor) -> Tensor:
        r"""Return :math:`\log p(\phi(x)\mid d)` without its constant, shape (n, domains)."""
        gap = wide(self.features(inputs))[:, None] - self.means
        return -(gap.square() / self.variances + self.variances.log()).sum(2) / 2

    def with_prior_of(self, inputs: Tensor, *, rounds: int = 20) -> Domains:
        r"""Return these domains with the prior that fits inputs of an unknown mixture.

        .. math:: \pi_d \leftarrow \frac1n\sum_x p(d\mid x)

        The mean posterior, taken as the prior and taken anew: expectation maximisation over the
        prior alone. (In the paper the prior is such a mean over a sample.)
        """
        found = self
        for _ in range(rounds):
            found = replace(found, prior=found(inputs).mean(0))
        return found


def domains(
    inputs: Sequence[Tensor], *, features: Features = flat, temperature: float = 1.0
) -> Domains:
    """Return domains estimated from examples of each, with the same prior for all.

    Args:
        inputs: examples of one domain after the other, without labels.
        features: what the distribution is one of.
        temperature: see :class:`Domains`.

    Raises:
        ArgumentError: no domain, one without two examples, or a temperature that is not positive.

    >>> sides = torch.tensor([[-1.0], [-3.0]]), torch.tensor([[1.0], [3.0]])
    >>> known = domains(sides, temperature=2.0)
    >>> known(torch.tensor([[0.0], [2.0]])).round(decimals=3)
    tensor([[0.5000, 0.5000],
            [0.0180, 0.9820]], dtype=torch.float64)
    """
    if not inputs or any(len(x) < 2 for x in inputs):
        raise ArgumentError(
            "inputs",
            found=f"{[len(x) for x in inputs]} inputs of each domain",
            expected="at least two of each domain, and one domain",
        )
    _require_temperature(temperature)
    with torch.no_grad():
        each = [wide(features(x)) for x in inputs]
        means = torch.stack([f.mean(0) for f in each])
        variances = torch.stack([f.var(0, correction=0) for f in each])
    floor = _FLOOR * variances.mean()
    prior = torch.full_like(means[:, 0], 1 / len(inputs))
    return Domains(means, variances.clamp_min(floor), prior, features, temperature)


def discover_domains(
    inputs: Tensor,
    number: int,
    *,
    features: Features = flat,
    temperature: float = 1.0,
    rounds: int = 20,
    seed: int = 0,
) -> Domains:
    r"""Return domains found by clustering inputs of which no domain is known.

    k-means on the features, from centres that are far apart (each the farthest from those before
    it), then one variance for all features and clusters: with it the posterior is

    .. math:: p(d\mid x) \propto \exp\bigl(-\lVert\phi(x)-\mu_d\rVert^2/(2\sigma^2T)\bigr),

    the weights of c-BTM (Gururangan et al. 2023). There the clusters are balanced in
    size, and the features count words; here neither.

    Args:
        inputs: shape (n, ...).
        number: how many clusters.
        features: what is clustered.
        temperature: see :class:`Domains`.
        rounds: rounds of k-means.
        seed: decides the first centre.

    Raises:
        ArgumentError: fewer inputs than clusters, no cluster, or a temperature that is not
            positive.

    >>> found = discover_domains(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), 2)
    >>> found(torch.tensor([[0.0], [5.0]])).argmax(1).unique().numel()
    2
    """
    if not 1 <= number <= len(inputs):
        raise ArgumentError(
            "number", found=f"{number}", expected=f"from 1 to {len(inputs)}, the inputs there are"
        )
    _require_temperature(temperature)
    with torch.no_grad():
        points = wide(features(inputs))
        first = random.Random(f"{seed}:centre").randrange(len(points))
        centres = points[first : first + 1]
        while len(centres) < number:
            farthest = torch.cdist(points, centres).amin(1).argmax()
            centres = torch.cat([centres, points.index_select(0, farthest[None])])
        for _ in range(rounds):
            near = torch.cdist(points, centres).argmin(1)
            member = wide((near[:, None] == torch.arange(number, device=near.device)).float())
            sizes = member.sum(0)[:, None]
            # A centre to which nothing is near stays where it is.
            centres = (member.T @ points / sizes.clamp_min(1)).where(sizes > 0, centres)
        near = torch.cdist(points, centres).amin(1)
        variance = near.square().mean() / points.shape[1]
    variances = (centres * 0 + variance).clamp_min(torch.finfo(centres.dtype).tiny)
    prior = torch.full_like(centres[:, 0], 1 / number)
    return Domains(centres, variances, prior, features, temperature)


@method(
    branch="ensembling",
    paper="li2022branch",
    needs=("inputs",),
    returns="predictor",
    scope="output",
    equation=r"p(c\mid x)=\textstyle\sum_d p(d\mid x)\operatorname{softmax}(f_{\theta_d}(x))_c",
)
def branch_train_merge(
    models: Sequence[Params],
    *,
    module: nn.Module,
    posterior: Callable[[Tensor], Tensor],
    calibration: Tensor | None = None,
) -> Predictor:
    r"""Return the ensemble of experts, weighed for each input by the posterior over their domains.

    .. math:: p(c\mid x) = \sum_d p(d\mid x)\,\operatorname{softmax}\bigl(f_{\theta_d}(x)\bigr)_c,
              \qquad p(d\mid x) = \frac{p(x\mid d)\,p(d)}{\sum_{d'}p(x\mid d')\,p(d')}

    Experts branch off from one network, are trained on a domain each, without a word between
    them, and are merged when they are used (Branch-Train-Merge, Li et al. 2022). There
    they are language models, and :math:`p(x\mid d)` is what expert d gives to the text so far. A
    classifier has no such density: here it is estimated from features, by
    :func:`~sokmerge.merge.ensembling.domains`, or without any label of a domain by
    :func:`~sokmerge.merge.ensembling.discover_domains`. The second form of the paper, one network
    for a whole domain, is :func:`~sokmerge.merge.ensembling.posterior_average`.

    It costs a forward pass through every expert; experts without weight may be left out.

    Scope: the output. There is neither a tie rule nor a sign rule. The order of the models is that
    of the domains.

    Args:
        models: parameters of the experts, one for each domain.
        module: their architecture, a classifier, in evaluation mode.
        posterior: a function from inputs to weights, shape (n, models), whose rows sum to one.
        calibration: as for :func:`~sokmerge.merge.probability_ensemble`.

    Raises:
        ArgumentError: as for :func:`~sokmerge.merge.probability_ensemble`, or, in a call, not one
            weight for each input and model.

    >>> net = nn.Linear(1, 2, bias=False).eval()
    >>> sides = torch.tensor([[9.0], [0.0]]), torch.tensor([[0.0], [9.0]])
    >>> experts = [{"weight": side} for side in sides]
    >>> sure = branch_train_merge(experts, module=net, posterior=lambda x: torch.eye(2)[:1])
    >>> sure(torch.ones(1, 1)).argmax(1)
    tensor([0])
    """
    network, states = members(models, module, calibration)

    def predict(inputs: Tensor) -> Tensor:
        weights = wide(posterior(inputs))
        if weights.shape != (len(inputs), len(models)):
            raise ArgumentError(
                "posterior",
                found=f"weights of shape {tuple(weights.shape)}",
                expected=f"one for each input and model, {(len(inputs), len(models))}",
            )
        outputs = [network(state, inputs) for state in states]
        logs = torch.stack([wide(each).log_softmax(1) for each in outputs])
        return (logs + weights.T.log()[:, :, None]).logsumexp(0).to(outputs[0].dtype)

    told = getattr(posterior, "features", flat)
    held = len(models) * count(models[0]) + told.parameters
    return Predictor(predict, passes=len(models) + told.passes, parameters=held)


def posterior_average(
    models: Sequence[Params], *, posterior: Callable[[Tensor], Tensor], inputs: Tensor
) -> Params:
    r"""Return one network for all of the inputs: the experts, averaged by the mean posterior.

    .. math:: \theta = \sum_d\Bigl(\frac1n\sum_x p(d\mid x)\Bigr)\,\theta_d

    (Li et al. 2022, the parameter average of the experts.) It costs one forward pass,
    and waits for the device once.

    Args:
        models: parameters of the experts.
        posterior: a function from inputs to weights, shape (n, models).
        inputs: examples of what the network is for, without labels.

    Raises:
        ArgumentError: what :func:`~sokmerge.merge.average` raises.

    >>> experts = [{"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}]
    >>> posterior_average(experts, posterior=lambda x: x, inputs=torch.tensor([[1.0, 3.0]]))["w"]
    tensor([0.7500])
    """
    mean = host(wide(posterior(inputs)).mean(0))
    known = [float(share) for share in mean]
    # Where no number is known a rehearsal goes on with equal weights.
    return average(models, weights=[1.0] * len(known) if any(w != w for w in known) else known)


def _require_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ArgumentError("temperature", found=f"{temperature}", expected="a positive number")
