"""What every test shares: one thread, the devices that are present, reproducible properties."""

from __future__ import annotations

import os
import signal

# A shell that starts this in the background makes it deaf to Ctrl-C, and so every process that it
# starts in turn; the tests that press Ctrl-C need processes that hear it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before torch is imported: afterwards the number of threads no longer follows the environment.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("MPLBACKEND", "agg")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]

# Examples are derived from the test, not drawn: a test that passed passes again.
settings.register_profile("book", derandomize=True, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "book"))


def devices() -> list[torch.device]:
    """The processor, and one of each accelerator that is present."""
    found = [torch.device("cpu")]
    if torch.cuda.is_available():
        found.append(torch.device("cuda", 0))
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return found


@pytest.fixture(params=devices(), ids=str)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that is present, in turn."""
    return request.param


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
