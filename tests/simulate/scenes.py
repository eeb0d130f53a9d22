"""Scenes and plays for the tests of the simulation: eight slots, a queue of sixteen, requests of four seconds."""

import random
from dataclasses import replace

from millrace_operator.autoscale import Bounds
from millrace_operator.simulate.figures import Figures, of_record
from millrace_operator.simulate.laws import Law, Millrace
from millrace_operator.simulate.play import Record, play
from millrace_operator.simulate.scene import Scene
from millrace_operator.simulate.traffic import Traffic, shaped

SEEDS = range(3)
SCENE = Scene(
    bounds=Bounds(minimum=1, maximum=40, target=6, slots=8),
    slots=8,
    capacity=24,
    timeout=30,
    seconds_per_request=4,
    cold_start=120,
    retries=0,
)


def load(shape: str, *, high: float, low: float = 2, seed: int = 0, minutes: float = 25) -> Traffic:
    return shaped(shape, low=low, high=high, seconds=60 * minutes, chance=random.Random(seed))


def played(traffic: Traffic, *, law: type[Law] = Millrace, seed: int = 0, scene: Scene = SCENE, **changes: float) -> Record:
    scene = replace(scene, **changes)  # type: ignore[arg-type]
    return play(scene, traffic, law(scene.bounds), chance=random.Random(seed))  # type: ignore[call-arg]


def figures(shape: str, *, high: float, law: type[Law] = Millrace, **changes: float) -> list[Figures]:
    """Of the same load for each seed."""
    return [of_record(played(load(shape, high=high, seed=seed), law=law, seed=seed, **changes)) for seed in SEEDS]
