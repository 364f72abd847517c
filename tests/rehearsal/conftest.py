"""A stage: a network, three points and data that exist on a device in name only.

Under PyTorch's ``FakeTensorMode`` tensors have a shape, a dtype and a device, but no numbers. So a
tensor that was left on the processor meets one on the accelerator and fails, and so does any
attempt to look at a number, which would make the program wait for the device. Where waiting is part
of an algorithm it goes through ``sokmerge.params.host`` or through the assignment.

A file of this folder rehearses one branch. Its ``CASES`` maps the name of each method to what is
run on a stage; its ``DOES_NOT_APPLY`` maps (method, network) to the reason why the method refuses
that network, and the refusal is rehearsed too. Every operation on a fake tensor costs a tenth of a
millisecond: a case takes each way through a method once, and no more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from sokmerge import merge, params, probe, symmetry
from sokmerge.errors import ArgumentError
from sokmerge.symmetry import Axis, Block, PermutationGroup, Site

# A rehearsal takes as long as there are tensors: where a bias would only be one more of a kind that
# a network has already, it is left out.

SIDE, CLASSES = 10, 3  # images of one channel, 10 x 10; the transformer reads a row as a token


def _mlp() -> tuple[nn.Module, PermutationGroup]:
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(SIDE * SIDE, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(),
        nn.Linear(5, CLASSES),
    )  # fmt: skip
    return module, symmetry.chain(module, ["1", "3", "5"])


def _cnn() -> tuple[nn.Module, PermutationGroup]:
    """Convolutions, BatchNorm, a flattening and linear layers, in a chain."""
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(45, 7), nn.ReLU(),
        nn.Linear(7, CLASSES, bias=False),
    )  # fmt: skip
    return module, symmetry.chain(module, ["0", "1", "3", "6", "8"])


class _Residual(nn.Module):
    """A stem, one block with a shortcut, normalisation over channels, the mean, a head."""

    def __init__(self, width: int = 4, inner: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, bias=False)
        self.first = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(inner)
        self.second = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, CLASSES, bias=False)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        return self.head(self.norm(x.mean((2, 3))))


def _residual() -> tuple[nn.Module, PermutationGroup]:
    """What is added to the residual stream has the order of the stream: one block for both."""
    module = _Residual()

    def norm(name):
        plain = [Axis(f"{name}.{p}", 0) for p in ("weight", "bias")]
        statistics = ("running_mean", "running_var")
        return [*plain, *(Axis(f"{name}.{s}", 0, buffer=True) for s in statistics)]

    stream = Block(
        "stream",
        4,
        (
            Axis("stem.weight", 0),
            Axis("first.weight", 1),
            Axis("second.weight", 0),
            *norm("second_norm"),
            Axis("norm.weight", 0),
            Axis("head.weight", 1),
        ),
        Site("norm", -1),
    )
    inner = Block(
        "first",
        5,
        (
            Axis("first.weight", 0),
            *norm("first_norm"),
            Axis("second.weight", 1),
        ),
        Site("second", 1),
    )
    return module, PermutationGroup((stream, inner))


HEADS, HEAD, MODEL, INNER = 2, 3, 6, 5


class _Encoder(nn.Module):
    """One layer of a transformer, normalised before each branch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(MODEL, bias=False), nn.LayerNorm(MODEL, bias=False)
        self.query, self.key = (nn.Linear(MODEL, HEADS * HEAD, bias=False) for _ in range(2))
        self.value = nn.Linear(MODEL, HEADS * HEAD)
        self.out = nn.Linear(HEADS * HEAD, MODEL, bias=False)
        self.up, self.down = nn.Linear(MODEL, INNER), nn.Linear(INNER, MODEL, bias=False)

    def forward(self, x):
        y = self.norm1(x)
        q, k, v = (
            project(y).unflatten(-1, (HEADS, HEAD)).transpose(-2, -3)
            for project in (self.query, self.key, self.value)
        )
        attended = (q @ k.transpose(-1, -2) / HEAD**0.5).softmax(-1) @ v
        x = x + self.out(attended.transpose(-2, -3).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(SIDE, MODEL, bias=False)
        self.place = nn.Parameter(torch.randn(SIDE, MODEL))
        self.layers = nn.ModuleList(_Encoder() for _ in range(2))
        self.head = nn.Linear(MODEL, CLASSES)

    def forward(self, x):
        x = self.embed(x.flatten(1, 2)) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(-2))


def _transformer() -> tuple[nn.Module, PermutationGroup]:
    """The residual stream is one block, for a layer norm treats all features alike.

    In each layer the heads are units of HEAD entries each, and the hidden units of the MLP are
    units of their own.
    """
    module = _Transformer()
    stream = [Axis("embed.weight", 0), Axis("place", 1), Axis("head.weight", 1)]
    blocks = []
    for i in range(2):
        of = f"layers.{i}"
        stream += [Axis(f"{of}.{n}.weight", 0) for n in ("norm1", "norm2", "out", "down")]
        stream += [Axis(f"{of}.{n}.weight", 1) for n in ("query", "key", "value", "up")]
        heads = [Axis(f"{of}.{n}.weight", 0, HEAD) for n in ("query", "key", "value")]
        heads += [Axis(f"{of}.value.bias", 0, HEAD), Axis(f"{of}.out.weight", 1, HEAD)]
        blocks.append(Block(f"{of}.heads", HEADS, tuple(heads), Site(f"{of}.out", -1, HEAD)))
        units = (Axis(f"{of}.up.weight", 0), Axis(f"{of}.up.bias", 0), Axis(f"{of}.down.weight", 1))
        blocks.append(Block(f"{of}.up", INNER, units, Site(f"{of}.down", -1)))
    blocks.append(Block("stream", MODEL, tuple(stream), Site("head", -1)))
    return module, PermutationGroup(tuple(blocks))


NETWORKS = {
    "mlp": _mlp,
    "cnn": _cnn,
    "residual": _residual,
    "transformer": _transformer,
}


# Every network meets meta, where gradients can be rehearsed too (see Stage.differentiates). CUDA
# sees the same faults, and the smallest network shows that.
STAGES = [*(("meta", network) for network in NETWORKS), ("cuda", "mlp")]


class Stage:
    """A module, three points, inputs and targets that exist on a device in name only.

    Attributes:
        network: "mlp", "cnn", "residual" or "transformer".
        device: the device.
        module: the network, in evaluation mode.
        group: its permutation symmetry.
        a, b, c: three points of its parameter space.
        inputs, targets: six images and their classes.
        risk: the loss oracle on them.
        linear: the names of the weights of its linear layers.
        differentiates: whether a gradient can be rehearsed here: going backward, autograd asks
            CUDA for its context, even if it is there in name only.
    """

    def __init__(self, device: str, network: str) -> None:
        self.network, self.device = network, torch.device(device)
        self.module, self.group = NETWORKS[network]()
        self.module.eval()
        for part in self.module.modules():
            for table in (part._parameters, part._buffers):
                for name, tensor in table.items():
                    if tensor is not None:
                        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                        table[name] = nn.Parameter(empty) if table is part._parameters else empty
        self.a, self.b, self.c = (params.of(self.module) for _ in range(3))
        self.inputs = torch.empty(6, 1, SIDE, SIDE, device=device)
        self.targets = torch.empty(6, dtype=torch.int64, device=device)
        self.risk = probe.EmpiricalRisk(self.module, self.inputs, self.targets, chunk=4)
        self.linear = [
            f"{n}.weight" for n, m in self.module.named_modules() if isinstance(m, nn.Linear)
        ]
        self.differentiates = device == "meta" or torch.cuda.is_available()

    @functools.cached_property
    def halves(self) -> list[dict[str, torch.Tensor]]:
        """The three points in bfloat16."""
        return [params.to(p, dtype=torch.bfloat16) for p in (self.a, self.b, self.c)]

    def require_there(self, *points: params.Params) -> None:
        """Raise unless the points have no values and lie on the device that is rehearsed."""
        for point in points:
            assert point, "a point without tensors"
            for tensor in point.values():
                assert not params.has_values(tensor) and tensor.device.type == self.device.type


@functools.cache
def _staged(device: str, network: str) -> tuple[AbstractContextManager[object], Stage]:
    # Tensors on meta that are not fake are twice as fast, and waiting fails with them too. But a
    # product of one with a tensor that was left behind does not: three networks show that.
    mode = nullcontext() if network == "transformer" else FakeTensorMode()
    with mode:
        return mode, Stage(device, network)


@pytest.fixture(params=STAGES, ids="-".join)
def stage(request: pytest.FixtureRequest):
    """Each network and each device, in name only. It is shared: a test does not change it."""
    mode, staged = _staged(*request.param)
    with mode:
        yield staged


@pytest.fixture(params=NETWORKS)
def real(request: pytest.FixtureRequest) -> SimpleNamespace:
    """Each network of the rehearsal with numbers in it: module, group, inputs, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, group = NETWORKS[request.param]()
        module = module.double().eval()
        with torch.no_grad():  # no norm is the identity, no statistic the initial one
            for tensor in [*module.parameters(), *module.buffers()]:
                if tensor.is_floating_point() and tensor.dim() == 1:
                    tensor.uniform_(0.5, 1.5)
        inputs = torch.randn(8, 1, SIDE, SIDE, dtype=torch.float64)
    return SimpleNamespace(network=request.param, module=module, group=group, inputs=inputs)


@pytest.fixture
def rehearse() -> Callable[..., None]:
    """Run a method's case on a stage, or see it refuse the network for the reason given."""

    def run(case: Callable[[Stage], None], stage: Stage, reason: str | None = None) -> None:
        if reason is None:
            case(stage)
            return
        with pytest.raises(ArgumentError):
            case(stage)

    return run


@pytest.fixture(scope="session")
def declared() -> Callable[[str], set[str]]:
    """Return the names of the declared methods whose functions stand in a folder of merge."""

    def names(folder: str) -> set[str]:
        place = f"sokmerge.merge.{folder}."
        return {d.name for d in merge.methods() if d.function.__module__.startswith(place)}

    return names
