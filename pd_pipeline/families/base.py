"""What a task family is, and the registry that finds it.

A family is a set of tasks that differ in a hidden goal: same observation, same actions, another reward. Write a
subclass of `Family` in a file of its own, name it in params.yaml by its entry point, and every stage works on it:

    families:
      my_family:
        environment:
          entry_point: my_module:MyFamily     # a file beside params.yaml, or an installed module
          ...                                 # the fields of MyFamily.Params

The built-in families need no entry point. Other ways to name an environment need no family class: its Gymnasium id
(`gymnasium: Reacher-v5`), or the entry point of its class or of a function that makes it, see `gymnasium_env`; and any
task of Meta-World's ML1 (`meta_world: push-v3`), see `ml1`.
"""

import importlib
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import gymnasium
import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from pd_pipeline.config import LONGEST_HORIZON, MOST_TASKS, PARAMS_FILE, Parameters, parse
from pd_pipeline.errors import PipelineError
from pd_pipeline.families.registry import BUILT_IN
from pd_pipeline.foreign import error_text, limited, module_file

Policy = Callable[[gymnasium.Env, np.ndarray, np.random.Generator], np.ndarray]
"""(environment, observation [d_s], generator) -> action [d_a] within the bounds; may look into the environment."""


@runtime_checkable
class BatchPolicy(Protocol):
    """A `Policy` that also acts in many environments at once, in fewer and larger operations."""

    def __call__(self, environment: gymnasium.Env, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Action (d_a,) in one environment."""

    def together(
        self,
        environments: Sequence[gymnasium.Env],
        observations: np.ndarray,
        rngs: Sequence[np.random.Generator],
    ) -> np.ndarray:
        """Actions (n, d_a) for observations (n, d_s), each with its own generator."""


class ExpertBars(NamedTuple):
    """What expert data must reach to be worth learning from; None: not asked for."""

    return_mean: float | None = None
    """At least this return, mean over tasks."""
    success_rate: float | None = None
    """At least this share of episodes with success."""
    early_ends: float | None = None
    """At most this share of episodes that end before the horizon."""


EntryPoint = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", max_length=200)]
"""`module:Class` or `module:function`."""

BY_NAME = {
    "gymnasium": "pd_pipeline.families.gymnasium_env:GymnasiumFamily",
    "meta_world": "pd_pipeline.families.ml1:ML1",
}
"""Field of an `environment` block that names an environment, in place of an entry point -> the family made of it."""


class FamilyParams(Parameters):
    """Parameters every family has."""

    entry_point: EntryPoint | None = None
    horizon: int = Field(gt=0, le=LONGEST_HORIZON)


class Family(ABC):
    """A set of tasks with a hidden goal.

    Tasks are numbered; `train_tasks` are seen in pre-training, `test_tasks` are the targets. Environments follow
    Gymnasium: `reset` and `step` return the observation WITHOUT the goal, `info["success"]` says whether the task is
    solved at this step.
    """

    Params: ClassVar[type[FamilyParams]]
    observation_size: int
    action_low: np.ndarray  # (d_a,) float32
    action_high: np.ndarray  # (d_a,) float32
    train_tasks: tuple[int, ...]
    test_tasks: tuple[int, ...]
    qualities: tuple[str, ...] = ("expert", "medium", "random")
    has_success: bool = True
    """Whether an episode can succeed; where not, there is only its return."""
    targets_are_trained: ClassVar[bool] = False
    """Whether the published split tests on tasks that it also trains on."""
    lanes: int = 1
    """Episodes that one process collects side by side; more than one pays where policies are `BatchPolicy`."""

    def __init__(self, name: str, params: FamilyParams):
        self.name = name
        self.params = params

    @property
    def horizon(self) -> int:
        """Steps after which an episode is truncated."""
        return self.params.horizon

    @property
    def action_size(self) -> int:
        """Width d_a of an action."""
        return len(self.action_low)

    @property
    def is_foreign(self) -> bool:
        """Whether code that is not of this package makes its environments."""
        return self.params.entry_point is not None and not self.params.entry_point.startswith("pd_pipeline.")

    @property
    def expert_bars(self) -> ExpertBars:
        """What the family's expert data must reach at this horizon."""
        return ExpertBars()

    @abstractmethod
    def goal(self, task: int) -> dict[str, Any]:
        """The hidden goal of a task, JSON-ready: goes into file metadata, never into an observation."""

    @abstractmethod
    def make(self, task: int) -> gymnasium.Env:
        """A fresh environment of one task."""

    def retarget(self, environment: gymnasium.Env, task: int) -> bool:
        """Make an environment of this family one of `task` from its next reset on; False where only `make` can."""
        return False

    @abstractmethod
    def behavior(self, description: dict[str, Any]) -> Policy:
        """The behaviour policy that one entry of `policies.json` (stage behavior_policies) describes."""

    @abstractmethod
    def default_behaviors(self) -> dict[str, dict[str, Any]]:
        """Quality -> description of its behaviour policy, for families whose policies need no training."""

    def versions(self) -> dict[str, str]:
        """Versions of what decides the trajectories (simulator, policies)."""
        return {"gymnasium": gymnasium.__version__, "numpy": np.__version__}

    def frame_pixels(self, environment: gymnasium.Env) -> np.ndarray | None:
        """An RGB picture [height, width, 3] uint8 of the present state, or None where the family has none."""
        return None


def split_tasks(
    tasks: Iterable[int], targets: Mapping[str, tuple[int, ...]], split: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(training tasks, targets) of a split; targets called `published` are trained on in no split."""
    held_out = {*targets["published"], *targets[split]}
    return tuple(task for task in tasks if task not in held_out), targets[split]


def entry_point(name: str, block: dict[str, Any]) -> str:
    """`module:Class` of a family, from its `environment` block or the built-in table."""
    ways = [way for way in ("entry_point", *BY_NAME) if block.get(way) is not None]
    if len(ways) > 1:
        raise PipelineError(f"{PARAMS_FILE}: families.{name}.environment: {' and '.join(ways)}: give one of them")
    found = BUILT_IN.get(name) if not ways else BY_NAME.get(ways[0], block[ways[0]])
    if not found:
        raise PipelineError(
            f"{PARAMS_FILE}: families.{name}: unknown family: built in are {', '.join(BUILT_IN)}; for your own, set "
            f"families.{name}.environment.entry_point to 'module:Class', or .gymnasium to the id of an environment, or "
            ".meta_world to a task of Meta-World"
        )
    try:
        return TypeAdapter(EntryPoint).validate_python(found)
    except ValidationError:
        raise PipelineError(
            f"{PARAMS_FILE}: families.{name}.environment.entry_point: {found!r} is not 'module:Class'"
        ) from None


def load_class(reference: str, root: Path, where: str) -> Any:
    """Import `module:Class`; modules beside params.yaml are found too. Raises PipelineError where it cannot."""
    module_name, class_name = reference.split(":")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        with limited(f"{where}: importing '{module_name}'"):
            module = importlib.import_module(module_name)
    except PipelineError:
        raise
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise PipelineError(f"{where}: cannot import '{module_name}': {error_text(error)}") from error
    if not hasattr(module, class_name):
        raise PipelineError(f"{where}: module '{module_name}' has no '{class_name}'")
    return getattr(module, class_name)


def load_family(name: str, block: dict[str, Any], root: Path) -> Family:
    """Build family `name` from its `environment` block of params.yaml."""
    where = f"{PARAMS_FILE}: families.{name}.environment"
    cls = load_class(entry_point(name, block), root, f"{where}.entry_point")
    if inspect.isfunction(cls) or (isinstance(cls, type) and issubclass(cls, gymnasium.Env)):
        from pd_pipeline.families.gymnasium_env import GymnasiumFamily

        cls = GymnasiumFamily
    if not (isinstance(cls, type) and issubclass(cls, Family)):
        raise PipelineError(f"{where}.entry_point: '{cls}' is neither a Family, a gymnasium.Env nor a function")
    params = parse(cls.Params, block, where)
    try:
        with limited(f"{where}: making '{cls.__name__}'"):
            family = cls(name, params)
        tasks = [*family.train_tasks, *family.test_tasks]
    except PipelineError:
        raise
    except (Exception, SystemExit) as error:
        raise PipelineError(f"{where}: '{cls.__name__}' cannot be made: {error_text(error)}") from error
    if len(tasks) > MOST_TASKS:
        raise PipelineError(f"{where}: {len(tasks):,} tasks: more than {MOST_TASKS:,} are not meant")
    if not cls.targets_are_trained and (overlap := set(family.train_tasks) & set(family.test_tasks)):
        raise PipelineError(f"{where}: tasks {sorted(overlap)} are both training and test tasks")
    if not family.train_tasks or not family.test_tasks:
        raise PipelineError(f"{where}: the family needs at least one training and one test task")
    return family


def source_files(name: str, block: dict[str, Any], root: Path) -> list[Path]:
    """The files of every entry point in a family's `environment` block, its own first: its stages depend on them."""
    files = []
    for module in dict.fromkeys(point.split(":")[0] for point in (entry_point(name, block), *_entry_points(block))):
        file = module_file(module, root)
        if file is None:
            raise PipelineError(f"{PARAMS_FILE}: families.{name}.environment: entry_point: no module '{module}'")
        files.append(file)
    return files


def _entry_points(block: Mapping[str, Any]) -> Iterator[str]:
    """Entry points inside a block, at any depth."""
    for name, value in block.items():
        if isinstance(value, Mapping):
            yield from _entry_points(value)
        elif name == "entry_point" and isinstance(value, str):
            yield value
