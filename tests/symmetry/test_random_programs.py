"""Programs that nobody thought of: random operators, one after the other, on random earlier maps.

Whatever group is derived must keep the function; that many of them have one keeps the test honest.
"""

import random

import torch
import torch.nn.functional as F
from torch import nn

from sokmerge import symmetry

ROWS = 3


class Program(nn.Module):
    """A network whose operators are drawn from a seed; it makes its parameters as it runs."""

    def __init__(self, seed):
        super().__init__()
        self.seed, self.weights = seed, nn.ParameterDict()

    def weight(self, name, *shape):
        if name not in self.weights:
            generator = torch.Generator().manual_seed(97 * self.seed + len(self.weights))
            drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
            self.weights[name] = nn.Parameter(drawn * 0.5)
        return self.weights[name]

    def forward(self, x):
        draw = random.Random(self.seed)
        maps = [F.linear(x, self.weight("in", 8, 4), self.weight("start", 8))]
        for number in range(draw.randint(3, 9)):
            a = draw.choice(maps)
            b = draw.choice([other for other in maps if other.shape == a.shape])
            maps.append(self.step(draw.choice(OPERATORS), a, b, draw.choice(maps), f"w{number}"))
        last = enumerate(maps[-3:])
        return sum(F.linear(y, self.weight(f"out{i}", 2, y.shape[1])) for i, y in last)

    def step(self, kind, a, b, c, name):
        n = a.shape[1]
        match kind:
            case "linear":
                return F.linear(a, self.weight(name, 8, n))
            case "shared linear":
                return F.linear(a, self.weight(f"shared{n}", 8, n))
            case "bias":
                return a + self.weight(f"bias{n}", n)
            case "relu":
                return a.relu()
            case "tanh":
                return a.tanh()
            case "add":
                return a + b
            case "multiply":
                return a * b
            case "join" if n <= 32:
                return torch.cat([a, c], 1)
            case "halve" if n % 2 == 0:
                return a.chunk(2, 1)[1]
            case "leave out" if n > 2:
                return a[:, 1:]
            case "shuffle" if n % 2 == 0:
                return a.view(ROWS, 2, n // 2).transpose(1, 2).reshape(ROWS, n)
            case "sum fours" if n % 4 == 0:
                return a.view(ROWS, n // 4, 4).relu().sum(2)
            case "flip":
                return a.flip(1)
            case "layer norm":
                return F.layer_norm(a, (n,), self.weight(name, n))
            case "group norm" if n % 4 == 0:
                return F.group_norm(a, 4, self.weight(name, n))
            case "softmax":
                return a.softmax(1)
            case "centre":
                return a - a.mean(1, keepdim=True)
            case "repeat" if n <= 16:
                return a.repeat(1, 2)
            case "repeat each" if n <= 16:
                return a.repeat_interleave(2, 1)
            case "gate" if n % 2 == 0:
                return F.glu(a, 1)
            case "attend" if n % 4 == 0:
                q, v = a.view(ROWS, n // 4, 4), b.view(ROWS, n // 4, 4)
                return ((q * v).sum(-1, keepdim=True).softmax(1) * v).reshape(ROWS, n)
            case "heads" if n % 2 == 0:
                weight = self.weight(name, 2, n // 2, 4)
                return torch.einsum("bhd,hde->bhe", a.view(ROWS, 2, -1), weight).reshape(ROWS, 8)
            case "outer" if n <= 8:
                return (a.unsqueeze(2) * b[:, :4].unsqueeze(1)).flatten(1)
            case "cumulate" if name > "w6":
                return a.cumsum(1)
        return a


OPERATORS = [
    "linear", "shared linear", "bias", "relu", "add", "multiply", "join", "halve", "leave out",
    "shuffle", "sum fours", "flip", "layer norm", "group norm", "softmax", "centre", "repeat",
    "repeat each", "gate", "attend", "heads", "outer", "cumulate", "tanh",
]  # fmt: skip


def test_a_derived_group_never_changes_the_function():
    moved, scaled = 0, dict.fromkeys(("rescaling", "flips", "mixing"), 0)
    for seed in range(24):
        program = Program(seed)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(ROWS, 4, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            before = program(x)
            group = symmetry.of(program, x)
            state = {k: p.detach().clone() for k, p in program.named_parameters()}
            for element in range(2):
                after = torch.func.functional_call(
                    program, group.act(group.sample(element), state), (x,)
                )
                change = float((after - before).abs().max() / before.abs().max())
                assert change < 1e-10, (seed, [(b.name, b.size) for b in group.blocks])
            for kind in scaled:
                beyond = getattr(group, kind)
                turned = beyond.act(beyond.sample(0), state)
                after = torch.func.functional_call(program, turned, (x,))
                change = float((after - before).abs().max() / before.abs().max())
                assert change < 1e-10, (seed, kind, beyond.blocks)
                scaled[kind] += beyond.units > 0
        moved += bool(group.blocks)
    assert moved > 12
    assert min(scaled.values()) > 6
