"""Task vectors, against numpy, against their identities, and against chance."""

from __future__ import annotations

import inspect
import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge.task_vectors import (
    apply_mask,
    breadcrumbs,
    consensus,
    dare,
    drop_and_rescale,
    elect_sign,
    tall_mask,
    task_arithmetic,
    task_vectors,
    ties,
    trim,
)

EPS = torch.finfo(torch.float32).eps
SHAPES = {"w": (6, 5), "b": (6,), "v": (3, 6), "scalar": ()}
FLOATING = list(SHAPES)
seeds = st.integers(0, 2**31)
METHODS = {
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare": lambda models, **options: dare(models, **{"seed": 0, **options}),
    "breadcrumbs": breadcrumbs,
    "consensus": consensus,
}


def _model(seed, dtype=torch.float32, device="cpu", size=1.0):
    generator = torch.Generator().manual_seed(seed)
    made = {k: torch.randn(s, generator=generator) * size for k, s in SHAPES.items()}
    return {
        **{k: t.to(device, dtype) for k, t in made.items()},
        "steps": torch.tensor(seed % 7, device=device),
    }


def _models(seed, number=3, **options):
    return _model(seed, **options), [_model(seed + 1 + i, **options) for i in range(number)]


def _numpy(point):
    return {k: point[k].detach().cpu().double().numpy() for k in FLOATING}


def _taus(models, base):
    b = _numpy(base)
    return [{k: m[k] - b[k] for k in FLOATING} for m in map(_numpy, models)]


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _close(merged, expected, base, rtol=2 * EPS):
    for key in FLOATING:
        there = merged[key].cpu().double().numpy()
        np.testing.assert_allclose(there, expected[key], rtol=rtol, atol=rtol)
        assert merged[key].dtype == base[key].dtype
    assert merged["steps"] is base["steps"]


def _oracle_ties(models, base, density, scale, weights, scope):
    """Sort everything, and go through the entries one at a time."""
    taus, b = _taus(models, base), _numpy(base)
    trimmed = []
    for tau in taus:
        pools = [FLOATING] if scope == "model" else [[k] for k in FLOATING]
        out = {}
        for pool in pools:
            sizes = sorted((abs(x) for k in pool for x in tau[k].ravel()), reverse=True)
            least = sizes[max(1, round(density * len(sizes))) - 1]
            out |= {k: np.where(np.abs(tau[k]) >= least, tau[k], 0.0) for k in pool}
        trimmed.append(out)
    merged = {}
    for key in FLOATING:
        result = b[key].copy()
        for index in np.ndindex(result.shape):
            values = [(w, t[key][index]) for w, t in zip(weights, trimmed, strict=True)]
            mass = math.fsum(w * x for w, x in values)
            agreeing = [(w, x) for w, x in values if x * mass > 0]
            total = math.fsum(w for w, _ in agreeing)
            if total > 0:
                result[index] += scale * math.fsum(w * x for w, x in agreeing) / total
        merged[key] = result
    return merged


# --- what all of them keep to -------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_it_keeps_dtype_device_and_what_is_not_floating(name, dtype, device):
    if dtype == torch.float64 and device.type == "mps":
        pytest.skip("no double precision there")
    base, models = _models(0, dtype=dtype, device=device)
    merged = METHODS[name](models, base=base)
    assert list(merged) == list(base) and merged["steps"] is base["steps"]
    for key in FLOATING:
        assert merged[key].dtype == dtype and merged[key].device == base[key].device
        assert merged[key].shape == base[key].shape


@pytest.mark.parametrize("name", METHODS)
def test_copies_of_the_base_give_the_base_exactly(name):
    base, _ = _models(0)
    merged = METHODS[name]([base] * 3, base=base, scale=7.3)
    assert _same(merged, base)


@pytest.mark.parametrize("name", METHODS)
def test_scale_zero_gives_the_base_exactly(name):
    base, models = _models(0)
    assert _same(METHODS[name](models, base=base, scale=0.0), base)


@pytest.mark.parametrize("name", METHODS)
def test_the_operands_are_not_changed(name):
    base, models = _models(0)
    before = [{k: t.clone() for k, t in p.items()} for p in (base, *models)]
    METHODS[name](models, base=base, weights=[0.5, 1, 2])
    assert all(_same(p, q) for p, q in zip((base, *models), before, strict=True))


@pytest.mark.parametrize("name", METHODS)
@given(seed=seeds)
@settings(max_examples=15)
def test_the_order_of_the_models_does_not_matter(name, seed):
    base, models = _models(seed)
    weights, streams = [1.0, 0.25, 2.5], ["cats", "dogs", "cars"]
    found = []
    for order in itertools.permutations(range(3)):
        options = {"streams": [streams[i] for i in order]} if name == "dare" else {}
        found.append(
            METHODS[name](
                [models[i] for i in order],
                base=base,
                weights=[weights[i] for i in order],
                **options,
            )
        )
    for other in found[1:]:
        for key in FLOATING:
            torch.testing.assert_close(other[key], found[0][key], rtol=2 * EPS, atol=2 * EPS)


@pytest.mark.parametrize("name", METHODS)
def test_tensors_without_entries_pass_through(name):
    base = {"w": torch.zeros(4), "none": torch.zeros(0, 3)}
    models = [{"w": torch.ones(4), "none": torch.zeros(0, 3)}] * 2
    assert METHODS[name](models, base=base)["none"].shape == (0, 3)
    nothing = {"none": torch.zeros(0), "steps": torch.tensor(1)}
    assert _same(METHODS[name]([nothing] * 2, base=nothing), nothing)


@pytest.mark.parametrize("name", METHODS)
def test_refusals_name_the_argument(name):
    f = METHODS[name]
    base, models = _models(0)
    with pytest.raises(ArgumentError, match="models: found no models"):
        f([], base=base)
    with pytest.raises(ArgumentError, match=r"models\[1\]\['w'\]: found dtype torch.float16.*base"):
        f([models[0], _model(1, torch.float16)], base=base)
    with pytest.raises(ArgumentError, match=r"models\[0\]: found keys missing \['b'\]"):
        f([{k: t for k, t in models[0].items() if k != "b"}, models[1]], base=base)
    broken = {**models[1], "b": torch.full((6,), math.nan)}
    with pytest.raises(ArgumentError, match=r"models\[1\]\['b'\]: found 6 of 6 entries NaN"):
        f([models[0], broken], base=base)
    with pytest.raises(ArgumentError, match=r"base\['b'\]: found 6 of 6 entries NaN"):
        f(models, base=broken)
    with pytest.raises(ArgumentError, match="scale: found inf; expected a finite number"):
        f(models, base=base, scale=math.inf)
    for weights in ([1], [1, 2, math.nan]):
        with pytest.raises(ArgumentError, match="weights: found .* for 3 models; expected one fin"):
            f(models, base=base, weights=weights)


# --- task arithmetic ----------------------------------------------------------------------------


def test_task_vectors_are_differences_in_single_precision_at_least():
    base, models = _models(0, dtype=torch.bfloat16)
    for vector, expected in zip(task_vectors(models, base), _taus(models, base), strict=True):
        assert vector["w"].dtype == torch.float32 and vector["steps"] is base["steps"]
        for key in FLOATING:
            np.testing.assert_allclose(vector[key].double().numpy(), expected[key], rtol=EPS)
    assert task_vectors([_model(1, torch.float64)], _model(0, torch.float64))[0]["w"].dtype == (
        torch.float64
    )


@given(
    seed=seeds, scale=st.floats(-2, 2), weights=st.lists(st.floats(-3, 3), min_size=3, max_size=3)
)
def test_task_arithmetic_is_the_sum(seed, scale, weights):
    base, models = _models(seed)
    taus, b = _taus(models, base), _numpy(base)
    expected = {
        k: b[k] + scale * sum(w * t[k] for w, t in zip(weights, taus, strict=True))
        for k in FLOATING
    }
    _close(task_arithmetic(models, base=base, scale=scale, weights=weights), expected, base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(seed=seeds)
def test_one_task_vector_leads_to_its_model_exactly(dtype, seed):
    base, models = _models(seed, dtype=dtype)
    merged = task_arithmetic(models[:1], base=base)
    assert all(torch.equal(merged[k], models[0][k]) for k in FLOATING)


def test_negation_is_the_mirror_image_of_addition():
    base, models = _models(0)
    there = task_arithmetic(models, base=base)
    back = task_arithmetic(models, base=base, weights=[-1, -1, -1])
    for key in FLOATING:
        torch.testing.assert_close((there[key] + back[key]) / 2, base[key], rtol=0, atol=8 * EPS)


# --- TIES ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["model", "tensor"])
@given(
    seed=seeds,
    density=st.floats(0.01, 1),
    scale=st.floats(-2, 2),
    weights=st.lists(st.floats(0.1, 3), min_size=3, max_size=3),
)
@settings(max_examples=30)
def test_ties_agrees_with_a_naive_oracle(scope, seed, density, scale, weights):
    base, models = _models(seed)
    options = {"density": density, "scale": scale, "weights": weights, "scope": scope}
    expected = _oracle_ties(models, base, **options)
    _close(ties(models, base=base, **options), expected, base)


@given(seed=seeds)
@settings(max_examples=10)
def test_with_ties_everywhere_it_agrees_too(seed):
    """Small whole numbers: many equal magnitudes, many sums of zero."""
    generator = torch.Generator().manual_seed(seed)
    made = [
        {k: torch.randint(-2, 3, s, generator=generator).float() for k, s in SHAPES.items()}
        for _ in range(5)
    ]
    base, *models = [{**m, "steps": torch.tensor(0)} for m in made]
    for density, scope in itertools.product((0.1, 0.5, 1.0), ("model", "tensor")):
        options = {"density": density, "scale": 1.0, "weights": [1.0] * 4, "scope": scope}
        expected = _oracle_ties(models, base, **options)
        _close(ties(models, base=base, **options), expected, base)


@given(seed=seeds, number=st.integers(1, 5))
def test_with_density_1_and_no_conflicts_it_is_the_mean_and_n_times_that_is_the_sum(seed, number):
    base, models = _models(seed, number)
    models = [
        {k: base[k] + (m[k] - base[k]).abs() + 0.1 if k in FLOATING else m[k] for k in m}
        for m in models
    ]
    mean = task_arithmetic(models, base=base, scale=1 / number)
    total = task_arithmetic(models, base=base)
    for expected, scale in ((mean, 1.0), (total, float(number))):
        merged = ties(models, base=base, density=1.0, scale=scale)
        for key in FLOATING:
            torch.testing.assert_close(merged[key], expected[key], rtol=2 * EPS, atol=2 * EPS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_is_the_double_precision_result_rounded_once(dtype):
    """At most 0.3 % of entries may differ, by one unit in the last place."""
    shapes = {"w": (200, 100), "b": (200,)}

    def noise(seed):
        return params.normal_like({k: torch.zeros(s) for k, s in shapes.items()}, seed)

    start = noise(0)
    base = params.to(start, dtype=dtype)
    models = [
        params.to(params.add(start, params.scale(noise(i), 0.1)), dtype=dtype) for i in (1, 2, 3)
    ]
    merged = ties(models, base=base, density=0.3)
    oracle = ties(
        [params.to(m, dtype=torch.float64) for m in models],
        base=params.to(base, dtype=torch.float64),
        density=0.3,
    )
    for key in shapes:
        expected = oracle[key].to(dtype)
        steps = (merged[key].view(torch.int16).int() - expected.view(torch.int16).int()).abs()
        assert steps.max() <= 1 and (steps > 0).float().mean() <= 0.003


def test_in_half_precision_it_agrees_with_numpy():
    base, models = _models(0, dtype=torch.bfloat16)
    expected = _oracle_ties(models, base, 0.3, 1.0, [1.0] * 3, "model")
    merged = ties(models, base=base, density=0.3)
    for key in FLOATING:
        assert torch.equal(merged[key], torch.from_numpy(expected[key]).bfloat16())


@given(seed=seeds, density=st.floats(0.01, 1))
def test_trimming_keeps_the_largest_and_all_that_are_as_large(seed, density):
    generator = torch.Generator().manual_seed(seed)
    vector = {"w": torch.randint(-4, 5, (40,), generator=generator).float()}
    kept = trim(vector, density)["w"]
    count, sizes = max(1, round(density * 40)), vector["w"].abs()
    assert int((sizes >= sizes.sort(descending=True).values[count - 1]).sum()) >= count
    assert torch.equal(kept != 0, (sizes >= sizes.topk(count).values[-1]) & (sizes > 0))
    assert torch.equal(kept[kept != 0], vector["w"][kept != 0])


def test_the_scope_decides_against_what_an_entry_is_ranked():
    vector = {"large": torch.tensor([10.0, 20.0]), "small": torch.tensor([1.0, 2.0])}
    together = trim(vector, 0.5)
    apart = trim(vector, 0.5, scope="tensor")
    assert together["large"].tolist() == [10, 20] and together["small"].tolist() == [0, 0]
    assert apart["large"].tolist() == [0, 20] and apart["small"].tolist() == [0, 2]


def test_where_the_masses_are_equal_the_base_stays():
    base = {"w": torch.tensor([5.0, 5.0])}
    models = [{"w": torch.tensor([6.0, 6.0])}, {"w": torch.tensor([4.0, 3.0])}]
    assert ties(models, base=base, density=1.0)["w"].tolist() == [5.0, 3.0]
    assert elect_sign([torch.tensor([0.0])], [1.0]).tolist() == [0.0]


def test_only_the_proportions_of_weights_count_and_zero_is_absence():
    base, models = _models(3)
    first = ties(models, base=base, weights=[1, 0, 2], density=0.6)
    for same in (
        ties(models, base=base, weights=[2, 0, 4], density=0.6),
        ties([models[0], models[2]], base=base, weights=[1, 2], density=0.6),
    ):
        assert all(torch.equal(first[k], same[k]) for k in FLOATING)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0}, r"density: found 0; expected a number in \(0, 1\]"),
        ({"density": 1.1}, "density: found 1.1"),
        ({"density": math.nan}, "density: found nan"),
        ({"scope": "layer"}, "scope: found 'layer'; expected 'model' or 'tensor'"),
        ({"weights": [1, -1, 1]}, "weights: found .* expected one finite, non-negative number"),
        ({"weights": [0, 0, 0]}, "weights: found .* not all zero"),
    ],
    ids=str,
)
def test_ties_refuses(options, message):
    base, models = _models(0)
    with pytest.raises(ArgumentError, match=message):
        ties(models, base=base, **options)


# --- DARE ---------------------------------------------------------------------------------------


def test_dropping_and_rescaling_is_unbiased_and_dropping_alone_is_not():
    """The mean over 400 seeds lies within five standard errors, for each of 65 entries."""
    vector, drop, draws = params.normal_like(_model(0), seed=1), 0.9, 400
    for rescale, factor in ((True, 1.0), (False, 1 - drop)):
        drawn = [drop_and_rescale(vector, drop, seed=s, rescale=rescale) for s in range(draws)]
        for key in FLOATING:
            sample = torch.stack([d[key] for d in drawn]).double()
            kept = vector[key].double() / (1 - drop) * (1.0 if rescale else 1 - drop)
            stderr = kept.abs() * math.sqrt(drop * (1 - drop) / draws)
            assert ((sample.mean(0) - factor * vector[key]).abs() <= 5 * stderr + 1e-6).all()


def test_the_share_dropped_is_p():
    vector = {"w": torch.ones(100_000)}
    for drop in (0.0, 0.1, 0.5, 0.99):
        share = float((drop_and_rescale(vector, drop, seed=3)["w"] == 0).float().mean())
        assert abs(share - drop) <= 5 * math.sqrt(drop * (1 - drop) / 100_000)


def test_masks_of_models_tensors_and_seeds_are_independent():
    vector = {"a": torch.ones(40_000), "b": torch.ones(40_000)}
    first = drop_and_rescale(vector, 0.5, seed=0)
    masks = [
        first["a"],
        first["b"],
        drop_and_rescale(vector, 0.5, seed=1)["a"],
        drop_and_rescale(vector, 0.5, seed=0, stream="1")["a"],
    ]
    correlations = torch.corrcoef(torch.stack(masks))
    assert (correlations - torch.eye(4)).abs().max() < 5 / math.sqrt(40_000)


def test_a_mask_depends_on_names_only(device):
    base, models = _models(0)
    turned = {k: models[0][k] for k in reversed(list(models[0]))}
    vector, other = (drop_and_rescale(m, 0.5, seed=2) for m in (models[0], turned))
    alone = drop_and_rescale({"w": models[0]["w"]}, 0.5, seed=2)["w"]
    there = drop_and_rescale({"w": models[0]["w"].to(device)}, 0.5, seed=2)["w"].cpu()
    assert torch.equal(vector["w"], other["w"])
    assert torch.equal(vector["w"], alone) and torch.equal(vector["w"], there)


def test_a_model_keeps_its_mask_whatever_follows_it_and_by_name_wherever_it_stands():
    base, models = _models(0)
    short = dare(models[:1], base=base, seed=4)
    assert _same(dare(models, base=base, seed=4, weights=[1, 0, 0]), short)
    exchanged = dare([models[1], models[0]], base=base, seed=4, weights=[0, 1])
    assert not torch.equal(exchanged["w"], short["w"])
    named = dare(models[:2], base=base, seed=4, streams=["x", "y"])
    assert _same(dare(models[1::-1], base=base, seed=4, streams=["y", "x"]), named)


def test_masks_do_not_depend_on_the_number_of_workers():
    base, models = _models(0)
    whole = dare(models, base=base, seed=4)

    def alone(key):
        return dare([{key: m[key]} for m in models], base={key: base[key]}, seed=4)[key]

    for workers in (1, 4):
        with ThreadPoolExecutor(workers) as pool:
            assert all(
                torch.equal(whole[k], t) for k, t in zip(base, pool.map(alone, base), strict=True)
            )


@given(seed=seeds)
def test_dropping_nothing_is_task_arithmetic(seed):
    base, models = _models(seed)
    options = {"base": base, "weights": [1, -2, 0.5], "scale": 0.7}
    assert _same(dare(models, seed=0, drop=0.0, **options), task_arithmetic(models, **options))


def test_dare_is_the_sum_of_what_was_kept():
    base, models = _models(0)
    kept = [
        drop_and_rescale(tau, 0.5, seed=9, stream=str(i))
        for i, tau in enumerate(task_vectors(models, base))
    ]
    expected = {k: _numpy(base)[k] + sum(_numpy(t)[k] for t in kept) for k in FLOATING}
    _close(dare(models, base=base, seed=9, drop=0.5), expected, base, rtol=8 * EPS)


def test_dare_refuses():
    base, models = _models(0)
    for drop in (1.0, -0.1, math.nan):
        with pytest.raises(ArgumentError, match=r"drop: found .* expected a number in \[0, 1\)"):
            dare(models, base=base, seed=0, drop=drop)
        with pytest.raises(ArgumentError, match="drop: found"):
            drop_and_rescale(base, drop, seed=0)
    for streams in (["a", "b"], ["a", "b", "a"]):
        with pytest.raises(ArgumentError, match="streams: found .* expected a different name"):
            dare(models, base=base, seed=0, streams=streams)
    assert inspect.signature(dare).parameters["seed"].default is inspect.Parameter.empty


# --- breadcrumbs --------------------------------------------------------------------------------


@given(seed=seeds, smallest=st.floats(0, 0.9), largest=st.floats(0, 0.09), scale=st.floats(-2, 2))
@settings(max_examples=40)
def test_breadcrumbs_agrees_with_sorting(seed, smallest, largest, scale):
    base, models = _models(seed)
    weights, expected = [1.0, -0.5, 2.0], _numpy(base)
    for weight, tau in zip(weights, _taus(models, base), strict=True):
        for key in FLOATING:
            flat, n = tau[key].ravel(), tau[key].size
            order = np.argsort(np.abs(flat), kind="stable")
            top = min(round(largest * n), n - 1)
            bottom = min(round(smallest * n), n - 1 - top)
            kept = np.zeros(n)
            places = order[bottom : n - top]
            kept[places] = flat[places]
            expected[key] = expected[key] + scale * weight * kept.reshape(tau[key].shape)
    merged = breadcrumbs(
        models, base=base, smallest=smallest, largest=largest, scale=scale, weights=weights
    )
    _close(merged, expected, base)


@given(seed=seeds)
def test_masking_nothing_is_task_arithmetic(seed):
    base, models = _models(seed)
    merged = breadcrumbs(models, base=base, smallest=0, largest=0)
    assert _same(merged, task_arithmetic(models, base=base))


def test_what_is_as_large_as_a_kept_entry_is_kept():
    base, model = {"w": torch.zeros(5)}, {"w": torch.tensor([1.0, -1.0, 2.0, 3.0, -3.0])}
    merged = breadcrumbs([model], base=base, smallest=0.2, largest=0.2)
    assert torch.equal(merged["w"], model["w"])
    merged = breadcrumbs([model], base=base, smallest=0.4, largest=0.4)
    assert merged["w"].tolist() == [0, 0, 2, 0, 0]


def test_each_tensor_keeps_an_entry():
    base, model = {"w": torch.zeros(3)}, {"w": torch.tensor([1.0, 2.0, 3.0])}
    assert breadcrumbs([model], base=base, smallest=0.9)["w"].tolist() == [0, 0, 3]
    assert breadcrumbs([model], base=base, smallest=0, largest=0.99)["w"].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("smallest", "largest", "message"),
    [(1, 0, "smallest: found 1"), (0, -0.1, "largest: found -0.1"),
     (0.5, 0.5, "smallest and largest: found 0.5 and 0.5; expected shares")],
)  # fmt: skip
def test_breadcrumbs_refuses(smallest, largest, message):
    base, models = _models(0)
    with pytest.raises(ArgumentError, match=message):
        breadcrumbs(models, base=base, smallest=smallest, largest=largest)


# --- TALL-masks and consensus -------------------------------------------------------------------


@given(seed=seeds, threshold=st.floats(0, 3))
def test_masks_agree_with_numpy(seed, threshold):
    base, [model, merged] = _models(seed, 2)
    mask = tall_mask(model, base, merged, threshold)
    b, m, t = _numpy(base), _numpy(merged), _numpy(model)
    assert list(mask) == FLOATING
    for key in FLOATING:
        expected = np.abs(t[key] - b[key]) > threshold * np.abs(m[key] - t[key])
        assert (mask[key].numpy() == expected).all()


def test_a_network_merged_from_itself_is_recovered_by_its_mask():
    base, [model, _] = _models(0, 2)
    mask = tall_mask(model, base, model, 10.0)
    recovered = apply_mask(mask, model, base)
    assert all(torch.equal(recovered[k], model[k]) for k in FLOATING)
    assert not any(m.any() for m in tall_mask(base, base, model).values())


def test_disjoint_tasks_are_recovered_from_their_sum():
    base = {"w": torch.zeros(4)}
    tasks = [{"w": torch.tensor([1.0, -2.0, 0, 0])}, {"w": torch.tensor([0, 0, 3.0, 0.5])}]
    merged = task_arithmetic(tasks, base=base)
    for task in tasks:
        recovered = apply_mask(tall_mask(task, base, merged), merged, base)
        assert torch.equal(recovered["w"], task["w"])


def test_full_and_empty_masks_are_exact():
    base, [merged] = _models(0, 1)
    full = {k: torch.ones(SHAPES[k], dtype=torch.bool) for k in FLOATING}
    grafted = apply_mask(full, merged, base)
    assert all(torch.equal(grafted[k], merged[k]) for k in FLOATING)
    assert _same(apply_mask({k: ~m for k, m in full.items()}, merged, base), base)
    with pytest.raises(ArgumentError, match=r"mask: found other keys or shapes at \['b'\]"):
        apply_mask({k: m for k, m in full.items() if k != "b"}, merged, base)


@given(seed=seeds, at_least=st.integers(0, 3), threshold=st.floats(0, 2))
@settings(max_examples=40)
def test_consensus_agrees_with_numpy(seed, at_least, threshold):
    base, models = _models(seed)
    taus, weights, expected = _taus(models, base), [1.0, 0.5, 2.0], {}
    for key in FLOATING:
        total = sum(w * t[key] for w, t in zip(weights, taus, strict=True))
        uses = sum((np.abs(t[key]) > threshold * np.abs(total - t[key])).astype(int) for t in taus)
        expected[key] = _numpy(base)[key] + 0.3 * np.where(uses >= at_least, total, 0.0)
    merged = consensus(
        models, base=base, at_least=at_least, mask_scale=threshold, scale=0.3, weights=weights
    )
    _close(merged, expected, base)


def test_consensus_of_none_is_task_arithmetic_and_takes_a_threshold_for_each_task():
    base, models = _models(0)
    merged = consensus(models, base=base, at_least=0)
    assert _same(merged, task_arithmetic(models, base=base))
    assert _same(consensus(models, base=base, mask_scale=[0.4] * 3), consensus(models, base=base))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at_least": 4}, "at_least: found 4 for 3 models"),
        ({"at_least": 1.5}, "at_least: found 1.5"),
        ({"mask_scale": -1}, "mask_scale: found -1.0; expected a finite, non-negative number"),
        ({"mask_scale": [1, 2]}, "mask_scale: found 2 numbers for 3 models"),
    ],
    ids=str,
)
def test_consensus_refuses(options, message):
    base, models = _models(0)
    with pytest.raises(ArgumentError, match=message):
        consensus(models, base=base, **options)
