"""Networks made for one input each: SMEAR, WEMoE and Twin-Merging, where a router is known."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sokmerge import merge, params
from sokmerge.errors import ArgumentError
from sokmerge.merge.ensembling import Features, embedding, task_router


def _fixed(coefficients):
    return lambda x: torch.as_tensor(coefficients, dtype=x.dtype, device=x.device).expand(
        len(x), -1
    )


def _turns(number):
    """Send the inputs to the models in turn."""
    return lambda x: F.one_hot(torch.arange(len(x)) % number, number).to(x.device, x.dtype)


def _own(c, outputs):
    """What the expert says to which an input is sent."""
    said = torch.stack([outputs(c.module, m, c.inputs) for m in c.models])
    return said[torch.arange(len(c.inputs)) % len(c.models), torch.arange(len(c.inputs))]


METHODS = {
    "smear": lambda c, router: merge.smear(c.models, module=c.module, router=router),
    "wemoe": lambda c, router: merge.wemoe(c.models, base=c.base, module=c.module, router=router),
    "twin": lambda c, router: merge.twin_merging(
        c.models, base=c.base, module=c.module, router=router
    ),
}
EACH = pytest.mark.parametrize("predictor", METHODS.values(), ids=METHODS)


@EACH
def test_a_router_that_is_sure_calls_the_expert(club, outputs, predictor, device):
    c = club(0, device=device)
    found = predictor(c, _turns(3))
    torch.testing.assert_close(found(c.inputs), _own(c, outputs))


@EACH
def test_each_input_has_a_network_of_its_own(club, predictor):
    """An input is answered alone as in company."""
    c = club(1)
    router = task_router([c.inputs[:8], c.inputs[8:12], c.inputs[12:]])
    found = predictor(c, router)
    alone = torch.cat([found(x[None]) for x in c.inputs])
    torch.testing.assert_close(found(c.inputs), alone)


@EACH
def test_the_order_of_the_models_does_not_matter(club, predictor):
    c = club(2)
    shares = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    first = predictor(c, _fixed(shares))(c.inputs)
    c.models.reverse()
    torch.testing.assert_close(predictor(c, _fixed(shares.flip(0)))(c.inputs), first)


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dtype_stays(club, predictor, dtype):
    c = club(3, dtype=dtype)
    assert predictor(c, _turns(3))(c.inputs).dtype == dtype


@EACH
def test_batch_statistics_must_be_told_and_are_then_merged(club, outputs, predictor):
    c = club(4, norm=True)
    with pytest.raises(ArgumentError, match="^models: .*BatchNorm"):
        predictor(c, _turns(3))
    state = c.module.state_dict()
    c.models = [
        {**state, **m, "1.running_mean": state["1.running_mean"] + i}
        for i, m in enumerate(c.models)
    ]
    c.base = {**state, **c.base}
    torch.testing.assert_close(predictor(c, _turns(3))(c.inputs), _own(c, outputs))


def test_smear_with_one_answer_for_all_is_the_weighted_average(club, outputs):
    c = club(5)
    shares = [0.1, 0.6, 0.3]
    found = merge.smear(c.models, module=c.module, router=_fixed(shares))
    merged = merge.average(c.models, weights=shares)
    torch.testing.assert_close(found(c.inputs), outputs(c.module, merged, c.inputs))
    numbers = sum(p.numel() for p in c.module.parameters())
    assert (found.passes, found.parameters, found.merging) == (1, 3 * numbers, 3 * numbers)


def test_wemoe_with_fixed_coefficients_is_task_arithmetic(club, outputs):
    c = club(6)
    untrained = merge.wemoe(
        c.models, base=c.base, module=c.module, inputs=[c.inputs] * 3, start=0.4, steps=0
    )
    merged = merge.task_arithmetic(c.models, base=c.base, scale=0.4)
    torch.testing.assert_close(untrained(c.inputs), outputs(c.module, merged, c.inputs))
    told = merge.wemoe(c.models, base=c.base, module=c.module, router=_fixed([1.0, -0.5, 0.2]))
    merged = merge.task_arithmetic(c.models, base=c.base, weights=[1.0, -0.5, 0.2])
    torch.testing.assert_close(told(c.inputs), outputs(c.module, merged, c.inputs))


def test_wemoe_leaves_the_other_layers_to_task_arithmetic(club, outputs):
    c = club(7)
    found = merge.wemoe(
        c.models, base=c.base, module=c.module, layers=["0."], router=_fixed([1.0, 0.0, 0.0])
    )
    merged = merge.task_arithmetic(c.models, base=c.base, scale=0.3)
    merged = {k: c.models[0][k] if k.startswith("0.") else merged[k] for k in merged}
    torch.testing.assert_close(found(c.inputs), outputs(c.module, merged, c.inputs))
    assert found.merging == 3 * sum(t.numel() for k, t in c.base.items() if k.startswith("0."))


def test_wemoe_makes_itself_sure(club):
    c = club(8, number=2)
    inputs = [c.inputs[:8], c.inputs[8:]]

    def entropy(steps):
        predict = merge.wemoe(
            c.models, base=c.base, module=c.module, inputs=inputs, steps=steps, lr=0.05, batch=8
        )
        logs = predict(c.inputs).log_softmax(1)
        return float(-(logs.exp() * logs).sum(1).mean())

    assert entropy(30) < entropy(0) - 0.1


def test_routers_are_trained_through_batch_statistics(club):
    c = club(13, number=2, norm=True)
    state = c.module.state_dict()
    models = [{**state, **m} for m in c.models]

    def loss(outputs, rows):
        return F.cross_entropy(outputs, c.targets[rows])

    found = [
        float(
            F.cross_entropy(
                merge.smear(
                    models, module=c.module, inputs=c.inputs, loss=loss, steps=steps, lr=0.1
                )(c.inputs),
                c.targets,
            )
        )
        for steps in (0, 20)
    ]
    assert found[1] < found[0] - 0.05


def test_smear_learns_where_to_send_its_inputs(outputs):
    """Two experts, for x and for -x; the task is the absolute value."""
    net = torch.nn.Linear(1, 1, bias=False).eval()
    experts = [{"weight": torch.tensor([[1.0]])}, {"weight": torch.tensor([[-1.0]])}]
    inputs = torch.linspace(-2, 2, 32)[:, None]

    def loss(found, rows):
        return (found - inputs[rows].abs()).square().mean()

    def trained(steps):
        return merge.smear(
            experts, module=net, inputs=inputs, loss=loss, steps=steps, lr=0.1, batch=16
        )

    torch.testing.assert_close(trained(0)(inputs), torch.zeros(32, 1))
    assert float((trained(150)(inputs) - inputs.abs()).square().mean()) < 0.05


def test_twin_with_all_ranks_and_any_scale_is_the_expert(club, outputs):
    c = club(9)
    for scale in (0.0, 0.5):
        found = merge.twin_merging(
            c.models, base=c.base, module=c.module, router=_turns(3), scale=scale
        )
        torch.testing.assert_close(found(c.inputs), _own(c, outputs))


def test_twin_keeps_the_largest_singular_values(club, outputs):
    c = club(10, number=2)
    found = merge.twin_merging(
        c.models, base=c.base, module=c.module, router=_fixed([1.0, 0.0]), rank=1
    )
    shared = merge.task_arithmetic(c.models, base=c.base, scale=0.3)
    wanted = {}
    for name, tensor in params.subtract(c.models[0], shared).items():
        if tensor.dim() == 2:
            u, s, vt = torch.linalg.svd(tensor)
            tensor = s[0] * torch.outer(u[:, 0], vt[0])
        wanted[name] = shared[name] + tensor
    torch.testing.assert_close(found(c.inputs), outputs(c.module, wanted, c.inputs))
    # Factors of 6 x 4 and 3 x 6 at rank one, and the biases, for both; and the shared network.
    assert found.parameters == (24 + 6 + 18 + 3) + 2 * (10 + 9 + 6 + 3)


def test_the_router_of_tasks_tells_them_apart(club):
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    inputs = [centre + torch.randn(60, 2, generator=generator) / 2 for centre in centres]
    router = task_router(inputs)
    for t, x in enumerate(inputs):
        assert float((router(x).argmax(1) == t).float().mean()) > 0.95
    torch.testing.assert_close(router(inputs[0]).sum(1), torch.ones(60))
    # A feature that never varies does no harm.
    still = task_router([F.pad(x, (0, 1), value=3.0) for x in inputs])
    assert still(F.pad(inputs[1], (0, 1), value=3.0)).argmax(1).float().mean() == pytest.approx(
        1, abs=0.1
    )


def test_an_embedding_is_what_goes_into_a_layer(club):
    c = club(11)
    found = embedding(c.module, c.base, "3")
    hidden = F.linear(c.inputs, c.base["0.weight"], c.base["0.bias"]).relu()
    torch.testing.assert_close(found(c.inputs), hidden)
    assert found.passes == 1
    with pytest.raises(ArgumentError, match="^layer"):
        embedding(c.module, c.base, "head")


def test_what_the_features_cost_is_counted(club):
    c = club(12)
    numbers = sum(p.numel() for p in c.module.parameters())
    features = embedding(c.module, c.base, "3")
    found = merge.twin_merging(
        c.models, base=c.base, module=c.module, inputs=[c.inputs] * 3, features=features, steps=1
    )
    assert found.passes == 2
    assert found.parameters == 4 * numbers + (3 * 6 + 3) + numbers
    free = Features(lambda x: x[:, :1])
    assert merge.twin_merging(
        c.models, base=c.base, module=c.module, inputs=[c.inputs] * 3, features=free, steps=1
    ).passes == 1  # fmt: skip


def test_what_cannot_be_used_is_refused(club):
    c = club(0)
    with pytest.raises(ArgumentError, match="^router"):
        merge.smear(c.models, module=c.module)
    with pytest.raises(ArgumentError, match="^router"):
        merge.smear(c.models, module=c.module, router=3)
    with pytest.raises(ArgumentError, match="^batch"):
        merge.smear(c.models, module=c.module, inputs=c.inputs, loss=lambda *_: 0, batch=0)
    with pytest.raises(ArgumentError, match="^inputs"):
        merge.wemoe(c.models, base=c.base, module=c.module)
    with pytest.raises(ArgumentError, match="^layers"):
        merge.wemoe(c.models, base=c.base, module=c.module, layers=["mlp"], router=_turns(3))
    with pytest.raises(ArgumentError, match="^inputs"):
        merge.twin_merging(c.models, base=c.base, module=c.module, inputs=[c.inputs] * 2)
    with pytest.raises(ArgumentError, match="^rank"):
        merge.twin_merging(c.models, base=c.base, module=c.module, router=_turns(3), rank=0)
    with pytest.raises(ArgumentError, match="^inputs"):
        task_router([c.inputs])
