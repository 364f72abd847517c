"""Weight matching against a plain reading of its paper, on the widest networks of the zoo.

The peer is algorithm 1 of Ainsworth et al. (2022) for a perceptron, written as it stands there:
indices of layers by hand, float32, SciPy's assignment. Both begin at the same point and may take
the layers in other orders, so the times are compared over several pairs, and what is reached too.

Not part of ``make test``. Run ``make bench``: it measures all and writes its section of
``book/benchmarks.md``.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from sokmerge import merge, params, symmetry
from sokmerge.testbed import zoo

PAIRS = [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)]


def by_hand(a: params.Params, b: params.Params, seed: int) -> params.Params:
    """Match b's hidden units to a's: weights w0..w3 and biases of a perceptron, in turn."""
    names = [name for name in a if name.endswith("weight")]
    wa, wb = ([p[name] for name in names] for p in (a, b))
    ba, bb = ([p[name.replace("weight", "bias")] for name in names] for p in (a, b))
    orders = [torch.arange(len(w)) for w in wb[:-1]]
    generator, progress = np.random.default_rng(seed), True
    while progress:
        progress = False
        for k in generator.permutation(len(orders)):
            before = wb[k] if k == 0 else wb[k][:, orders[k - 1]]
            after = wb[k + 1] if k + 1 == len(orders) else wb[k + 1][orders[k + 1]]
            gain = wa[k] @ before.T + torch.outer(ba[k], bb[k]) + wa[k + 1].T @ after
            old = gain[torch.arange(len(gain)), orders[k]].sum()
            found = torch.as_tensor(linear_sum_assignment(gain.numpy(), maximize=True)[1])
            new = gain[torch.arange(len(gain)), found].sum()
            if new > old + 1e-4:  # in float32
                orders[k], progress = found, True
    moved = {}
    for k, name in enumerate(names):
        rows = orders[k] if k < len(orders) else torch.arange(len(wb[k]))
        weight = b[name][rows]
        moved[name] = weight if k == 0 else weight[:, orders[k - 1]]
        bias = name.replace("weight", "bias")
        moved[bias] = b[bias][rows]
    return moved


def timed(work):
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def test_it_costs_no_more_than_the_algorithm_by_hand(write_section):
    torch.set_num_threads(1)
    recipes = zoo.family("mlp-width-512")
    modules, nets = zip(*map(zoo.load, recipes), strict=True)
    group = symmetry.of(modules[0], torch.zeros(1, 1, 28, 28))
    merge.weight_matching(nets[0], nets[1], group)  # what is read once is not counted
    by_hand(nets[0], nets[1], 0)
    ours, theirs, near = [], [], []
    for i, j in PAIRS:
        a, b = nets[i], nets[j]
        spent, hand = timed(lambda a=a, b=b: by_hand(a, b, 0))
        theirs.append(spent)
        spent, match = timed(lambda a=a, b=b: merge.weight_matching(a, b, group))
        ours.append(spent)
        moved = group.act(match.permutation, b)
        near.append(float(params.inner(a, moved) / params.inner(a, hand)))
    ratio, reached = sum(ours) / sum(theirs), f"{min(near):.3f} to {max(near):.3f}"
    write_section(
        "matching",
        f"""\
## Weight matching

Does it cost more to derive which units may trade places than to write it down?
Five pairs of `mlp-width-512`, three hidden layers of 512 units, one thread. The peer is
algorithm 1 of {{cite:t}}`ainsworth2022git` for a perceptron, written out in the benchmark with its
layers by hand; both use SciPy's assignment. What is compared is the CPU time of a search, and the
inner product with the first network that it reaches.

| | CPU s a pair | inner product, ours over the peer's |
|---|---:|---:|
| `merge.weight_matching` with the derived group | {np.mean(ours):.2f} | {reached} |
| by hand | {np.mean(theirs):.2f} | |

Ours takes {ratio:.2f} times the peer's CPU time.
The group is derived once for an architecture, which is not counted.
""",
    )
    assert 0.98 < min(near), "both find optima of about one height"
    assert ratio <= 1.0
