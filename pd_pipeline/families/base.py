"""The base class of task families, and how a family is loaded.

A family is a set of tasks with the same observations and actions that differ in a hidden goal, and so in their reward.
Write a subclass of `Family` in its own file and name its entry point in params.yaml; every stage then works on it:

    families:
      my_family:
        environment:
          entry_point: my_module:MyFamily     # a file next to params.yaml, or an installed module
          ...                                 # the fields of MyFamily.Params

The built-in families need no entry point. An environment can also be used without a family class: by its Gymnasium id
(`gymnasium: Reacher-v5`), by the entry point of its class or of a function that creates it (see `gymnasium_env`), or as
a task of Meta-World's ML1 (`meta_world: push-v3`, see `ml1`). Without an environment, a folder of trajectories is a
family too (`data: data/imported/my_robot`, see `recorded`).
"""

import importlib
import inspect
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import gymnasium
import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from pd_pipeline.config import MAX_HORIZON, MAX_TASKS, PARAMS_FILE, Parameters, ParamsFile
from pd_pipeline.errors import PipelineError
from pd_pipeline.families.registry import BUILT_IN
from pd_pipeline.foreign import error_text, module_file, time_limit
from pd_pipeline.parsing import parse

Policy = Callable[[gymnasium.Env, np.ndarray, np.random.Generator], np.ndarray]
"""(environment, observation [d_s], generator) -> action [d_a] within the bounds; may read the environment's state."""


@runtime_checkable
class BatchPolicy(Protocol):
    """A `Policy` that can also act in many environments at once, with fewer and larger operations."""

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
    """Minimum quality of expert data; None: not checked."""

    return_mean: float | None = None
    """Minimum return, averaged over tasks."""
    success_rate: float | None = None
    """Minimum share of episodes with success."""
    early_ends: float | None = None
    """Maximum share of episodes that end before the horizon."""


EntryPoint = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", max_length=200)]
"""`module:Class` or `module:function`."""

BY_NAME = {
    "gymnasium": "pd_pipeline.families.gymnasium_env:GymnasiumFamily",
    "meta_world": "pd_pipeline.families.ml1:ML1",
    "data": "pd_pipeline.families.recorded:RecordedFamily",
}
"""Field of an `environment` block that stands in for an entry point -> the family class for it."""


class FamilyParams(Parameters):
    """Parameters of every family."""

    entry_point: EntryPoint | None = None
    horizon: int = Field(gt=0, le=MAX_HORIZON)


class Family(ABC):
    """A set of tasks with a hidden goal.

    Tasks are numbered; `train_tasks` are seen in pre-training, `test_tasks` are the targets. Environments follow
    Gymnasium: `reset` and `step` return the observation WITHOUT the goal, `info["success"]` is True if the task is
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
    """Whether episodes can succeed; otherwise they only have a return."""
    targets_are_trained: ClassVar[bool] = False
    """Whether the targets of the published split are also training tasks."""
    is_recorded: ClassVar[bool] = False
    """Whether it has no simulator: its trajectories are files of the user, and methods are scored offline. True of
    `RecordedFamily` alone, and of what is derived from it."""
    lanes: int = 1
    """Episodes that one process collects in parallel; more than one is faster with a `BatchPolicy`."""

    def __init__(self, name: str, params: FamilyParams):
        self.name = name
        self.params = params
        self.root = Path()
        """The folder of params.yaml, set after creation."""

    @property
    def recordings(self) -> dict[str, list[Path]]:
        """Quality -> the user's trajectory files; empty for a family with a simulator."""
        return {}

    def simulates(self, tasks: Collection[int]) -> bool:
        """Whether a simulator knows all these tasks; a new target that only a user's files know has none."""
        return not self.is_recorded and {*tasks} <= {*self.train_tasks, *self.test_tasks}

    @property
    def horizon(self) -> int:
        """Number of steps after which an episode is truncated."""
        return self.params.horizon

    @property
    def action_size(self) -> int:
        """Width d_a of an action."""
        return len(self.action_low)

    @property
    def is_foreign(self) -> bool:
        """Whether code outside this package creates its environments."""
        return self.params.entry_point is not None and not self.params.entry_point.startswith("pd_pipeline.")

    @property
    def expert_bars(self) -> ExpertBars:
        """Minimum quality of the family's expert data at this horizon."""
        return ExpertBars()

    @abstractmethod
    def goal(self, task: int) -> dict[str, Any]:
        """The hidden goal of a task, as JSON values: stored in file metadata, never in an observation."""

    @abstractmethod
    def make(self, task: int) -> gymnasium.Env:
        """Create an environment of one task."""

    def retarget(self, environment: gymnasium.Env, task: int) -> bool:
        """Switch an environment of this family to `task` from its next reset on. Returns False if not supported."""
        return False

    @abstractmethod
    def behavior(self, description: dict[str, Any]) -> Policy:
        """The behaviour policy described by one entry of `policies.json` (stage behavior_policies)."""

    @abstractmethod
    def default_behaviors(self) -> dict[str, dict[str, Any]]:
        """Quality -> description of its behaviour policy, for policies that need no training."""

    def versions(self) -> dict[str, str]:
        """Package -> version, for packages that affect the trajectories (simulator, policies)."""
        return {"gymnasium": gymnasium.__version__, "numpy": np.__version__}

    def frame_pixels(self, environment: gymnasium.Env) -> np.ndarray | None:
        """An RGB image [height, width, 3] uint8 of the current state; None if the family has no images."""
        return None


def split_tasks(
    tasks: Iterable[int], targets: Mapping[str, tuple[int, ...]], split: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(training tasks, targets) of a split. Targets of the split `published` are not training tasks in any split."""
    held_out = {*targets["published"], *targets[split]}
    return tuple(task for task in tasks if task not in held_out), targets[split]


def entry_point(name: str, block: dict[str, Any]) -> str:
    """`module:Class` of a family, from its `environment` block or the built-in table. Raises PipelineError."""
    ways = [way for way in ("entry_point", *BY_NAME) if block.get(way) is not None]
    if len(ways) > 1:
        raise PipelineError(f"{PARAMS_FILE}: families.{name}.environment: {' and '.join(ways)}: set only one of them")
    found = BUILT_IN.get(name) if not ways else BY_NAME.get(ways[0], block[ways[0]])
    if not found:
        raise PipelineError(
            f"{PARAMS_FILE}: families.{name}: unknown family: built in are {', '.join(BUILT_IN)}; for your own, set "
            f"families.{name}.environment.entry_point to 'module:Class', .gymnasium to the id of an environment, "
            ".meta_world to a task of Meta-World, or .data to a folder of trajectories"
        )
    try:
        return TypeAdapter(EntryPoint).validate_python(found)
    except ValidationError:
        raise PipelineError(
            f"{PARAMS_FILE}: families.{name}.environment.entry_point: {found!r} is not 'module:Class'"
        ) from None


def load_class(reference: str, root: Path, where: str) -> Any:
    """Import `module:Class`, also from a module next to params.yaml. Raises PipelineError if that fails."""
    module_name, class_name = reference.split(":")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        with time_limit(f"{where}: importing '{module_name}'"):
            module = importlib.import_module(module_name)
    except PipelineError:
        raise
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise PipelineError(f"{where}: cannot import '{module_name}': {error_text(error)}") from error
    if not hasattr(module, class_name):
        raise PipelineError(f"{where}: module '{module_name}' has no '{class_name}'")
    return getattr(module, class_name)


def load_family(name: str, block: dict[str, Any], root: Path) -> Family:
    """Create family `name` from its `environment` block in params.yaml. Raises PipelineError if it is invalid."""
    where = f"{PARAMS_FILE}: families.{name}.environment"
    cls = load_class(entry_point(name, block), root, f"{where}.entry_point")
    if inspect.isfunction(cls) or (isinstance(cls, type) and issubclass(cls, gymnasium.Env)):
        from pd_pipeline.families.gymnasium_env import GymnasiumFamily

        cls = GymnasiumFamily
    if not (isinstance(cls, type) and issubclass(cls, Family)):
        raise PipelineError(f"{where}.entry_point: '{cls}' is neither a Family, a gymnasium.Env nor a function")
    params = parse(cls.Params, block, where)
    try:
        with time_limit(f"{where}: creating '{cls.__name__}'"):
            family = cls(name, params)
        family.root = root
        train, test = ([int(task) for task in named] for named in (family.train_tasks, family.test_tasks))
    except PipelineError:
        raise
    except (Exception, SystemExit) as error:
        raise PipelineError(f"{where}: '{cls.__name__}' cannot be created: {error_text(error)}") from error
    if (count := len(train) + len(test)) > MAX_TASKS:
        raise PipelineError(f"{where}: {count:,} tasks: at most {MAX_TASKS:,} are allowed")
    for kind, named in (("training", train), ("test", test)):
        if twice := sorted(task for task, times in Counter(named).items() if times > 1):
            raise PipelineError(f"{where}: tasks {twice} appear more than once among the {kind} tasks: name each once")
    if not cls.targets_are_trained and (overlap := {*train} & {*test}):
        raise PipelineError(f"{where}: tasks {sorted(overlap)} are both training and test tasks")
    if not train or not test:
        raise PipelineError(f"{where}: the family needs at least one training and one test task")
    return family


class Families(Mapping[str, Family]):
    """The families that are run, and `others` of params.yaml, each created when it is first asked for."""

    def __init__(self, params: ParamsFile, others: Iterable[str], root: Path):
        self._params, self._root = params, root
        self._names = sorted({*params.run.families, *others})
        self._found: dict[str, Family] = {}

    def __getitem__(self, name: str) -> Family:
        """The family with this name. Raises PipelineError if it is invalid."""
        if name not in self._names:
            raise KeyError(name)
        if name not in self._found:
            self._found[name] = load_family(name, self._params.block(name, "environment"), self._root)
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        """Their names, sorted."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._names)


def source_files(name: str, block: dict[str, Any], levels: Mapping[str, Any], root: Path) -> list[Path]:
    """The files of all modules that an `environment` block names, the family's own first: its stages depend on them.

    Then those of `levels`, the policies that `behavior_policies` describes.
    """
    named = [("environment", point) for point in (entry_point(name, block), *_entry_points(block))]
    named += [("behavior_policies.levels", point) for point in _entry_points(levels)]
    files = dict[Path, None]()
    for where, point in named:
        module = point.split(":")[0]
        file = module_file(module, root)
        if file is None:
            raise PipelineError(
                f"{PARAMS_FILE}: families.{name}.{where}: no module '{module}' next to {PARAMS_FILE} or installed"
            )
        files[file] = None
    return [*files]


def read_files(name: str, block: Mapping[str, Any], root: Path) -> list[Path]:
    """The `files` that an `environment` block names, those in folders too: its stages depend on them as on code.

    Raises PipelineError for one that is missing, or outside the project.
    """
    named = block.get("files")
    found: list[Path] = []
    for text in named if isinstance(named, list | tuple) else ():
        path = (root / str(text)).resolve()
        where = f"{PARAMS_FILE}: families.{name}.environment.files: {text}"
        if root.resolve() not in path.parents:
            raise PipelineError(f"{where}: outside {root}: copy it into the project")
        if not path.exists():
            raise PipelineError(f"{where}: no such file or folder in {root}")
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [file for file in inside if file.is_file() and "__pycache__" not in file.parts]
    return found


def _entry_points(block: Mapping[str, Any]) -> Iterator[str]:
    """Entry points in a block, at any depth, and Gymnasium ids that name the module which registers them."""
    for name, value in block.items():
        if isinstance(value, Mapping):
            yield from _entry_points(value)
        elif isinstance(value, str) and (name == "entry_point" or (name == "gymnasium" and ":" in value)):
            yield value
