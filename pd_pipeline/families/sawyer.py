"""Meta-World's environments as they are, bit for bit, in less than half the time.

A step of Meta-World spends three quarters of its time in Python: names looked up in the scene, NumPy functions on three
numbers. `lean` derives a class that looks up names once, compiles a scene once for all its instances, and returns to
the saved start of an episode instead of simulating its way there. Physics and rewards stay Meta-World's and MuJoCo's.
"""

import copy
import math
from functools import cache
from types import FunctionType
from typing import Any

import mujoco
import numpy as np

FINGERS_APART = 0.1  # metres between the fingers of an open gripper
HAND_ROTATION = np.array([1.0, 0.0, 1.0, 0.0])
POSE = 18  # numbers in an observation that describe one step: hand 3, gripper 1, objects 14
EVERYTHING = mujoco.mjtState.mjSTATE_INTEGRATION
"""What a step of MuJoCo depends on, so that steps from a saved state repeat to the bit."""


def seen_in(value: np.ndarray, one: Any, other: Any) -> np.ndarray:
    """What `value` is in `other`, if it is a view into the MjData `one`; else a copy."""
    if value.base is not None and value.size:
        for name in _arrays():
            whole = getattr(one, name)
            first = (value.ctypes.data - whole.ctypes.data) // value.itemsize
            if whole.dtype == value.dtype and 0 <= first < whole.size:
                return getattr(other, name).reshape(-1)[first : first + value.size].reshape(value.shape)
    return value.copy()


@cache
def _arrays() -> tuple[str, ...]:
    """Names of the arrays of an MjData."""
    some = mujoco.MjData(mujoco.MjModel.from_xml_string("<mujoco/>"))
    return tuple(name for name in dir(some) if isinstance(getattr(some, name), np.ndarray))


def lean(base: Any) -> Any:
    """A faster subclass of `base`, a task class of Meta-World, whose instances share a compiled scene.

    Compiling a scene from XML takes ten times as long as copying it; each instance has its own copy, to which it
    writes such things as the place of the goal, and which its twins share.
    """
    compiled: list[Any] = []
    observed = base._get_quat_objects  # Meta-World's function for the task, with another `Rotation` than SciPy's
    rotations = FunctionType(observed.__code__, {**observed.__globals__, "Rotation": Rotation})

    class Simulator(base):
        def _initialize_simulation(self) -> tuple[Any, Any]:
            if not compiled:
                compiled.append(super()._initialize_simulation()[0])
            model = copy.copy(compiled[0])
            data = mujoco.MjData(model)
            self._start: tuple[np.ndarray, np.ndarray] | None = None
            self._shares = False
            self._view(data)
            return model, data

        def _view(self, data: Any) -> None:
            """Keep views into `data`, which MuJoCo writes in place."""
            self._bodies: dict[str, np.ndarray] = {}
            self._mocap_pos, self._mocap_quat, self._ctrl = data.mocap_pos, data.mocap_quat, data.ctrl
            self._hand, self._right, self._left = (data.body(n).xpos for n in ("hand", "rightclaw", "leftclaw"))
            self._tips = data.site("rightEndEffector").xpos, data.site("leftEndEffector").xpos
            self._pads = data.geom("leftpad_geom").id, data.geom("rightpad_geom").id

        def twin(self) -> Any:
            """Another instance at the start of the same episode, for steps and resets alone.

            It shares the scene: only a new task writes to that.
            """
            assert self._start is not None, "reset it first"
            other = object.__new__(type(self))  # what Meta-World pickles is less
            other.__dict__.update(self.__dict__)
            other._shares, other.data = True, mujoco.MjData(self.model)
            for name, value in vars(self).items():
                if isinstance(value, np.ndarray):  # Meta-World keeps some places as views, which follow a body
                    setattr(other, name, seen_in(value, self.data, other.data))
            other.mujoco_renderer = None
            other._view(other.data)
            other.reset()
            return other

        def set_task(self, task: Any) -> None:
            self._start = None
            if self._shares:
                self.model: Any = copy.copy(self.model)
                self._shares, self.data = False, mujoco.MjData(self.model)
                self._view(self.data)
            super().set_task(task)
            self._low, self._high = self.sawyer_observation_space.low, self.sawyer_observation_space.high

        def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Any]:
            """Meta-World moves the arm to its start in 100 simulated steps, the same for every episode of a task."""
            if self._start is None:
                observation, info = super().reset(seed, options)
                state = np.empty(mujoco.mj_stateSize(self.model, EVERYTHING))
                mujoco.mj_getState(self.model, self.data, state, EVERYTHING)
                self._start = state, observation.copy()
                return observation, info
            state, observation = self._start
            mujoco.mj_setState(self.model, self.data, state, EVERYTHING)
            mujoco.mj_forward(self.model, self.data)  # where bodies are, for images
            mujoco.mj_setState(self.model, self.data, state, EVERYTHING)  # the line above changed its warm start
            self.curr_path_length = 0
            self._prev_obs = observation[:POSE].copy()
            return observation.copy(), {}

        def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
            if self.curr_path_length >= self.max_path_length:
                raise ValueError(f"the episode has {self.max_path_length} steps, Meta-World's maximum: reset it")
            self._mocap_pos += np.clip(action[:3], -1, 1) * self.action_scale
            hand = self._mocap_pos[0]
            np.clip(hand, self.mocap_low, self.mocap_high, out=hand)
            self._mocap_quat[:] = HAND_ROTATION
            self._ctrl[0], self._ctrl[1] = action[-1], -action[-1]
            mujoco.mj_step(self.model, self.data, nstep=self.frame_skip)
            mujoco.mj_rnePostConstraint(self.model, self.data)
            mujoco.mj_forward(self.model, self.data)  # also moves sites to where the step has brought them
            self.curr_path_length += 1
            seen = self._get_obs()
            np.clip(seen, self._low, self._high, out=seen)
            self._last_stable_obs = seen
            reward, info = self.evaluate_state(seen, action)
            return seen.copy(), reward, False, self.curr_path_length == self.max_path_length, info

        def get_body_com(self, body_name: str) -> np.ndarray:
            view = self._bodies.get(body_name)
            if view is None:
                view = self._bodies[body_name] = super().get_body_com(body_name)
            return view

        @property
        def tcp_center(self) -> np.ndarray:
            right, left = self._tips
            return (right + left) / 2.0

        def _get_quat_objects(self) -> np.ndarray:
            return rotations(self)

        def _get_curr_obs_combined_no_goal(self) -> np.ndarray:
            pose = np.zeros(POSE)
            pose[:3] = self._hand
            apart = self._right - self._left
            pose[3] = min(max(math.sqrt(apart.dot(apart)) / FINGERS_APART, 0.0), 1.0)
            positions, rotations = self._get_pos_objects(), self._get_quat_objects()
            for i in range(len(positions) // 3):
                pose[4 + 7 * i : 7 + 7 * i] = positions[3 * i : 3 * i + 3]
                pose[7 + 7 * i : 11 + 7 * i] = rotations[4 * i : 4 * i + 4]
            return pose

        def _get_obs(self) -> np.ndarray:
            seen = np.zeros(2 * POSE + 3)
            seen[:POSE] = pose = self._get_curr_obs_combined_no_goal()
            seen[POSE : 2 * POSE] = self._prev_obs
            if not self._partially_observable:
                seen[2 * POSE :] = self._get_pos_goal()
            self._prev_obs = pose
            return seen

        def touching_object(self, object_geom_id: int) -> bool:
            contacts = self.data.contact
            forces = [0.0, 0.0]
            for geoms, row in zip(contacts.geom.tolist(), contacts.efc_address.tolist(), strict=True):
                if object_geom_id in geoms:
                    for side, pad in enumerate(self._pads):
                        if pad in geoms:
                            forces[side] += self.data.efc_force[row]
            return forces[0] > 0 and forces[1] > 0

    return Simulator


class Rotation:
    """What Meta-World uses of SciPy's class, which takes a hundred microseconds to check a single matrix."""

    def __init__(self, matrix: np.ndarray):
        self._matrix = matrix

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> "Rotation":
        """The rotation of a matrix (3, 3), which must be orthogonal, as MuJoCo's are."""
        return cls(matrix)

    def as_quat(self) -> np.ndarray:
        """The unit quaternion (x, y, z, w), equal to SciPy's to the bit."""
        return quaternion(self._matrix)


def quaternion(matrix: np.ndarray) -> np.ndarray:
    """The rotation `matrix` (3, 3) as a unit quaternion (x, y, z, w), with SciPy's operations in SciPy's order.

    Which of the three diagonal numbers and the trace is largest decides the formula, so that nothing is divided by
    nearly zero.
    """
    (a, b, c), (d, e, f), (g, h, i) = matrix.tolist()
    trace = a + e + i
    largest = max(a, e, i, trace)
    if largest == a:
        parts = 1 - trace + 2 * a, d + b, g + c, h - f
    elif largest == e:
        parts = d + b, 1 - trace + 2 * e, h + f, c - g
    elif largest == i:
        parts = g + c, f + h, 1 - trace + 2 * i, d - b
    else:
        parts = h - f, c - g, d - b, 1 + trace
    x, y, z, w = parts
    norm = math.sqrt(x * x + y * y + z * z + w * w)
    return np.array([x / norm, y / norm, z / norm, w / norm])
