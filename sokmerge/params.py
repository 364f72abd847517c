r"""The vector space of parameters.

A network's parameters are a point :math:`\theta` of a vector space. Here the point is a
:data:`Params`, a mapping from parameter name to tensor, and the functions of this module are its
algebra. They are pure: they never change what they are given.

Three rules hold throughout.

* Operands must match (:func:`require_matching`); nothing is broadcast.
* Entries that are not floating point (counters, index buffers) are not part of the vector space.
  A result takes them from the first operand.
* ``float16`` and ``bfloat16`` are accumulated in ``float32`` and rounded once, at the end.

The work is queued on the device of the tensors. Only :func:`host` waits for it, and so does what
is documented to wait because it calls :func:`host`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from sokmerge.errors import ArgumentError

__all__ = [
    "Params",
    "of",
    "require_matching",
    "require_finite",
    "combine",
    "add",
    "subtract",
    "scale",
    "lerp",
    "inner",
    "norm",
    "distance",
    "cosine",
    "normal_like",
    "stream",
    "entrywise",
    "to",
    "wide",
    "has_values",
    "host",
]

Params = Mapping[str, Tensor]


def of(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a module as Params: detached copies, without the buffers.

    BatchNorm's running statistics are buffers. They describe activations, not the point in
    parameter space, and a probe re-estimates them wherever it goes.

    >>> sorted(of(nn.Linear(2, 3)))
    ['bias', 'weight']
    """
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def require_matching(**named: Params) -> None:
    """Raise unless all Params have the same keys, shapes and dtypes and lie on one device.

    Args:
        **named: the Params, each under the name by which the caller knows it; the first one is
            the reference.

    Raises:
        ArgumentError: names the argument, the parameter, what was found and what was expected.

    >>> a = {"w": torch.zeros(2)}
    >>> require_matching(a=a, b={"w": torch.zeros(3)})
    Traceback (most recent call last):
    ...
    sokmerge.errors.ArgumentError: b['w']: found shape (3,); expected shape (2,), as in a. Only \
networks of one architecture share a parameter space.
    """
    (reference_name, reference), *others = named.items()
    if not reference:
        raise ArgumentError(reference_name, found="no parameters", expected="at least one tensor")
    device = next(iter(reference.values())).device
    for name, params in named.items():
        for key, tensor in params.items():
            if tensor.device != device:
                raise ArgumentError(
                    f"{name}[{key!r}]",
                    found=f"a tensor on {tensor.device}",
                    expected=f"all parameters on {device}",
                    do="Move one of them with sokmerge.params.to(params, device).",
                )
    for name, params in others:
        if params.keys() != reference.keys():
            missing = sorted(reference.keys() - params.keys())
            unknown = sorted(params.keys() - reference.keys())
            raise ArgumentError(
                name,
                found=f"keys missing {_shorten(missing)} and unknown {_shorten(unknown)}",
                expected=f"the keys of {reference_name}",
                do="Only networks of one architecture share a parameter space.",
            )
        for key, tensor in params.items():
            ours = reference[key]
            if tensor.shape != ours.shape:
                raise ArgumentError(
                    f"{name}[{key!r}]",
                    found=f"shape {tuple(tensor.shape)}",
                    expected=f"shape {tuple(ours.shape)}, as in {reference_name}",
                    do="Only networks of one architecture share a parameter space.",
                )
            if tensor.dtype != ours.dtype:
                raise ArgumentError(
                    f"{name}[{key!r}]",
                    found=f"dtype {tensor.dtype}",
                    expected=f"dtype {ours.dtype}, as in {reference_name}",
                    do="Convert one of them with sokmerge.params.to(params, dtype=...).",
                )


def require_finite(**named: Params) -> None:
    """Raise if any floating entry is NaN or infinite. This waits for the device, once for each.

    Raises:
        ArgumentError: names the argument and the parameter and counts its bad entries.

    >>> require_finite(a={"w": torch.tensor([1.0, float("nan")])})
    Traceback (most recent call last):
    ...
    sokmerge.errors.ArgumentError: a['w']: found 1 of 2 entries NaN or infinite; expected finite \
parameters. The run that made this network has diverged, or its file is damaged.
    """
    for name, params in named.items():
        floating = {k: t for k, t in params.items() if t.is_floating_point()}
        if not floating:
            continue
        counts = host(torch.stack([(~t.isfinite()).sum() for t in floating.values()]))
        for (key, tensor), bad in zip(floating.items(), counts, strict=True):
            if bad > 0:
                raise ArgumentError(
                    f"{name}[{key!r}]",
                    found=f"{bad:.0f} of {tensor.numel()} entries NaN or infinite",
                    expected="finite parameters",
                    do="The run that made this network has diverged, or its file is damaged.",
                )


def combine(coefficients: Sequence[float | Tensor], points: Sequence[Params]) -> dict[str, Tensor]:
    r"""Return the linear combination :math:`\sum_i c_i\,\theta_i`.

    Args:
        coefficients: one number for each point.
        points: Params that match.

    Raises:
        ArgumentError: the points do not match, or there is not one coefficient for each.

    >>> a, b = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}
    >>> combine([2, 3], [a, b])["w"]
    tensor([2., 3.])
    """
    if len(coefficients) != len(points) or not points:
        raise ArgumentError(
            "coefficients",
            found=f"{len(coefficients)} coefficients for {len(points)} points",
            expected="one coefficient for each point, and at least one point",
        )
    require_matching(**{f"points[{i}]": point for i, point in enumerate(points)})

    def total(*tensors: Tensor) -> Tensor:
        dtype = torch.promote_types(tensors[0].dtype, torch.float32)
        out = tensors[0].to(dtype) * coefficients[0]
        for coefficient, tensor in zip(coefficients[1:], tensors[1:], strict=True):
            out.add_(tensor.to(dtype) * coefficient)
        return out.to(tensors[0].dtype)

    return entrywise(total, *points)


def add(a: Params, b: Params) -> dict[str, Tensor]:
    """Return a + b."""
    require_matching(a=a, b=b)
    return combine([1, 1], [a, b])


def subtract(a: Params, b: Params) -> dict[str, Tensor]:
    """Return a - b, the step that leads from b to a."""
    require_matching(a=a, b=b)
    return combine([1, -1], [a, b])


def scale(a: Params, factor: float) -> dict[str, Tensor]:
    """Return factor * a."""
    return combine([factor], [a])


def lerp(a: Params, b: Params, alpha: float) -> dict[str, Tensor]:
    r"""Return the point :math:`(1-\alpha)\,a + \alpha\,b` of the line through a and b.

    Three cases are exact, in spite of rounding: ``alpha = 0`` gives a, ``alpha = 1`` gives b, and
    where a and b are equal so is every point between them.

    >>> a, b = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    >>> lerp(a, b, 0.25)["w"]
    tensor([0.2500, 0.2500])
    """
    require_matching(a=a, b=b)

    def between(x: Tensor, y: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        return torch.lerp(x.to(dtype), y.to(dtype), alpha).to(x.dtype)

    return entrywise(between, a, b)


def inner(a: Params, b: Params) -> Tensor:
    r"""Return the inner product :math:`\langle a, b\rangle`, a scalar in double precision.

    (In single precision on devices that have no other.)
    """
    require_matching(a=a, b=b)
    terms = [wide(t).mul(wide(b[k])).sum() for k, t in a.items() if t.is_floating_point()]
    if not terms:
        raise ArgumentError("a", found="no floating-point entry", expected="at least one")
    return torch.stack(terms).sum()


def norm(a: Params) -> Tensor:
    r"""Return the Euclidean norm :math:`\lVert a\rVert_2`, a scalar."""
    return inner(a, a).sqrt()


def distance(a: Params, b: Params) -> Tensor:
    r"""Return :math:`\lVert a-b\rVert_2`, a scalar."""
    require_matching(a=a, b=b)
    return norm({k: wide(t) - wide(b[k]) for k, t in a.items() if t.is_floating_point()})


def cosine(a: Params, b: Params) -> Tensor:
    r"""Return :math:`\langle a,b\rangle / (\lVert a\rVert\,\lVert b\rVert)`, a scalar.

    It is NaN when a or b is zero: the zero vector has no direction.
    """
    return inner(a, b) / (norm(a) * norm(b))


def normal_like(params: Params, seed: int) -> dict[str, Tensor]:
    """Return standard normal noise in the shape of ``params``.

    Each tensor has a stream of its own, made from the seed and the tensor's name and drawn on
    the CPU. So the noise does not depend on the device, on the order of the entries, or on
    which other entries there are.

    >>> p = {"w": torch.zeros(2, 2)}
    >>> bool((normal_like(p, seed=0)["w"] == normal_like(p, seed=0)["w"]).all())
    True
    """
    noise = {}
    for name, tensor in params.items():
        if not tensor.is_floating_point():
            noise[name] = tensor
            continue
        drawn = torch.randn(tensor.shape, generator=stream(f"{seed}:{name}"), dtype=torch.float32)
        noise[name] = drawn.to(device=tensor.device, dtype=tensor.dtype)
    return noise


def stream(key: str) -> torch.Generator:
    """Return a generator of random numbers on the CPU that is fixed by a text alone.

    >>> bool((torch.rand(3, generator=stream("a")) == torch.rand(3, generator=stream("a"))).all())
    True
    """
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def to(
    params: Params, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Return the Params on another device, the floating entries in another dtype."""
    return {
        name: t.to(device=device, dtype=dtype if t.is_floating_point() else None)
        for name, t in params.items()
    }


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in double precision, or in single precision on devices that lack it."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def has_values(tensor: Tensor) -> bool:
    """Say whether a tensor holds numbers, rather than only a shape, a dtype and a device.

    Meta and fake tensors hold none: with them a computation can be rehearsed for a device that is
    not there.
    """
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def host(tensor: Tensor) -> np.ndarray:
    """Bring a result to the host, as a float64 array. This waits for the device.

    What has no values (:func:`has_values`) arrives as NaN, for unknown. Whoever decides by such a
    number writes the comparison so that NaN takes the ordinary way, not the one to an error.
    """
    if not has_values(tensor):
        return np.full(tuple(tensor.shape), np.nan)
    return tensor.detach().cpu().double().numpy()


def entrywise(function: Callable[..., Tensor], *points: Params) -> dict[str, Tensor]:
    """Return what a function makes of corresponding tensors, entry by entry.

    Entries that are not floating point are taken from the first point.

    >>> a, b = {"w": torch.ones(2), "steps": torch.tensor(3)}, {"w": torch.ones(2)}
    >>> entrywise(torch.add, a, b)
    {'w': tensor([2., 2.]), 'steps': tensor(3)}
    """
    first = points[0]
    return {
        name: function(*(p[name] for p in points)) if tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    }


def _shorten(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    return str(names if len(names) <= most else [*names[:most], f"... {len(names) - most} more"])
