"""The table of stages.

To add a stage, write its module, with `Params` and `run(context) -> metrics`, and add its entry in `stages`.
"""

import importlib
from collections.abc import Mapping
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
REPORT = "report"
ACROSS = (REPORT,)
"""Stages that work on all families at once: their blocks are at the top level of params.yaml."""


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
    """Whether it reads the user's trajectories of a family without a simulator."""
    preset: Parameters | None = None
    """Its parameters, if they do not come from params.yaml."""

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


def stages(asked: RunParams, methods: Mapping[str, Method], everything: bool = False) -> dict[str, Stage]:
    """All stages, upstream first. `methods` are those available to the project, by name.

    `diffuser` and `prompt_fit` are included if a method generates prompts, or with `everything`.
    """
    chosen = methods_chosen(asked, methods)
    tuned = tuple(f"{TUNED}{name}" for name in chosen)
    tuners = tuple(dict.fromkeys(method.module for method in chosen.values()))
    generating = {name: method for name, method in chosen.items() if "diffuser" in method.needs}
    measured = tuple(f"{TUNED}{name}" for name in generating if name in methods)  # the fit of variants is not measured
    diffuser = ("diffuser",) if generating or everything else ()
    fit = ("prompt_fit",) if measured or everything else ()

    def stage(group: str, name: str, module: str, axes: tuple[str, ...], *needs: str, **rest: Any) -> Stage:
        uses = (*rest.pop("uses", ()), *((DIFFUSER_MODULE,) if "diffuser" in needs else ()))
        return Stage(name, f"pd_pipeline.{module}", f"pd_pipeline.{module}", axes, needs, group, uses, **rest)

    made = [
        stage(DATA, "behavior_policies", "behavior.policies", (FAMILY,)),
        stage(
            DATA,
            "trajectories",
            "trajectories.stage",
            (FAMILY,),
            "behavior_policies",
            checks=(VALID, EXPERT_QUALITY),
            plots=f"{PLOTS}:trajectories",
            reads_recordings=True,
        ),
        stage(DATA, "prompts", "prompts.stage", (FAMILY,), "trajectories"),
        stage(
            PRE_TRAINING,
            "plm",
            "training.plm",
            (FAMILY, SEED),
            "trajectories",
            "prompts",
            checks=(LOSSES_FINITE,),
            plots=f"{PLOTS}:training",
        ),
        stage(
            PRE_TRAINING,
            "diffuser",
            "training.diffuser",
            (FAMILY, SEED),
            "prompts",
            checks=(LOSSES_FINITE,),
            plots=f"{PLOTS}:training",
        ),
        *(
            replace(
                stage(TUNING, f"{TUNED}{name}", "tuning.stage", AXES, *method.needs, plots=f"{PLOTS}:tuning"),
                params_module=method.module,
                source=None if PACKAGE in method.source.parents else method.source,
            )
            for name, method in chosen.items()
        ),
        stage(
            RESULTS,
            "evaluation",
            "evaluation.stage",
            (FAMILY, SEED),
            "trajectories",
            "plm",
            *diffuser,
            *tuned,
            uses=tuners,
            checks=(METRICS_COMPLETE,),
            plots=f"{PLOTS}:evaluation",
        ),
        stage(
            RESULTS,
            "prompt_fit",
            "evaluation.prompt_fit",
            (FAMILY, SEED),
            *("trajectories", "prompts", "plm", "diffuser", *measured),
            uses=tuple(method.module for name, method in generating.items() if name in methods),
            plots=f"{PLOTS}:prompt_fit",
        ),
        stage(
            RESULTS,
            REPORT,
            "reporting.stage",
            (),
            *("trajectories", "plm", *diffuser, *tuned, "evaluation", *fit),
            uses=tuners,
            folder="reports",
        ),
    ]
    absent = {"diffuser", "prompt_fit"} - {*diffuser, *fit}
    return {found.name: found for found in made if found.name not in absent}
