r"""The empirical risk of a network as a function of its parameters: the oracle of every probe."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from sokmerge.errors import ArgumentError
from sokmerge.network import Network
from sokmerge.params import Params, host, wide
from sokmerge.probe.pooling import quicken

__all__ = ["EmpiricalRisk", "RiskValue"]

Loss = Callable[..., Tensor]

# One chunk's activations should stay near the cache of a CPU core, while a GPU wants much work at
# once. Measured on small CNNs: with 4,000 images at once a CPU needs up to three times as long.
_CHUNK = {"cpu": 128}
_CHUNK_ELSEWHERE = 4096
_CALIBRATION_EXAMPLES = 1024

# Points in one forward pass, by vmap. On a processor one at a time is faster (book/benchmarks.md);
# a GPU, which small networks leave idle, is expected to gain.
_TOGETHER = {"cpu": 1}
_TOGETHER_ELSEWHERE = 8


@dataclass(frozen=True)
class RiskValue:
    r"""The empirical risk at one point, with the uncertainty that comes from finite data.

    Attributes:
        loss: mean loss over the examples, in the unit of the loss (nats for cross-entropy).
        loss_stderr: its standard error, :math:`s/\sqrt n`.
        error: share of examples that are classified wrongly; NaN if this is no classification.
        error_stderr: its standard error.
        n: number of examples.
    """

    loss: float
    loss_stderr: float
    error: float
    error_stderr: float
    n: int

    @property
    def accuracy(self) -> float:
        """Share of examples that are classified rightly."""
        return 1 - self.error


class EmpiricalRisk:
    r"""The mean loss of a network on given data, as a function of the parameters.

    .. math:: L(\theta) = \frac1n \sum_{i=1}^n \ell\bigl(f_\theta(x_i), y_i\bigr)

    Call it with Params to get a :class:`RiskValue`. The data stay on one device; the work is
    done in chunks, in inference mode, images in ``channels_last`` order. If the network has
    BatchNorm layers, their statistics are estimated anew at every point it is called with.

    The module is read once, when the risk is made, and never changed: later changes to it have
    no effect, and its parameters are ignored in favour of those given.

    Args:
        module: the network, in evaluation mode.
        inputs: shape (n, ...).
        targets: shape (n, ...); class indices, shape (n,), for classification.
        loss: a function ``loss(outputs, targets, reduction="none")`` as in
            ``torch.nn.functional``; returns one value for each example.
        chunk: examples in one forward pass; by default chosen for the device.
        calibration: inputs on which BatchNorm statistics are estimated, all in one batch; by
            default up to 1,024 of ``inputs``, evenly spaced. Targets are not used. Give training
            inputs here when ``inputs`` are test data.
        device: where to compute; by default where ``inputs`` are.

    Raises:
        ArgumentError: the module is in training mode, the data are empty or disagree in number,
            or a label is out of range.

    >>> _ = torch.manual_seed(0)
    >>> net = nn.Linear(4, 3).eval()
    >>> risk = EmpiricalRisk(net, torch.randn(8, 4), torch.randint(3, (8,)))
    >>> zero = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    >>> round(risk(zero).loss, 4)  # log 3: all classes equally likely
    1.0986
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        *,
        loss: Loss = F.cross_entropy,
        chunk: int | None = None,
        calibration: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if len(inputs) == 0 or len(inputs) != len(targets):
            raise ArgumentError(
                "targets" if len(inputs) else "inputs",
                found=f"{len(inputs)} inputs and {len(targets)} targets",
                expected="equal numbers, at least one",
            )
        self.device = torch.device(device) if device is not None else inputs.device
        self.n = len(inputs)
        self.chunk = _CHUNK.get(self.device.type, _CHUNK_ELSEWHERE) if chunk is None else chunk
        if self.chunk < 1:
            raise ArgumentError("chunk", found=f"{chunk}", expected="at least one example")
        if self.device.type == "cpu":
            _keep_freed_memory()
        self._loss = loss
        self._network = Network(module, self.device)
        quicken(self._network.skeleton)
        self._inputs = _laid_out(inputs.to(self.device))
        self._targets = targets.to(self.device)
        self._calibration = self._to_calibrate(calibration)
        self._require_labels_in_range()

    def __call__(self, params: Params) -> RiskValue:
        """Return the risk at a point.

        Args:
            params: the parameters, on the risk's device; buffers may be among them.

        Raises:
            ArgumentError: keys, shapes, dtypes or device differ from the module's, or a parameter
                or the loss is NaN or infinite.
        """
        self.require_valid(params=params)
        losses, errors = self.per_example(params)
        require_finite_loss(losses, "params")
        statistics = (*mean_and_stderr(losses), *mean_and_stderr(errors))
        return RiskValue(*(float(host(statistic)) for statistic in statistics), n=self.n)

    def require_valid(self, **named: Params) -> None:
        """Raise unless the Params belong to this network, lie on its device and are finite."""
        self._network.require(**named)

    @property
    def network(self) -> Network:
        """The network as a function of its parameters."""
        return self._network

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the inputs and targets, chunk after chunk."""
        yield from zip(self._inputs.split(self.chunk), self._targets.split(self.chunk), strict=True)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each example of a chunk, a tensor of shape (examples,)."""
        losses = self._loss(outputs, targets, reduction="none")
        _require_one_each(losses, len(targets))
        return losses

    def state(self, params: Params) -> dict[str, Tensor]:
        """Return parameters and buffers at a point, BatchNorm statistics estimated there.

        The point may be in another floating dtype than the module; then all of its buffers have
        to be among the parameters, in that dtype.
        """
        calibration = self._calibration
        if calibration is not None and calibration.is_floating_point():
            calibration = calibration.to(next(iter(params.values())).dtype)
        return self._network.state(params, calibration)

    @torch.inference_mode()
    def per_example(self, params: Params) -> tuple[Tensor, Tensor]:
        """Return the loss and the error (0 or 1) of each example, two tensors of shape (n,).

        This is the hot loop of every probe. It does not wait for the device and does not check
        its argument. The errors are NaN where the outputs are not class scores.
        """
        point = {name: _laid_out(tensor) for name, tensor in params.items()}
        state = self.state(point)
        losses, errors = [], []

        def evaluate(function: nn.Module) -> None:
            for x, y in self.chunks():
                outputs = function(x)
                losses.append(self.losses(outputs, y))
                if _is_classification(outputs, y):
                    errors.append((outputs.argmax(1) != y).to(outputs.dtype))

        self._network.at(state, evaluate)
        every = torch.cat(losses)
        return every, torch.cat(errors) if errors else torch.full_like(every, math.nan)

    @torch.inference_mode()
    def per_example_at(
        self, points: Iterable[Params], together: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return losses and errors at several points, two tensors of shape (points, n).

        Like :meth:`per_example`, it does not wait for the device.

        Args:
            points: the points; they are taken up one group after the other.
            together: how many share a forward pass, by ``torch.func.vmap``; it takes as many
                times the memory. By default what is faster on the device: one on a processor,
                eight elsewhere. A network that vmap cannot take needs 1.

        Raises:
            ArgumentError: no point, or ``together`` below 1.
        """
        if together is None:
            together = _TOGETHER.get(self.device.type, _TOGETHER_ELSEWHERE)
        if together < 1:
            raise ArgumentError("together", found=f"{together}", expected="at least one point")
        rest, found = iter(points), []
        while group := list(itertools.islice(rest, together)):
            if len(group) == 1:
                losses, errors = self.per_example(group[0])
                found.append((losses[None], errors[None]))
            else:
                found.append(self._at_once(group))
        if not found:
            raise ArgumentError("points", found="none", expected="at least one")
        losses, errors = (torch.cat(part) for part in zip(*found, strict=True))
        return losses, errors

    def _at_once(self, points: Sequence[Params]) -> tuple[Tensor, Tensor]:
        """Return losses and errors at points that share each forward pass."""
        states = [self.state(point) for point in points]
        stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}

        def one(state: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            outputs = self._network(state, x)
            losses = self.losses(outputs, y)
            if not _is_classification(outputs, y):
                return losses, torch.full_like(losses, math.nan)
            return losses, (outputs.argmax(1) != y).to(outputs.dtype)

        every = vmap(one, in_dims=(0, None, None))
        found = [every(stacked, x, y) for x, y in self.chunks()]
        losses, errors = (torch.cat(part, 1) for part in zip(*found, strict=True))
        return losses, errors

    def _to_calibrate(self, given: Tensor | None) -> Tensor | None:
        if not self._network.keeps_statistics:
            return None
        if given is None:
            count = min(self.n, _CALIBRATION_EXAMPLES)
            given = self._inputs[torch.arange(count, device=self.device) * self.n // count]
        if len(given) < 2:
            raise ArgumentError(
                "calibration",
                found=f"{len(given)} inputs",
                expected="at least two, as BatchNorm needs a variance",
            )
        return _laid_out(given.to(self.device))

    @torch.inference_mode()
    def _require_labels_in_range(self) -> None:
        x, y = self._inputs[:1], self._targets[:1]
        outputs = self._network({**self._network.buffers, **self._network.parameters}, x)
        if not _is_classification(outputs, y):
            return
        low, high = host(torch.stack([self._targets.min(), self._targets.max()]))
        classes = outputs.shape[1]
        if low < 0 or high >= classes:
            raise ArgumentError(
                "targets",
                found=f"labels from {low:.0f} to {high:.0f}",
                expected=f"0 to {classes - 1}, as the network has {classes} outputs",
            )


def mean_and_stderr(samples: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the mean over the last dimension and its standard error :math:`s/\sqrt n`.

    Sums are taken in double precision where the device has it. A single sample has no spread:
    its standard error is NaN.
    """
    samples = wide(samples)
    n = samples.shape[-1]
    if n == 1:
        return samples[..., 0], torch.full_like(samples[..., 0], math.nan)
    return samples.mean(-1), samples.std(-1) / math.sqrt(n)


def require_finite_loss(losses: Tensor, name: str) -> None:
    """Raise if a loss is NaN or infinite. This waits for the device."""
    bad = host((~losses.isfinite()).sum())
    if not bad > 0:
        return
    raise ArgumentError(
        name,
        found=f"a NaN or infinite loss on {bad:.0f} of {losses.numel()} evaluations",
        expected="finite losses",
        do="The parameters are finite, so the network overflows there: stay closer to the "
        "trained points, or compute in a wider dtype.",
    )


def _require_one_each(losses: Tensor, examples: int) -> None:
    if losses.shape != (examples,):
        raise ArgumentError(
            "loss",
            found=f"values of shape {tuple(losses.shape)} for {examples} examples",
            expected=f"one value for each example, shape ({examples},)",
            do='Heed reduction="none", and average over other dimensions inside the loss.',
        )


def _keep_freed_memory() -> None:
    """Make the C library keep what a chunk frees for the next one.

    glibc hands free memory back to the system above a threshold, and asking for it again, page by
    page, can take a quarter of the time of a chunk. The threshold follows the largest block that
    was freed so far, up to 32 MB. The block is never written to, so it costs no memory.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _is_classification(outputs: Tensor, targets: Tensor) -> bool:
    return outputs.dim() == 2 and targets.dim() == 1 and not targets.is_floating_point()


def _laid_out(tensor: Tensor) -> Tensor:
    """Put images and kernels in the order in which convolutions and pooling are fastest.

    ``contiguous(memory_format=torch.channels_last)`` leaves a tensor with one channel as it is,
    since its two layouts are the same bytes; the network would then run on in the slow layout
    (max pooling takes ten times longer there). Strides say which one is meant.
    """
    if tensor.dim() != 4:
        return tensor
    _, c, h, w = tensor.shape
    strides = (h * w * c, 1, w * c, c)
    if tensor.stride() == strides:
        return tensor
    return torch.empty_strided(
        tensor.shape, strides, dtype=tensor.dtype, device=tensor.device
    ).copy_(tensor)
