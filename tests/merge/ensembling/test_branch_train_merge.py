"""Experts of domains, weighed by a posterior that is known in closed form."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from sokmerge import merge
from sokmerge.errors import ArgumentError
from sokmerge.merge.ensembling import Domains, discover_domains, domains, posterior_average


def _known(prior=(0.3, 0.7)):
    return Domains(
        means=torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=torch.float64),
        variances=torch.tensor([[1.0, 4.0], [0.5, 1.0]], dtype=torch.float64),
        prior=torch.tensor(prior, dtype=torch.float64),
    )


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), share=st.floats(0.05, 0.95))
def test_the_posterior_is_bayes_rule_for_a_known_mixture(seed, share):
    known = _known((share, 1 - share))
    x = 2 * torch.randn(9, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    densities = torch.stack(
        [
            prior * torch.distributions.Normal(mean, variance.sqrt()).log_prob(x).sum(1).exp()
            for prior, mean, variance in zip(known.prior, known.means, known.variances, strict=True)
        ],
        dim=1,
    )
    torch.testing.assert_close(known(x), densities / densities.sum(1, keepdim=True))


def test_domains_are_estimated_by_their_moments():
    generator = torch.Generator().manual_seed(0)
    known = _known()
    drawn = [
        mean + variance.sqrt() * torch.randn(4000, 2, generator=generator, dtype=torch.float64)
        for mean, variance in zip(known.means, known.variances, strict=True)
    ]
    found = domains(drawn)
    torch.testing.assert_close(found.means, known.means, atol=0.1, rtol=0)
    torch.testing.assert_close(found.variances, known.variances, atol=0.2, rtol=0)
    # Of a mixture of one to three, the prior is found again.
    mixture = torch.cat([drawn[0][:1000], drawn[1][:3000]])
    prior = found.with_prior_of(mixture).prior
    torch.testing.assert_close(prior, torch.tensor([0.25, 0.75]).double(), atol=0.03, rtol=0)


def test_a_high_temperature_leaves_the_prior():
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    warm = Domains(
        *(getattr(_known(), n) for n in ("means", "variances", "prior")), temperature=1e9
    )
    torch.testing.assert_close(warm(x), _known().prior.expand(5, 2), atol=1e-6, rtol=0)


def test_clusters_that_lie_apart_are_found():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    label = torch.arange(90) % 3
    inputs = centres[label] + 0.5 * torch.randn(90, 2, generator=generator)
    for seed in range(3):
        found = discover_domains(inputs, 3, seed=seed)
        said = found(inputs).argmax(1)
        for each in range(3):  # one cluster for each, and another one for the others
            assert len(set(said[label == each].tolist())) == 1
        assert len(set(said.tolist())) == 3
        # The posterior is a softmax of squared distances, with one scale for all.
        squares = (inputs.double()[:, None] - found.means).square().sum(2)
        scale = 2 * found.variances[0, 0]
        torch.testing.assert_close(found(inputs), (-squares / scale).softmax(1))


def test_equal_inputs_are_one_cluster_without_a_nan():
    found = discover_domains(torch.ones(4, 2), 2)
    assert found(torch.ones(1, 2)).isfinite().all()


def test_it_is_the_mixture_with_these_weights(club, outputs):
    c = club(1, number=2)
    weights = torch.rand(16, 2, generator=torch.Generator().manual_seed(0)).softmax(1).double()
    found = merge.branch_train_merge(c.models, module=c.module, posterior=lambda x: weights)
    own = [outputs(c.module, m, c.inputs).softmax(1) for m in c.models]
    wanted = weights[:, :1] * own[0] + weights[:, 1:] * own[1]
    torch.testing.assert_close(found(c.inputs).exp(), wanted)
    assert found.passes == 2


def test_a_posterior_that_is_sure_chooses_the_expert(club, outputs):
    c = club(2, number=2)
    sure = torch.nn.functional.one_hot(torch.arange(16) % 2).double()
    found = merge.branch_train_merge(c.models, module=c.module, posterior=lambda x: sure)(c.inputs)
    own = torch.stack([outputs(c.module, m, c.inputs).log_softmax(1) for m in c.models])
    torch.testing.assert_close(found, own[torch.arange(16) % 2, torch.arange(16)])


def test_a_uniform_posterior_is_the_ensemble_and_the_average(club):
    c = club(3)

    def even(x):
        return torch.full((len(x), 3), 1 / 3, dtype=torch.float64)

    found = merge.branch_train_merge(c.models, module=c.module, posterior=even)
    wanted = merge.probability_ensemble(c.models, module=c.module)
    torch.testing.assert_close(found(c.inputs), wanted(c.inputs))
    merged = posterior_average(c.models, posterior=even, inputs=c.inputs)
    torch.testing.assert_close(merged, merge.average(c.models))


def test_the_average_takes_the_mean_posterior(club):
    c = club(4, number=2)
    weights = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    merged = posterior_average(c.models, posterior=lambda x: weights, inputs=c.inputs[:4])
    torch.testing.assert_close(merged, merge.average(c.models, weights=[3, 1]))


def test_the_order_of_experts_and_domains_does_not_matter(club):
    c = club(5, number=2)
    known = [c.inputs[:8] + 1, c.inputs[8:] - 1]
    first = merge.branch_train_merge(c.models, module=c.module, posterior=domains(known))
    other = merge.branch_train_merge(
        c.models[::-1], module=c.module, posterior=domains(known[::-1])
    )
    torch.testing.assert_close(first(c.inputs), other(c.inputs))


def test_what_cannot_be_used_is_refused(club):
    c = club(0)
    with pytest.raises(ArgumentError, match="^posterior"):
        merge.branch_train_merge(c.models, module=c.module, posterior=lambda x: x)(c.inputs)
    for wrong in ([], [c.inputs, c.inputs[:1]]):
        with pytest.raises(ArgumentError, match="^inputs"):
            domains(wrong)
    with pytest.raises(ArgumentError, match="^temperature"):
        domains([c.inputs], temperature=0.0)
    for number in (0, 17):
        with pytest.raises(ArgumentError, match="^number"):
            discover_domains(c.inputs, number)
