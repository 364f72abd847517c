"""The device a session computes on."""

from __future__ import annotations

import os

import torch

from sokmerge.errors import ArgumentError

__all__ = ["device"]


def device() -> torch.device:
    """Return the device to compute on.

    The environment variable ``SOKMERGE_DEVICE`` decides where it is set; otherwise the GPU where
    there is one, and the CPU where there is none.

    Raises:
        ArgumentError: ``SOKMERGE_DEVICE`` names no device that is present here.

    >>> device().type in {"cpu", "cuda"}
    True
    """
    chosen = os.environ.get("SOKMERGE_DEVICE")
    if not chosen:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(
            "SOKMERGE_DEVICE",
            found=repr(chosen),
            expected="a device that is present, such as 'cpu' or 'cuda:0'",
            do="Unset it to let the machine decide.",
        ) from error
