"""The lines that methods are held against: single networks below, joint training above."""

from __future__ import annotations

from sokmerge.studies.bake_off.scene import Outcome, Scene
from sokmerge.testbed import training

__all__ = ["LINES"]


def best_single_network(scene: Scene) -> Outcome:
    """The one of the two networks that is better on the examples of both tasks."""
    return scene.at(scene.models[scene.better])


def start(scene: Scene) -> Outcome:
    """The common start, or the initial weights of the first network."""
    return scene.at(scene.base)


def joint_training(scene: Scene) -> Outcome:
    """One network, trained as the first one was, on all that the two have seen."""
    return scene.at(training.fine_tune(scene.told.joint, scene.starts[0]))


LINES = {f.__name__.replace("_", " "): f for f in (best_single_network, start, joint_training)}
"""What the methods are held against, by name."""
