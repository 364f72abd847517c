r"""The bake-off: every method, in each of the four situations, with five seeds.

Two networks are merged and judged on the images of both their tasks together (see
:mod:`sokmerge.testbed.situations`). The rules are the same for all:

* What a method may see besides the two networks are ``EXAMPLES`` training images of each task, with
  labels only where it declares that it needs data. Test images decide nothing.
* The one number that many methods leave open, the length of the common step, is chosen from one
  grid by the accuracy on those examples. All other settings are the functions' defaults.
* Where two networks have no common start, a method that needs a base is given the initial weights
  of the first network.
* A method that makes permutations is followed by an average. A method that trains has the images,
  the rate and the epochs with which the two networks themselves were trained.
* Where a method gives one network for each task, it is told the task of each test image, and
  marked so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from sokmerge.probe.calibration import expected_calibration_error
from sokmerge.studies.bake_off import aggregation, alignment, ensembling, task_vectors
from sokmerge.studies.bake_off.lines import LINES
from sokmerge.studies.bake_off.scene import EXAMPLES, GRID, Outcome, Scene
from sokmerge.studies.study import Study
from sokmerge.testbed import situations

__all__ = ["ENTRIES", "EXAMPLES", "GRID", "LINES", "STUDY", "Outcome", "Scene", "judge", "rows"]

#: How each declared method enters, by the name of its function.
ENTRIES = {
    **ensembling.ENTRIES,
    **aggregation.ENTRIES,
    **task_vectors.ENTRIES,
    **alignment.ENTRIES,
}


def rows(seed: int) -> Iterator[dict[str, object]]:
    """Measure every line and every method in the four situations, with one of the zoo's seeds."""
    for name in situations.NAMES:
        scene = Scene(situations.situation(name, seed))
        for method, enter in (*LINES.items(), *ENTRIES.items()):
            began = time.process_time()
            outcome = enter(scene)
            seconds = time.process_time() - began
            if outcome is None:  # the zoo has no networks of the kind that it merges
                continue
            yield {
                "situation": name,
                "method": method,
                "line": int(method in LINES),
                "knows task": int(not callable(outcome.predict)),
                "passes": outcome.passes,
                **judge(outcome, scene),
                "seconds": seconds,
            }


def judge(outcome: Outcome, scene: Scene) -> dict[str, float]:
    """Return accuracy [%], loss [nats] and calibration error [%] on the test images."""
    if callable(outcome.predict):
        parts = [(outcome.predict, *scene.test)]
    else:
        parts = [(f, *own) for f, own in zip(outcome.predict, scene.own_tests, strict=True)]
    logits, targets = [], []
    for function, inputs, labels in parts:
        logits.append(_logits(function, inputs))
        targets.append(labels)
    said, truth = torch.cat(logits).double(), torch.cat(targets)
    probabilities = said.softmax(dim=1)
    return {
        "accuracy": 100 * (said.argmax(dim=1) == truth).double().mean().item(),
        "loss": F.cross_entropy(said, truth).item(),
        "calibration": 100 * float(expected_calibration_error(probabilities, truth)),
    }


def _logits(function, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([function(x) for x in inputs.split(1000)])


STUDY = Study("bake-off", rows, varying=("seconds",))
