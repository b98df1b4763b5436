"""Environments, policies and families that fail in the ways of user code. Imported by their entry points."""

import os
import time
from typing import Any

import gymnasium
import numpy as np

from pd_pipeline.families.cheetah_dir import CheetahDir
from tests.families.custom_family import Line, LineEnv, LineParams


class Raising(LineEnv):
    """Its data is not where it looks."""

    def __init__(self, goal: float):
        raise FileNotFoundError("meshes/arm.xml")


class Hanging(LineEnv):
    """Waits for a simulator that does not answer."""

    def __init__(self, goal: float):
        time.sleep(600)


class Crashing(LineEnv):
    """Ends its process, as a fault in compiled code does."""

    def __init__(self, goal: float):
        os._exit(3)


class RaisingLater(LineEnv):
    """Can be made, but not reset."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        raise RuntimeError("no license")


def two_numbers(environment: gymnasium.Env, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A policy for a wider environment."""
    return np.zeros(2, np.float32)


class LineWithoutTaskThree(Line):
    """A family class whose third task cannot be made."""

    params: LineParams

    def make(self, task: int) -> gymnasium.Env:
        return LineEnv({0: 0.0, 1: 0.25, 2: 0.5}[task])


class OwnCheetah(CheetahDir):
    """A user's family whose policies are trained by its first stage."""
