"""Stage report: one self-contained page of all that was measured."""

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from pd_pipeline.config import ParamsFile
from pd_pipeline.evaluation.offline_results import OfflineResult
from pd_pipeline.evaluation.results import OFFLINE, MethodResult
from pd_pipeline.evaluation.scores import REFERENCE
from pd_pipeline.families.base import load_family
from pd_pipeline.reporting import provenance
from pd_pipeline.reporting.canvas import method_styles
from pd_pipeline.reporting.findings import what_mattered
from pd_pipeline.reporting.formatting import decimals, moment, number, percent
from pd_pipeline.reporting.gather import FamilyResults, data_name, gather
from pd_pipeline.reporting.sections import family_figures, family_pictures
from pd_pipeline.reporting.study import section as section_of
from pd_pipeline.reporting.targets import TargetResults, in_use, with_accepted_data
from pd_pipeline.reporting.verdict import judge
from pd_pipeline.revision import git_revision
from pd_pipeline.stage import StageContext
from pd_pipeline.stages import PAGE
from pd_pipeline.storage import atomic_file, write_json
from pd_pipeline.studies.definition import PREFIX
from pd_pipeline.trajectories.quality import missed_bars

METRICS = "metrics.json"


def run(context: StageContext) -> dict[str, Any]:
    """Write `index.html` and, for `dvc metrics`, the few figures of `metrics.json`.

    Equal inputs give equal bytes, on one machine and revision of the code: no clock is read.
    """
    params = context.params_file
    sections: list[dict[str, Any]] = []
    metrics: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    targets: list[TargetResults] = []
    for done, name in enumerate(params.run.families):
        context.progress("report", done, len(params.run.families), name)
        draws = provenance.stage_parameters(params, name, "evaluation", context.modules)["bootstrap"]
        results = gather(context.inputs, params, name, context.root, draws)
        sections.append(section(context, params, results))
        figures[name] = {method: main_figures(result) for method, result in results.scored.items()}
        family = load_family(name, params.block(name, "environment"), context.root)
        targets += with_accepted_data(context, family, draws)
        if (verdict := sections[-1]["verdict"]) is not None:
            metrics |= {f"bars_met_{name}": sum(bool(check.met) for check in verdict.checks)}
    for target in targets:
        if target.scored:
            figures[target.name] = {method: main_figures(result) for method, result in target.scored.items()}
    studies = [entry for name, out in context.inputs.items() if name.startswith(PREFIX) for entry in section_of(out)]
    page = render(
        families=sections,
        targets=targets,
        in_use=in_use(context.root, params.run.families),
        colors={method: color for method, (color, _) in method_styles(params.run.methods).items()},
        studies=studies,
        run=params.run,
        versions=provenance.versions(),
        revision=git_revision(context.root),
        machine=provenance.machine(),
    )
    write_json(context.out / METRICS, figures)
    with atomic_file(context.out / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    context.progress("report", len(params.run.families), len(params.run.families))
    return metrics


def main_figures(result: MethodResult | OfflineResult) -> dict[str, float]:
    """The figures of a method that `dvc metrics` shows; those that are unknown are left out."""
    if isinstance(result, OfflineResult):
        return {"offline_action_loss": result.action_loss.value}
    found = {"return_mean": result.mean, "success_rate": result.success, "normalized": result.normalized}
    return {name: estimate.value for name, estimate in found.items() if estimate is not None}


def section(context: StageContext, params: ParamsFile, results: FamilyResults) -> dict[str, Any]:
    """All that the page needs of one family."""
    name = results.name
    family = load_family(name, params.block(name, "environment"), context.root)
    fits = list(results.fit.values())
    returns = [result.mean.value for result in results.metrics.values()]
    data_returns = [values["return_mean"] for values in results.data.values()]
    asked = list(dict.fromkeys(name for each in results.asked.values() for name in each))
    return {
        "name": name,
        "results": results,
        # its bars are about returns
        "verdict": None if results.offline else judge(results.metrics, seeds=len(results.seeds)),
        "asked": asked,
        "mattered": what_mattered(results.metrics, results.logs.get(REFERENCE, {}), fits),
        "figures": family_figures(context, results, family.expert_bars),
        "pictures": family_pictures(context, params.block(name, "environment"), results)
        if context.params.rollouts
        else {"missing": "Rollouts are not drawn: params.yaml sets report.rollouts to false."},
        "colors": {method: color for method, (color, _) in results.styles.items()},
        "unseen": not family.targets_are_trained,
        "missed_data": missed_bars(results.data, family.expert_bars),
        "digits": decimals(returns),
        "data_digits": decimals(data_returns),
        "parameters": provenance.effective_parameters(params, name, context.root, context.modules),
        "digests": provenance.digests(context.inputs, params, name),
    }


def render(**values: Any) -> str:
    """The page from its template."""
    return templates().get_template("report.html").render(**values)


def as_written(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Values as params.yaml takes them."""
    return {name: json.dumps(value, ensure_ascii=False) for name, value in parameters.items()}


def templates() -> Environment:
    """The page's templates, in which an unknown name is an error."""
    environment = Environment(
        loader=PackageLoader("pd_pipeline.reporting"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent, moment=moment, data_name=data_name)
    environment.filters["as_written"] = as_written
    environment.globals["OFFLINE"] = OFFLINE
    return environment
