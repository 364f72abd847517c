"""The symmetry that is derived: for each rule a module, the group it must have, and its proof."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sokmerge import params, symmetry
from sokmerge.errors import ArgumentError
from sokmerge.merge import weight_matching
from sokmerge.symmetry import Block, PermutationGroup


class Net(nn.Module):
    """A module from a dictionary of submodules and a function of them and the inputs."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.does = forward

    def forward(self, *inputs):
        return self.does(self, *inputs)


def L(*args, **kwargs):  # noqa: N802
    return nn.Linear(*args, **kwargs)


def C(*args, **kwargs):  # noqa: N802
    return nn.Conv2d(*args, **kwargs)


IMAGE = (2, 3, 6, 6)
ROWS = (5, 4)


def residual():
    def does(m, x):
        x = m.a(x)
        x = x + m.c(F.relu(m.b(x)))
        return m.d(x)

    return Net(does, a=L(4, 6), b=L(6, 5), c=L(5, 6), d=L(6, 2)), ROWS, {6, 5}


def shortcut():
    def does(m, x):
        x = F.relu(m.n(m.a(x)))
        return m.d((m.b(x) + m.s(x)).mean((2, 3)))

    parts = {"a": C(3, 4, 3), "n": nn.BatchNorm2d(4), "b": C(4, 5, 1), "s": C(4, 5, 1)}
    return Net(does, d=L(5, 2), **parts), IMAGE, {4, 5}


def grouped():
    """Groups trade places; so do channels inside them, alike in all groups that are read."""
    net = nn.Sequential(C(3, 8, 3), nn.ReLU(), C(8, 12, 3, groups=4), nn.ReLU(), C(12, 2, 2))
    return net, IMAGE, {4, 2, 12}


def depthwise():
    net = nn.Sequential(C(3, 6, 1), nn.ReLU6(), C(6, 6, 3, groups=6), nn.SiLU(), C(6, 2, 4))
    return net, IMAGE, {6}


def multiplied():
    """A depthwise convolution that makes two channels of each."""
    net = nn.Sequential(C(3, 6, 1), nn.ReLU(), C(6, 12, 3, groups=6), nn.ReLU(), C(12, 2, 4))
    return net, IMAGE, {6, 12}


def group_norm():
    net = nn.Sequential(C(3, 12, 3), nn.GroupNorm(4, 12), nn.ReLU(), C(12, 2, 4))
    return net, IMAGE, {4, 12}


def one_group_norm():
    net = nn.Sequential(C(3, 6, 3), nn.GroupNorm(1, 6), nn.ReLU(), C(6, 2, 4))
    return net, IMAGE, {6}


def instance_norm():
    norm = nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
    return nn.Sequential(C(3, 6, 3), norm, nn.ReLU(), C(6, 2, 4)), IMAGE, {6}


def layer_norm():
    return nn.Sequential(L(4, 6), nn.LayerNorm(6), nn.GELU(), L(6, 2)), ROWS, {6}


def rms_norm():
    return nn.Sequential(L(4, 6), nn.RMSNorm(6), nn.Tanh(), L(6, 2)), ROWS, {6}


def joined():
    def does(m, x):
        return m.c(torch.cat([m.a(x), F.relu(m.b(x))], 1).mean((2, 3)))

    return Net(does, a=C(3, 4, 1), b=C(3, 5, 1), c=L(9, 2)), IMAGE, {4, 5}


def split():
    def does(m, x):
        u, v = m.a(x).split([4, 5], 1)
        return m.c(u) + m.b(F.relu(v))

    return Net(does, a=L(4, 9), b=L(5, 2), c=L(4, 2)), ROWS, {4, 5}


def shuffled():
    """Two branches whose channels are interleaved and split again, as in ShuffleNet."""

    def does(m, x):
        n = len(x)
        for part in (m.b, m.c):
            x = m.a(x) if x.shape[1] == 3 else x
            u, v = x.chunk(2, 1)
            x = torch.cat([u, part(v)], 1)
            x = x.view(n, 2, 4, 6, 6).transpose(1, 2).reshape(n, 8, 6, 6)
        return m.d(x.mean((2, 3)))

    parts = {"a": C(3, 8, 1), "b": C(4, 4, 1), "c": C(4, 4, 1), "d": L(8, 2)}
    return Net(does, **parts), IMAGE, {4, 2}


def shuffle_operator():
    net = nn.Sequential(C(3, 6, 1), nn.ChannelShuffle(2), nn.ReLU(), C(6, 2, 6))
    return net, IMAGE, {6}


def flattened():
    net = nn.Sequential(C(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), L(16, 5), nn.ReLU(),
                        L(5, 2))  # fmt: skip
    return net, IMAGE, {4, 5}


def pooled():
    net = nn.Sequential(C(3, 4, 3), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), L(4, 2))
    return net, IMAGE, {4}


def transposed():
    net = nn.Sequential(C(3, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 8, 2, groups=2), nn.ReLU(),
                        C(8, 2, 7))  # fmt: skip
    return net, IMAGE, {2, 4, 6}


def excited():
    def does(m, x):
        x = m.a(x)
        gate = torch.sigmoid(m.u(F.relu(m.d(x.mean((2, 3), keepdim=True)))))
        return m.c((x * gate).mean((2, 3)))

    return Net(does, a=C(3, 6, 1), d=C(6, 2, 1), u=C(2, 6, 1), c=L(6, 2)), IMAGE, {6, 2}


def swiglu():
    def does(m, x):
        u, v = m.a(x).chunk(2, -1)
        return m.b(F.silu(u) * v)

    return Net(does, a=L(4, 12), b=L(6, 2)), ROWS, {6}


def glu():
    return nn.Sequential(L(4, 12), nn.GLU(), L(6, 2)), ROWS, {6}


def in_place():
    net = nn.Sequential(L(4, 6), nn.ReLU(inplace=True), nn.Hardtanh(inplace=True), L(6, 2))
    return net, ROWS, {6}


def product():
    def does(m, x):
        return m.c(torch.einsum("bi,ij->bj", m.a(x), m.w).relu() + m.v @ m.a(x).mean(0))

    parts = {"a": L(4, 6), "c": L(5, 2), "w": nn.Parameter(torch.ones(6, 5))}
    return Net(does, v=nn.Parameter(torch.ones(5, 6)), **parts), ROWS, {5, 6}


def repeated():
    def does(m, x):
        return m.b(m.a(x).repeat(1, 3)) + m.c(m.a(x).repeat_interleave(2, 1))

    return Net(does, a=L(4, 5), b=L(15, 2), c=L(10, 2)), ROWS, {5}


def twice():
    def does(m, x):
        x = m.a(x)
        return m.b(torch.cat([x, x.relu()], 1))

    return Net(does, a=L(4, 5), b=L(10, 2)), ROWS, {5}


def attention():
    def does(m, x):
        x = m.i(x)
        x = x + m.t(x, x, x, need_weights=False)[0]
        return m.o(x)

    parts = {"i": L(4, 12), "t": nn.MultiheadAttention(12, 3, batch_first=True), "o": L(12, 2)}
    return Net(does, **parts), (2, 5, 4), {3, 12}


def attention_by_hand():
    def does(m, x):
        b, n, _ = x.shape
        q, k, v = m.qkv(x).reshape(b, n, 3, 2, 3).permute(2, 0, 3, 1, 4)
        a = (q @ k.transpose(-1, -2) / 3**0.5 + m.bias).softmax(-1)
        return m.o((a @ v).transpose(1, 2).reshape(b, n, 6))

    return Net(does, qkv=L(4, 18), bias=nn.Parameter(torch.ones(2, 5, 5)), o=L(6, 2)), (2, 5, 4), {
        2, 6}  # fmt: skip


def normed_queries():
    """Queries and keys are normalised inside each head by the same weights: the heads agree."""

    def does(m, x):
        b, n, _ = x.shape
        q, k, v = (p(x).view(b, n, 2, 4).transpose(1, 2) for p in (m.q, m.k, m.v))
        y = F.scaled_dot_product_attention(m.n(q), m.n(k), v)
        return m.o(y.transpose(1, 2).reshape(b, n, 8))

    return Net(does, q=L(3, 8), k=L(3, 8), v=L(3, 8), n=nn.LayerNorm(4), o=L(8, 2)), (2, 5, 3), {
        2, 4, 8}  # fmt: skip


def embedded():
    def does(m, x):
        return m.b(F.relu(m.a(m.e(x) + m.p)))

    parts = {"e": nn.Embedding(9, 6), "a": L(6, 4), "b": L(4, 2)}
    p = nn.Parameter(torch.ones(5, 6))
    return Net(does, p=p, **parts), torch.randint(0, 9, (2, 5)), {6, 4}


def tied():
    """Embedding and output layer are one parameter: the words stay, the features move."""

    def does(m, x):
        return m.o(m.e(x) + m.b(F.relu(m.a(m.e(x)))))

    net = Net(does, e=nn.Embedding(9, 6), a=L(6, 4), b=L(4, 6), o=L(6, 9, bias=False))
    net.o.weight = net.e.weight
    return net, torch.randint(0, 9, (2, 5)), {6, 4}


def shared():
    """One layer used twice: what it makes is what it reads."""

    def does(m, x):
        return m.c(m.b(torch.tanh(m.b(m.a(x)))))

    return Net(does, a=L(4, 6), b=L(6, 6), c=L(6, 2)), ROWS, {6}


def recurrent(kind, **options):
    def build():
        def does(m, x):
            return m.h(m.r(x)[0])

        ways = 2 if options.get("bidirectional") else 1
        width = options.get("proj_size", 6) * ways
        return Net(does, r=kind(4, 6, **options), h=L(width, 2)), (3, 2, 4), {
            6, options.get("proj_size", 6)}  # fmt: skip

    return build


def transformer():
    def does(m, x):
        return m.o(m.t(m.i(x), m.j(x)))

    t = nn.Transformer(8, 2, 1, 1, 6, batch_first=True)
    return Net(does, i=L(3, 8), j=L(3, 8), t=t, o=L(8, 2)), (2, 5, 3), {2, 8, 6}


BUILDERS = {f.__name__: f for f in (
    residual, shortcut, grouped, depthwise, multiplied, group_norm, one_group_norm, instance_norm,
    layer_norm, rms_norm, joined, split, shuffled, shuffle_operator, flattened, pooled, transposed,
    excited, swiglu, glu, in_place, product, repeated, twice, attention, attention_by_hand,
    normed_queries, embedded, tied, shared, transformer)}  # fmt: skip
BUILDERS |= {
    "lstm": recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "lstm_projected": recurrent(nn.LSTM, bidirectional=True, proj_size=3),
    "gru": recurrent(nn.GRU, num_layers=2, batch_first=True),
    "rnn": recurrent(nn.RNN),
}


# How many units may be multiplied by positive numbers, change sign, be mixed; none elsewhere.
BEYOND = {
    "residual": (11, 6, 6),
    "shortcut": (9, 5, 5),
    "grouped": (14, 0, 0),  # of the eight, two in every group are read by one column
    "group_norm": (12, 0, 0),
    "one_group_norm": (6, 0, 0),
    "instance_norm": (6, 0, 0),
    "rms_norm": (0, 6, 0),
    "joined": (9, 4, 4),
    "split": (9, 4, 4),
    "shuffled": (16, 16, 16),
    "flattened": (9, 0, 0),
    "pooled": (4, 4, 4),
    "excited": (8, 6, 0),
    "swiglu": (6, 6, 0),
    "twice": (5, 0, 0),
    "attention": (36, 36, 36),
    "attention_by_hand": (12, 12, 12),
    "normed_queries": (8, 12, 8),
    "embedded": (4, 0, 0),
    "tied": (4, 6, 0),
    "shared": (0, 6, 0),
    "transformer": (68, 56, 48),
}


def built(name, randomise):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, inputs, sizes = BUILDERS[name]()
        if isinstance(inputs, tuple):
            inputs = torch.randn(inputs, dtype=torch.float64)
    module = randomise(module)
    return module, inputs, sizes, symmetry.of(module, inputs)


@pytest.mark.parametrize("name", BUILDERS)
def test_it_has_the_units_it_must_have_and_the_function_stays(name, randomise, change):
    module, inputs, sizes, group = built(name, randomise)
    assert not group.unknown
    assert {block.size for block in group.blocks} == sizes
    assert group.free == group.hidden > 0
    state = module.state_dict()
    for seed in range(2):
        moved = group.act(group.sample(seed), state)
        assert change(module, state, moved, (inputs,)) < 1e-12
        assert any(not torch.equal(moved[k], state[k]) for k in state)
    beyond = tuple(getattr(group, kind).units for kind in ("rescaling", "flips", "mixing"))
    assert beyond == BEYOND.get(name, (0, 0, 0))
    for kind in ("rescaling", "flips", "mixing"):
        other = getattr(group, kind)
        moved = other.act(other.sample(1), state)
        assert change(module, state, moved, (inputs,)) < 1e-11, kind
    for block in group.blocks:  # each axis counts: left out, the function changes
        if block.within or any(b.within == block.name for b in group.blocks):
            continue
        turned = {block.name: torch.arange(block.size).roll(1)}
        for axis in block.axes:
            if axis.buffer:
                continue
            without = Block(block.name, block.size, tuple(a for a in block.axes if a != axis))
            broken = PermutationGroup((without,)).act(turned, state)
            assert change(module, state, broken, (inputs,)) > 1e-6, (block.name, axis)


@pytest.mark.parametrize("name", ["attention", "grouped", "group_norm", "swiglu", "repeated"])
def test_it_is_a_group(name, randomise):
    module, _, _, group = built(name, randomise)
    x = module.state_dict()

    def same(a, b):
        return all(torch.equal(a[k], b[k]) for k in x)

    p, q = group.sample(1), group.sample(2)
    assert same(group.act(group.identity(), x), x)
    assert same(group.act(group.compose(p, q), x), group.act(p, group.act(q, x)))
    assert same(group.act(group.invert(p), group.act(p, x)), x)


def test_it_agrees_with_the_chain_that_is_read_off_the_layers():
    net = nn.Sequential(C(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), C(4, 5, 3), nn.MaxPool2d(2),
                        nn.Flatten(), L(45, 7), nn.ReLU(), L(7, 3))  # fmt: skip
    derived = symmetry.of(net, torch.zeros(1, 1, 10, 10))
    read = symmetry.chain(net, ["0", "1", "3", "6", "8"])

    def told(group):
        return [(b.name, b.size, set(b.axes), b.site, b.within) for b in group.blocks]

    assert told(derived) == told(read)


def test_a_residual_network_is_aligned_back_to_itself(randomise):
    """With the derived group, matching undoes a permutation, in spite of 1 % of noise."""

    def does(m, x):
        x = F.relu(m.n(m.a(x)))
        for first, second in (("b", "c"), ("d", "e")):
            x = x + getattr(m, second)(F.relu(getattr(m, first)(x)))
        return m.o(x.mean((2, 3)))

    parts = {name: C(12, 12, 3, padding=1) for name in "bcde"}
    net = Net(does, a=C(3, 12, 3), n=nn.BatchNorm2d(12), o=L(12, 4), **parts)
    net = randomise(net)
    group = symmetry.of(net, torch.zeros(1, 3, 6, 6, dtype=torch.float64))
    assert [block.size for block in group.blocks] == [12, 12, 12]
    theta = params.of(net)
    moved = group.act(group.sample(3), theta)
    scale = 0.01 * float(params.norm(theta)) / float(params.norm(params.normal_like(theta, 0)))
    noisy = params.add(moved, params.scale(params.normal_like(theta, 0), scale))
    found = weight_matching(theta, noisy, group)
    back = group.act(found.permutation, moved)
    assert all(torch.equal(back[key], theta[key]) for key in theta)


# --- what must stay -----------------------------------------------------------------------------


def cumulated():
    def does(m, x):
        return m.b(m.a(x).cumsum(1))

    return Net(does, a=L(4, 5), b=L(5, 2)), "cumsum"


def padded():
    def does(m, x):
        return m.b(F.pad(m.a(x), (1, 0)))

    return Net(does, a=L(4, 5), b=L(6, 2)), "pad"


def sequence():
    """Units that are read as places by a convolution."""

    def does(m, x):
        return m.b(m.a(x).unsqueeze(1)).flatten(1)

    return Net(does, a=L(4, 5), b=nn.Conv1d(1, 1, 3)), "conv1d"


def unknown():
    def does(m, x):
        return m.b(torch.linalg.qr(m.a(x))[0])

    return Net(does, a=L(4, 5), b=L(5, 2)), "unknown operator linalg_qr"


def flipped():
    """A map added to its mirror image: units change places in pairs only, the middle one stays."""

    def does(m, x):
        x = m.a(x)
        return m.b((x + x.flip(1)).relu())

    return Net(does, a=L(4, 5), b=L(5, 2)), None


def constant_added():
    def does(m, x):
        return m.b(F.relu(m.a(x) + torch.arange(5)))

    return Net(does, a=L(4, 5), b=L(5, 2)), "add"


def written():
    """A part of a map is overwritten with other units, in place."""

    def does(m, x):
        y = torch.zeros(len(x), 5, dtype=x.dtype)
        y[:, 1:4] = m.a(x)[:, :3]
        return m.b(y)

    return Net(does, a=L(4, 5), b=L(5, 2)), None


def added_to_input():
    def does(m, x):
        return m.b(F.relu(x + m.a(x)))

    return Net(does, a=L(4, 4), b=L(4, 2)), "add"


def buffered():
    """A buffer that is no statistic: who acts on parameters alone would leave it behind."""

    def does(m, x):
        return m.b(F.relu(m.a(x) * m.scale))

    net = Net(does, a=L(4, 5), b=L(5, 2))
    net.register_buffer("scale", torch.arange(5.0))
    return net, "mul"


PINNED = {f.__name__: f for f in (
    cumulated, padded, sequence, unknown, flipped, constant_added, written, added_to_input,
    buffered)}  # fmt: skip


@pytest.fixture
def pinned(name, randomise):
    """A network some of whose units must stay, inputs, and the reason if it is to be told."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, reason = PINNED[name]()
        inputs = torch.randn(ROWS, dtype=torch.float64)
    return randomise(module), inputs, reason


@pytest.mark.parametrize("name", PINNED)
def test_what_an_operator_does_not_treat_alike_stays(name, pinned, change):
    """And must: the permutation that is refused would change the function."""
    module, inputs, reason = pinned
    if name == "buffered":
        with torch.no_grad():
            module.scale.copy_(torch.arange(5.0))
    group = symmetry.of(module, inputs)
    moved = {axis.parameter for block in group.blocks for axis in block.axes if axis.dim == 0}
    state = module.state_dict()
    assert change(module, state, group.act(group.sample(0), state), (inputs,)) < 1e-12
    if name in ("written", "flipped"):  # the two rows that nothing reads; the two pairs
        assert [block.size for block in group.blocks] == [2]
    else:
        assert "a.weight" not in moved
    told = " ".join(p.reason for p in group.pinned if p.parameter == "a.weight" and p.dim == 0)
    assert reason is None or reason in told
    size = module.a.out_features
    turned = dict(state)
    order = torch.arange(size).roll(1)
    for key, dim in (("a.weight", 0), ("a.bias", 0), ("b.weight", 1)):
        if turned[key].shape[dim] == size:
            turned[key] = turned[key].index_select(dim, order)
    assert change(module, state, turned, (inputs,)) > 1e-6


def test_the_reasons_are_told():
    def does(m, x):
        return m.b(torch.linalg.qr(m.a(x))[0])

    group = symmetry.of(Net(does, a=L(4, 5), b=L(5, 2)), torch.zeros(ROWS))
    assert group.unknown[0].startswith("linalg_qr at test_derived.py:")
    told = str(group)
    assert "unknown operator linalg_qr" in told and "an output of the network" in told
    assert "0 of 5 hidden channels may trade places" in told


def test_a_meta_module_is_enough_and_the_module_is_left_alone():
    with torch.device("meta"):
        net = nn.Sequential(L(4, 6), nn.Dropout(), nn.BatchNorm1d(6), nn.ReLU(), L(6, 2))
    before = {name: id(p) for name, p in net.named_parameters()}
    group = symmetry.of(net, torch.zeros(3, 4))
    assert [(b.name, b.size, len(b.axes)) for b in group.blocks] == [("0", 6, 7)]
    assert net.training and all(m.training for m in net.modules())
    assert before == {name: id(p) for name, p in net.named_parameters()}


# --- what cannot be followed --------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = L(6, 6)

    def forward(self, x):
        if x.sum() > 0:
            return self.inner(x)
        return x


def test_what_cannot_be_exported_is_told_with_its_line_and_the_way_out(randomise, change, capfd):
    net = nn.Sequential(L(4, 5), nn.ReLU(), L(5, 6), Branching(), L(6, 5), nn.ReLU(), L(5, 2))
    inputs = torch.randn(ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = randomise(net)
    with pytest.raises(ArgumentError, match=r"test_derived.py:\d+.*opaque=\('name',\)"):
        symmetry.of(net, inputs)
    assert capfd.readouterr() == ("", "")  # the exporter has more to say, which says no more
    group = symmetry.of(net, inputs, opaque=("3",))
    assert [(b.name, b.size) for b in group.blocks] == [("0", 5), ("4", 5)]
    assert any("border of an opaque submodule" in p.reason for p in group.pinned)
    state = net.state_dict()
    assert change(net, state, group.act(group.sample(0), state), (inputs,)) < 1e-12
    with pytest.raises(ArgumentError, match="opaque: found '9'"):
        symmetry.of(net, inputs, opaque=("9",))
    idle = Net(lambda m, x: m.a(x), a=L(4, 2), b=L(4, 2))
    with pytest.raises(ArgumentError, match="opaque: found 'b', which is not called"):
        symmetry.of(idle, torch.zeros(ROWS), opaque=("b",))


def test_parameters_of_another_width_are_told_with_their_block():
    group = symmetry.of(nn.Sequential(L(4, 6), nn.ReLU(), L(6, 2)), torch.zeros(ROWS))
    other = nn.Sequential(L(4, 7), nn.ReLU(), L(7, 2))
    with pytest.raises(ArgumentError, match="for block '0'"):
        group.act(group.identity(), dict(other.named_parameters()))


# --- beyond permutations --------------------------------------------------------------------------

KINDS = ("rescaling", "flips", "mixing")


@pytest.mark.parametrize("name", ["attention", "swiglu", "residual"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_of_them_is_a_group_and_every_axis_counts(name, kind, randomise, change):
    module, inputs, _, symmetries = built(name, randomise)
    group, x = getattr(symmetries, kind), module.state_dict()

    def same(a, b):
        return all(torch.allclose(a[k], b[k], rtol=0, atol=1e-12) for k in x)

    p, q = group.sample(1), group.sample(2)
    assert same(group.act(group.identity(), x), x)
    assert same(group.act(group.compose(p, q), x), group.act(p, group.act(q, x)))
    assert same(group.act(group.invert(p), group.act(p, x)), x)
    for number, block in enumerate(group.blocks):
        for left_out in block[-1]:
            axes = tuple(axis for axis in block[-1] if axis is not left_out)
            broken = list(group.blocks)
            broken[number] = (*block[:-1], axes)
            moved = type(group)(tuple(broken)).act(p, x)
            # A bias of the keys adds one number to all scores of a query, which softmax ignores.
            idle = left_out.parameter == "t.in_proj_bias" and getattr(left_out, "reads", False)
            assert (change(module, x, moved, (inputs,)) > 1e-6) != idle, (block[0], left_out)


def test_a_rotation_of_a_head_keeps_lengths_and_a_stretch_does_not(randomise, change):
    module, inputs, _, symmetries = built("attention", randomise)
    group, x = symmetries.mixing, module.state_dict()
    turned = group.act(group.sample(0, orthogonal=True), x)
    stretched = group.act(group.sample(0), x)
    assert change(module, x, turned, (inputs,)) < 1e-12
    name = "t.in_proj_weight"
    assert turned[name].norm() == pytest.approx(float(x[name].norm()), rel=1e-12)
    assert stretched[name].norm() != pytest.approx(float(x[name].norm()), rel=1e-3)


def test_what_is_rotated_by_its_place_is_not_mixed(randomise, change):
    """Rotary embeddings multiply each pair of channels by numbers of its own; values are free.

    Heads trade places still, for each is rotated as the others are.
    """

    def does(m, x):
        b, n, _ = x.shape
        q, k, v = (p(x).view(b, n, 2, 4).transpose(1, 2) for p in (m.q, m.k, m.v))
        angle = torch.arange(n, dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
        cos, sin = angle.cos(), angle.sin()
        q, k = (y * cos + torch.cat([-y[..., 2:], y[..., :2]], -1) * sin for y in (q, k))
        y = F.scaled_dot_product_attention(q, k, v)
        return m.o(y.transpose(1, 2).reshape(b, n, 8))

    net = randomise(Net(does, q=L(3, 8), k=L(3, 8), v=L(3, 8), o=L(8, 2)))
    x = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    group = symmetry.of(net, x)
    assert [(b.name, b.size, b.within) for b in group.blocks] == [("q", 2, None), ("v", 8, "q")]
    state = net.state_dict()
    assert change(net, state, group.act(group.sample(1), state), (x,)) < 1e-12
    assert [(name, count, size) for name, count, size, _ in group.mixing.blocks] == [("v", 2, 4)]
    assert group.rescaling.units == 4 + 8  # a number for each pair of queries, and each value


@pytest.mark.parametrize("name", PINNED)
def test_what_stays_stays_beyond_permutations_too(name, pinned, change):
    module, inputs, _ = pinned
    group, state = symmetry.of(module, inputs), module.state_dict()
    for kind in KINDS:
        other = getattr(group, kind)
        moved = other.act(other.sample(0), state)
        assert change(module, state, moved, (inputs,)) < 1e-12


def test_units_between_which_an_operator_tells_are_not_mixed(randomise, change):
    """One half is averaged over its places, the other is not: each half mixes on its own."""

    def does(m, x):
        u, v = m.a(x).chunk(2, 1)
        u = F.avg_pool2d(u, 3, 1, 1)
        return m.b(torch.cat([u, v], 1).mean((2, 3)))

    net = randomise(Net(does, a=C(3, 6, 3), b=L(6, 2)))
    x = torch.randn(IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    group, state = symmetry.of(net, x).mixing, net.state_dict()
    assert [block[1:3] for block in group.blocks] == [(2, 3)]
    assert change(net, state, group.act(group.sample(0), state), (x,)) < 1e-12


def test_elements_that_are_none_and_parameters_that_do_not_fit_are_told():
    net = nn.Sequential(L(4, 6), nn.ReLU(), L(6, 2))
    group, x = symmetry.of(net, torch.zeros(ROWS)), dict(net.named_parameters())
    with pytest.raises(ArgumentError, match="not positive"):
        group.rescaling.act({"0": -torch.ones(6)}, x)
    with pytest.raises(ArgumentError, match=r"element\['0'\]: found no entry"):
        group.rescaling.act({}, x)
    with pytest.raises(ArgumentError, match="for block '0'"):
        group.rescaling.act(
            group.rescaling.identity(), dict(nn.Sequential(L(4, 7)).named_parameters())
        )
    odd = nn.Sequential(L(4, 6), nn.Tanh(), L(6, 2))
    with pytest.raises(ArgumentError, match="expected signs"):
        symmetry.of(odd, torch.zeros(ROWS)).flips.act({"0": 2 * torch.ones(6)}, x)
    assert "6 units may be multiplied by positive numbers" in str(group)
    assert "6 units may be multiplied by -1" in str(symmetry.of(odd, torch.zeros(ROWS)))
