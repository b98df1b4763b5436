"""Shared parts of the Meta-World ML1 families: a robot arm, hidden goals, and a scripted policy that sees them."""

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal

import gymnasium
import numpy as np
from pydantic import Field

from pd_pipeline.families.base import ExpertBars, Family, FamilyParams, Policy, split_tasks
from pd_pipeline.families.descriptions import check_names

GOAL = slice(36, 39)  # the three goal components of the observation
OBJECT = (slice(4, 18), slice(22, 36))  # position and rotation of up to two objects, now and at the previous step
OBJECT_HEIGHT = 6  # index in the observation
LIFTED = 0.06  # metres; on the table it is 0.02
CAMERA_TARGET = (0.0, 0.65, 0.15)
GOAL_COLOR = np.array([0.1, 0.75, 0.3, 0.55], np.float32)


class MetaWorldParams(FamilyParams):
    """Parameters of every ML1 family."""

    horizon: int = Field(default=200, gt=0, le=500, description="500 in the papers, which is Meta-World's maximum")
    benchmark_seed: int = Field(default=0, ge=0, lt=2**31, description="seed of ML1, which determines the goals")
    mask_object: bool = Field(default=False, description="hide the objects, such as the puck")
    split: Literal["published", "validation"] = Field(
        default="published", description="validation: five of the training tasks are the targets, for choosing settings"
    )


class MetaWorldEnv(gymnasium.Env):
    """One task of a Meta-World ML1 benchmark with its goal hidden.

    ## Observation (39, float32, metres unless stated)
    | index | meaning |
    |---|---|
    | 0-2 | position of the gripper |
    | 3 | opening of the gripper, 0 to 1 |
    | 4-6, 7-10 | position and rotation (quaternion) of the object, a puck; zero if masked |
    | 11-17 | the same of a second object; zeros where there is none, or if masked |
    | 18-35 | the same eighteen numbers at the previous step |
    | 36-38 | the goal, always zero: ML1 hides it |

    ## Action
    Four numbers in [-1, 1]: the gripper's displacement along x, y, z and the force of its fingers.

    ## Reward, start, end
    Meta-World's "v2" reward, 10 at the goal; success within `success_radius` metres of it. Every reset of a task gives
    the same state, so a deterministic policy always repeats the same episode: vary the prompt, not the episode. No
    terminal state.
    """

    def __init__(self, environment: Any, mask_object: bool, success_radius: float):
        self.simulator = environment
        self._mask_object = mask_object
        self._success_radius = success_radius
        self._renderer: Any = None
        self._pushes: tuple[np.random.Generator, float, int, bool] | None = None
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (39,), np.float32)
        self.action_space = environment.action_space

    @property
    def goal(self) -> np.ndarray:
        """The hidden goal (3,), metres: only for scripted policies and images."""
        return self.simulator._target_pos

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset to the start of the task, which is always the same: Meta-World ignores the seed.

        For data collection, `options` perturb the arm randomly, with `seed`. `exploring_steps: n` first moves it in a
        random direction for up to n steps. `push_chance: p` and `push_steps: n` do so again with probability p after
        each step, for up to n steps. With `push_lifted` this happens only while the object is off the table, and the
        fingers keep the last action instead of 0. These moves are not steps of the episode: only the next observation
        shows their effect.
        """
        observation, _ = self.simulator.reset()
        options, rng = options or {}, np.random.default_rng(seed)
        chance = options.get("push_chance", 0.0)
        self._pushes = (rng, chance, options["push_steps"], options.get("push_lifted", False)) if chance else None
        if steps := options.get("exploring_steps", 0):
            observation = self._move(observation, rng, steps)
        return self._hide(observation), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step of 12.5 ms: 5 frames of 2.5 ms each."""
        observation, reward, terminated, truncated, info = self.simulator.step(action)
        if self._pushes is not None:
            rng, chance, steps, lifted = self._pushes
            if rng.random() < chance and (not lifted or observation[OBJECT_HEIGHT] > LIFTED):
                observation = self._move(observation, rng, steps, float(action[3]) if lifted else 0.0)
        return self._hide(observation), float(reward), terminated, truncated, {"success": info["success"] > 0}

    def _move(self, observation: np.ndarray, rng: np.random.Generator, most: int, fingers: float = 0.0) -> np.ndarray:
        """Move up to `most` steps in a random direction. Returns the observation afterwards."""
        drift = np.append(rng.uniform(-1.0, 1.0, 3), fingers).astype(np.float32)
        counted, self.simulator.curr_path_length = self.simulator.curr_path_length, 0  # it raises beyond 500 steps
        for _ in range(rng.integers(0, most + 1)):
            observation = self.simulator.step(drift)[0]
        self.simulator.curr_path_length = counted
        return observation

    def full_observation(self, observation: np.ndarray) -> np.ndarray:
        """A copy of `observation` that contains the goal, for the scripted policy."""
        shown = observation.astype(np.float64)
        shown[GOAL] = self.goal
        return shown

    def picture(self, height: int = 240, width: int = 320) -> np.ndarray:
        """Image of the scene (height, width, 3) uint8; a green ball of the success radius shows the hidden goal.

        Needs off-screen OpenGL, selected by MUJOCO_GL (egl, osmesa), which is read when mujoco is imported.
        """
        import mujoco

        if self._renderer is None:
            self.simulator.model.site("goal").rgba[3] = 0.0  # Meta-World's own marker is as red as the arm
            self._renderer = mujoco.Renderer(self.simulator.model, height, width)
        camera = mujoco.MjvCamera()  # Meta-World's corner cameras are upside down
        camera.lookat[:], camera.distance, camera.azimuth, camera.elevation = CAMERA_TARGET, 1.25, 130.0, -24.0
        self._renderer.update_scene(self.simulator.data, camera)
        scene = self._renderer.scene
        ball = (
            mujoco.mjtGeom.mjGEOM_SPHERE,
            np.full(3, self._success_radius),
            self.goal,
            np.eye(3).ravel(),
            GOAL_COLOR,
        )
        mujoco.mjv_initGeom(scene.geoms[scene.ngeom], *ball)
        scene.ngeom += 1
        for costly in (
            mujoco.mjtRndFlag.mjRND_SHADOW,
            mujoco.mjtRndFlag.mjRND_REFLECTION,
        ):  # most of the rendering time
            scene.flags[costly] = 0
        return self._renderer.render()

    def close(self) -> None:
        """Free the simulator and the renderer."""
        if self._renderer is not None:
            self._renderer.close()
        self.simulator.close()

    def _hide(self, observation: np.ndarray) -> np.ndarray:
        hidden = observation.astype(np.float32)
        hidden[GOAL] = 0.0
        if self._mask_object:
            for part in OBJECT:
                hidden[part] = 0.0
        return hidden


class MetaWorld(Family):
    """ML1 of one Meta-World task, the first `tasks` training tasks of the benchmark seed.

    Tasks come from the class API, since the environment registered with Gymnasium uses the test split; `test_tasks` of
    a seed are the `train_tasks` of the next one and are not used. Behaviour: Meta-World's scripted policy, which sees
    the goal, scaled by `gain`, with Gaussian noise of standard deviation `noise`, clipped to the bounds; the clipped
    action is stored.
    """

    params: MetaWorldParams
    environment: str
    """Meta-World's name of the task."""
    tasks: range
    """The tasks used, of the benchmark's fifty training tasks."""
    targets: Mapping[str, tuple[int, ...]]
    """Split -> its target tasks; those of `published` are not training tasks in any split."""
    success_radius: float  # metres
    observation_size = 39
    action_low = np.full(4, -1.0, np.float32)
    action_high = np.full(4, 1.0, np.float32)

    def __init__(self, name: str, params: MetaWorldParams):
        super().__init__(name, params)
        self.train_tasks, self.test_tasks = split_tasks(self.tasks, self.targets, params.split)
        self._first: dict[int, Any] = {}
        """Task -> a simulator at the start of an episode, which never acts."""

    @abstractmethod
    def script(self) -> Any:
        """Create the scripted policy, with `get_action(observation with the goal)`."""

    @property
    def expert_bars(self) -> ExpertBars:
        """The script solves every task, but noise can make a few episodes fail."""
        return ExpertBars(success_rate=0.95)

    @cached_property
    def _benchmark(self) -> Any:
        import metaworld  # takes half a second, and only simulation needs it

        return metaworld.ML1(self.environment, seed=self.params.benchmark_seed)

    @cached_property
    def _simulator(self) -> Any:
        """Meta-World's class for the environment, made faster."""
        from pd_pipeline.families.sawyer import lean  # MuJoCo takes a while to import, and only simulation needs it

        return lean(self._benchmark.train_classes[self.environment])

    @cached_property
    def _goals(self) -> list[list[float]]:
        simulator = self._simulator()  # one for all tasks
        goals = []
        for task in self._benchmark.train_tasks[: len(self.tasks)]:
            simulator.set_task(task)
            simulator.reset()
            goals.append([float(x) for x in simulator._target_pos])
        return goals

    def goal(self, task: int) -> dict[str, Any]:
        """Position of the goal in metres."""
        return {"position": self._goals[task]}

    def make(self, task: int) -> gymnasium.Env:
        """The simulator set to `task`."""
        if task not in self._first:  # to copy its scene and move its arm to the start takes thirty times as long
            simulator = self._simulator()
            simulator.set_task(self._benchmark.train_tasks[task])
            simulator.reset()  # `_target_pos` is set by the first reset
            self._first[task] = simulator
        return MetaWorldEnv(self._first[task].twin(), self.params.mask_object, self.success_radius)

    def behavior(self, description: dict[str, Any]) -> Policy:
        """The scripted policy with access to the goal, weakened by the gain and noise in `description`."""
        check_names(description, ("gain", "noise", "random", "reset"))
        script = self.script()

        def act(environment: gymnasium.Env, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            if description.get("random"):
                return rng.uniform(self.action_low, self.action_high).astype(np.float32)
            shown = environment.unwrapped.full_observation(observation)  # type: ignore[attr-defined]
            action = description["gain"] * np.clip(script.get_action(shown), -1.0, 1.0)
            action = action + description["noise"] * rng.standard_normal(4)
            return np.clip(action, self.action_low, self.action_high).astype(np.float32)

        return act

    def frame_pixels(self, environment: gymnasium.Env) -> np.ndarray:
        """The arm, the table and the goal."""
        return environment.unwrapped.picture()  # type: ignore[attr-defined]

    def versions(self) -> dict[str, str]:
        """Adds Meta-World and MuJoCo, which affect the trajectories too."""
        return super().versions() | {"metaworld": version("metaworld"), "mujoco": version("mujoco")}
