"""The table of stages.

To add a stage, write its module, with `Params` and `run(context) -> metrics`, and add its entry: to `BEFORE_TUNING`, or
to the list in `stages` if it works on what the methods made.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pd_pipeline.config import TUNED, Parameters, RunParams
from pd_pipeline.errors import PipelineError
from pd_pipeline.foreign import error_text
from pd_pipeline.sources import PACKAGE
from pd_pipeline.tuning.methods import DIFFUSER_MODULE, Method
from pd_pipeline.tuning.methods import chosen as methods_chosen

FAMILY, TASK, SEED = AXES = "family", "task", "seed"
DATA, PRE_TRAINING, TUNING, RESULTS = "data", "pre_training", "tuning", "results"
EVALUATION, TARGET_EVALUATION, REPORT = "evaluation", "target_evaluation", "report"
ACROSS = (REPORT,)
"""Stages that work on all families at once: their blocks are at the top level of params.yaml."""
PAGE = "index.html"
"""The page in the out of the report."""


@dataclass(frozen=True)
class Check:
    """A check of the out of a stage."""

    name: str
    function: str
    """`module:function`, called as function(out, params, root). Returns figures; raises PipelineError if it fails."""
    description: str
    blocking: bool = False
    """Whether downstream stages must not run if it fails."""


VALID = Check(
    "valid", "pd_pipeline.trajectories.checking:valid", "Every file passes `pd-pipeline validate`.", blocking=True
)
EXPERT_QUALITY = Check(
    "expert_quality",
    "pd_pipeline.trajectories.checking:expert_quality",
    "Expert data meets the family's bars for return, success and early ends.",
)
LOSSES_FINITE = Check(
    "losses_finite",
    "pd_pipeline.training.checking:losses_finite",
    "All losses are finite.",
    blocking=True,
)
METRICS_COMPLETE = Check(
    "metrics_complete",
    "pd_pipeline.evaluation.checking:metrics_complete",
    "Every method in params.yaml has metrics.",
    blocking=True,
)
PLOTS = "pd_pipeline.reporting.stage_plots"


SHARE_OF_GPU = 0.25
"""Of work with small models and batches, several pieces fit on a GPU."""


@dataclass(frozen=True)
class Resources:
    """What a piece of work asks for on a cluster. A node that has less gives what it has."""

    cpus: int = 1
    gpus: float = 0.0
    """Where the cluster has any."""
    memory: float = 2.0
    """GiB."""


@dataclass(frozen=True)
class Stage:
    """One stage: its code, its axes and the stages that it needs."""

    name: str
    module: str
    """Module with `run(context) -> metrics`."""
    params_module: str
    """Module with `Params`."""
    axes: tuple[str, ...]
    needs: tuple[str, ...]
    group: str
    """Group in the Dagster UI: data, pre_training, tuning or results."""
    uses: tuple[str, ...] = ()
    """Modules that it imports by name at run time."""
    checks: tuple[Check, ...] = ()
    plots: str | None = None
    """`module:function` that plots an out, called as function(out). Returns title -> figure."""
    folder: str = ""
    """Folder of its outs below data/, if not its name."""
    source: Path | None = None
    """File of `params_module`, if that is not in this package."""
    files: tuple[Path, ...] = ()
    """Other files that its outs depend on."""
    reads_recordings: bool = False
    """Whether it reads trajectories of users: of a family without a simulator, or those accepted for its target."""
    recordings: tuple[Path, ...] = ()
    """Trajectories of users that the work it collects reads: that of the points of a study."""
    reads_decisions: bool = False
    """Whether it reads the decisions on which policies are in use."""
    accepted_only: bool = False
    """Whether its targets are those with accepted data, new ones and others, not all of the family."""
    block: str = ""
    """Block of params.yaml with its parameters, if not its name."""
    preset: Parameters | None = None
    """Its parameters, if they do not come from params.yaml."""
    resources: Resources = Resources()
    spreads: bool = False
    """Whether it has parts computed by other machines of a cluster, each with `resources`, where there is one."""

    @property
    def computes(self) -> bool:
        """Whether it runs the models, on a GPU if there is one."""
        return self.group != DATA

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules whose code, with all that they import from this package, produces the out."""
        return tuple(dict.fromkeys((self.module, self.params_module, *self.uses)))

    def params_class(self) -> type[Parameters]:
        """The stage's Params. Raises PipelineError if a user's module does not define them."""
        try:
            found = importlib.import_module(self.params_module).Params
        except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
            if self.source is None or isinstance(error, PipelineError):
                raise
            raise PipelineError(f"{self.source}: cannot be used as a method: {error_text(error)}") from error
        if not (isinstance(found, type) and issubclass(found, Parameters)):
            raise PipelineError(f"{self.source}: Params is {found!r}, not a subclass of TuningParams")
        return found


def _stage(group: str, name: str, module: str, axes: tuple[str, ...], needs: Sequence[str] = (), **rest: Any) -> Stage:
    """A stage of this package whose `module` has both `run` and `Params`."""
    path, uses = f"pd_pipeline.{module}", rest.pop("uses", ())
    if "diffuser" in needs:
        uses = (*uses, DIFFUSER_MODULE)
    return Stage(name, path, path, axes, tuple(needs), group, uses, **rest)


BEFORE_TUNING = (
    _stage(DATA, "behavior_policies", "behavior.policies", (FAMILY,), resources=Resources(cpus=4)),
    _stage(
        DATA,
        "trajectories",
        "trajectories.stage",
        (FAMILY,),
        ["behavior_policies"],
        resources=Resources(cpus=4),
        spreads=True,
        checks=(VALID, EXPERT_QUALITY),
        plots=f"{PLOTS}:trajectories",
        reads_recordings=True,
    ),
    _stage(
        DATA,
        "target_data",
        "trajectories.target_data",
        (FAMILY, TASK),
        ["trajectories"],
        reads_recordings=True,
    ),
    _stage(DATA, "prompts", "prompts.stage", (FAMILY,), ["trajectories"]),
    _stage(
        PRE_TRAINING,
        "plm",
        "training.plm",
        (FAMILY, SEED),
        ["trajectories", "prompts"],
        resources=Resources(cpus=4, gpus=1, memory=4),
        checks=(LOSSES_FINITE,),
        plots=f"{PLOTS}:training",
    ),
    _stage(
        PRE_TRAINING,
        "diffuser",
        "training.diffuser",
        (FAMILY, SEED),
        ["prompts"],
        resources=Resources(cpus=2, gpus=1),
        checks=(LOSSES_FINITE,),
        plots=f"{PLOTS}:training",
    ),
    _stage(
        PRE_TRAINING,
        "hyper_network",
        "training.hyper_network",
        (FAMILY, SEED),
        ["trajectories", "prompts", "plm"],
        resources=Resources(cpus=2, gpus=1),
        checks=(LOSSES_FINITE,),
        plots=f"{PLOTS}:training",
    ),
)
"""Stages that do not depend on the methods, except that those of `OPTIONAL` are left out where no method reads them."""

OPTIONAL = ("diffuser", "hyper_network")
TRAINED = ("plm", *OPTIONAL)
"""Stages that train a model and log its losses."""


def _tuning(name: str, method: Method) -> Stage:
    """The tuning stage of a method or variant."""
    stage = _stage(
        TUNING,
        f"{TUNED}{name}",
        "tuning.stage",
        AXES,
        method.needs,
        plots=f"{PLOTS}:tuning",
        resources=Resources(gpus=SHARE_OF_GPU),
    )
    source = None if PACKAGE in method.source.parents else method.source
    return replace(stage, params_module=method.module, source=source)


def _evaluation(outs: Sequence[str], tuners: tuple[str, ...]) -> Stage:
    """Evaluation of the methods. `outs`: the stages it reads besides `plm`; `tuners`: the methods' modules."""
    return _stage(
        RESULTS,
        EVALUATION,
        "evaluation.stage",
        (FAMILY, SEED),
        ["target_data", "plm", *outs],
        uses=tuners,
        checks=(METRICS_COMPLETE,),
        plots=f"{PLOTS}:evaluation",
        resources=Resources(cpus=4, gpus=SHARE_OF_GPU),
        spreads=True,
    )


def target_evaluation(evaluation: Stage) -> Stage:
    """The same evaluation of one target alone, for targets with accepted data."""
    changes: dict[str, Any] = {"axes": AXES, "checks": (), "accepted_only": True, "spreads": False}
    return replace(evaluation, name=TARGET_EVALUATION, block=evaluation.name, **changes)


def _prompt_fit(measured: Mapping[str, Method]) -> Stage:
    """The fit of the prompts in the `measured` tuned outs."""
    return _stage(
        RESULTS,
        "prompt_fit",
        "evaluation.prompt_fit",
        (FAMILY, SEED),
        ["target_data", "prompts", "plm", "diffuser", *measured],
        uses=tuple(method.module for method in measured.values()),
        plots=f"{PLOTS}:prompt_fit",
        resources=Resources(gpus=SHARE_OF_GPU),
    )


def _report(outs: Sequence[str], results: Sequence[str], tuners: tuple[str, ...]) -> Stage:
    """The report. `outs` and `results`: the stages it reads besides `trajectories` and `plm`."""
    needs = ["trajectories", "target_data", "plm", *outs, *results]
    stage = _stage(RESULTS, REPORT, "reporting.stage", (), needs, uses=tuners, folder="reports", reads_decisions=True)
    return replace(stage, params_module="pd_pipeline.reporting.shown")


def stages(asked: RunParams, methods: Mapping[str, Method], everything: bool = False) -> dict[str, Stage]:
    """All stages, upstream first. `methods` are those available to the project, by name.

    Those of `OPTIONAL` are included if a method reads them, `prompt_fit` if one tunes the diffuser, or all with
    `everything`.
    """
    chosen = methods_chosen(asked, methods)
    tuners = tuple(dict.fromkeys(method.module for method in chosen.values()))
    generating = {name: method for name, method in chosen.items() if "diffuser" in method.needs}
    # the fit of variants is not measured, nor that of prompts that episodes chose
    tuned_on_prompts = {name: m for name, m in generating.items() if m.demonstrations and not m.online}
    measured = {f"{TUNED}{name}": method for name, method in tuned_on_prompts.items() if name in methods}
    read = {need for method in chosen.values() for need in method.needs}
    left_out = set() if everything else set(OPTIONAL) - read

    before = [stage for stage in BEFORE_TUNING if stage.name not in left_out]
    tuned = [_tuning(name, method) for name, method in chosen.items()]
    outs = [stage.name for stage in tuned]
    if "diffuser" not in left_out:
        outs = ["diffuser", *outs]
    results = [_evaluation(outs, tuners)]
    if everything or measured:
        results.append(_prompt_fit(measured))
    if "hyper_network" not in left_out:
        outs = ["hyper_network", *outs]
    report = _report(outs, [stage.name for stage in results], tuners)
    return {stage.name: stage for stage in (*before, *tuned, *results, report)}
