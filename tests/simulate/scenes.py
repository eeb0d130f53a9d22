"""Scenes and plays for the tests of the simulation: eight slots, a queue of sixteen, requests of four seconds."""

import random
from collections.abc import Callable
from dataclasses import replace

from millrace_operator.autoscale import Bounds
from millrace_operator.simulate.laws import Law, Millrace
from millrace_operator.simulate.play import Record, play
from millrace_operator.simulate.scene import Scene
from millrace_operator.simulate.traffic import Traffic, shaped

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


def played(
    traffic: Traffic,
    *,
    law: Callable[[Bounds], Law] = Millrace,
    seed: int = 0,
    cold_start: float = SCENE.cold_start,
    retries: int = SCENE.retries,
) -> Record:
    scene = replace(SCENE, cold_start=cold_start, retries=retries)
    return play(scene, traffic, law(scene.bounds), chance=random.Random(seed))
