"""Targets with data of users, one dynamic partition each, such as `reach-57`.

    accepted_data -> target_adaptation -> target_evaluation -> policy_in_use -> report

A new target needs no reload of the definitions: the sensor of `assets.incoming` adds its partition. The pieces of a
target of the benchmark also appear as partitions of their stages.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg

from assets.metadata import describe, plots, table
from assets.partitions import ACCEPTED, ADAPTATION, IN_USE, TARGETS
from assets.stages import Event, events
from assets.versions import Versions
from assets.work import GPU_POOL, RETRIES, Done, current, do, failure
from pd_pipeline import __version__, guard
from pd_pipeline.decisions import decisions, folder_of
from pd_pipeline.deployment import candidates
from pd_pipeline.deployment.folder import describe as describe_policy
from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.enough import TooFew
from pd_pipeline.graph import Graph
from pd_pipeline.incoming import standing, store
from pd_pipeline.incoming.ingest import quarantined
from pd_pipeline.stage import Key
from pd_pipeline.stages import EVALUATION, TARGET_EVALUATION, TRAINED, TUNED
from pd_pipeline.storage import digest, file_digest

GROUP = "targets_with_new_data"
FILES_ACCEPTED, FILES_UNCHANGED, NOT_REFUSED = "files_accepted", "files_unchanged", "not_refused"

Events = Iterator[Event | dg.MaterializeResult]


def target_of(project: Graph, partition: str) -> tuple[str, int]:
    """Family and task of a partition. Raises dagster.Failure if params.yaml does not run the family."""
    family, _, task = partition.rpartition("-")
    if family not in project.params.run.families or not task.isdecimal():
        raise dg.Failure(
            f"{partition}: '{family}' is not among run.families of params.yaml: add it there, or delete the partition",
            allow_retries=False,
        )
    return family, int(task)


def targets(project: Graph) -> list[str]:
    """The targets that have accepted data or a policy in use: the partitions that there should be."""
    return [f"{family}-{task}" for family, task in standing.targets(project)]


def target_assets(project: Graph) -> list[dg.AssetsDefinition]:
    """The four assets of targets with data of users."""
    common: dict[str, Any] = {
        "partitions_def": TARGETS,
        "group_name": GROUP,
        "owners": project.params.automation.owners,
        "retry_policy": RETRIES,
    }
    on_gpu = common | {"pool": GPU_POOL}
    return [
        _data(project, common),
        _adaptation(project, on_gpu),
        _evaluation(project, on_gpu),
        _policy(project, on_gpu),
    ]


def _data(project: Graph, common: dict[str, Any]) -> dg.AssetsDefinition:
    @dg.asset(
        name=ACCEPTED,
        description="Trajectories of the target that users brought and that passed every check: data/ingested/.",
        kinds={"parquet"},
        check_specs=[
            _check(FILES_UNCHANGED, ACCEPTED, "Every file is still the one that was accepted."),
            _check(FILES_ACCEPTED, ACCEPTED, "None of its files is in data/quarantine/."),
        ],
        code_version=__version__,
        **common,
    )
    def accepted_data(context: dg.AssetExecutionContext) -> Events:
        now = current(project)
        yield from _accepted(now, *target_of(now, context.partition_key))

    return accepted_data


def _adaptation(project: Graph, common: dict[str, Any]) -> dg.AssetsDefinition:
    pre_trained = [name for name in ("trajectories", *TRAINED) if name in project.stages]
    tuned = [name for name in project.stages if name.startswith(TUNED)]

    @dg.asset(
        name=ADAPTATION,
        description="The data of the target and its adaptation by every method: `pd-pipeline ingest`.",
        kinds={"pytorch", "dvc"},
        deps=[ACCEPTED, *(dg.AssetDep(name, partition_mapping=dg.AllPartitionMapping()) for name in pre_trained)],
        code_version=_code_version(project, ["target_data", *tuned]),
        **common,
    )
    def target_adaptation(context: dg.AssetExecutionContext) -> Events:
        yield from _pieces(context, project, lambda stage: stage != TARGET_EVALUATION)

    return target_adaptation


def _evaluation(project: Graph, common: dict[str, Any]) -> dg.AssetsDefinition:
    @dg.asset(
        name=TARGET_EVALUATION,
        description="All methods on the target, as `evaluation` compares them on those of the benchmark.",
        kinds={"pytorch", "dvc"},
        deps=[ADAPTATION],
        code_version=_code_version(project, [EVALUATION]),
        **common,
    )
    def target_evaluation(context: dg.AssetExecutionContext) -> Events:
        yield from _pieces(context, project, lambda stage: stage == TARGET_EVALUATION)

    return target_evaluation


def _policy(project: Graph, common: dict[str, Any]) -> dg.AssetsDefinition:
    @dg.asset(
        name=IN_USE,
        description="The policy that robots load, and the decision on the new one: `pd-pipeline promote`.",
        kinds={"pytorch"},
        deps=[TARGET_EVALUATION],
        check_specs=[_check(NOT_REFUSED, IN_USE, "The last new policy was put in use.")],
        code_version=__version__,
        **common,
    )
    def policy_in_use(context: dg.AssetExecutionContext) -> Events:
        from pd_pipeline.deployment.promotion import promote  # here: definitions load in half the time without PyTorch

        now = current(project)
        target_of(now, context.partition_key)
        try:
            promote(now, context.partition_key, context.log.info)
            yield _in_use(now, context.partition_key)
        except TooFew as waits:  # for more data: what is in use stays
            context.log.info(f"{context.partition_key}: waits: {waits}")
            yield _in_use(now, context.partition_key, str(waits))
        except PipelineError as error:
            raise failure(error) from None

    return policy_in_use


def _code_version(project: Graph, stages: list[str]) -> str:
    return digest(*(guard.version(project, stage) for stage in stages))


def _check(name: str, asset: str, description: str) -> dg.AssetCheckSpec:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # for `partitions_def`: without it, targets share a result
        return dg.AssetCheckSpec(name, asset=asset, description=description, partitions_def=TARGETS)


def files_accepted(project: Graph, family: str, task: int) -> dg.AssetCheckResult:
    """Whether none of a target's files is in quarantine; if one is, why."""
    found = quarantined(project.root, (family, task))
    return dg.AssetCheckResult(
        passed=not found, check_name=FILES_ACCEPTED, asset_key=ACCEPTED, description=" ".join(found) or None
    )


def _accepted(project: Graph, family: str, task: int) -> Events:
    files = store.files(project.root, family, task)
    try:
        known = [store.received(file) for file in files]
    except PipelineError as error:
        raise failure(error) from None
    changed = [file.name for file, one in zip(files, known, strict=True) if file_digest(file).hex() != one.digest]
    rows = [{"file": file.name, **one.model_dump(mode="json")} for file, one in zip(files, known, strict=True)]
    waits = standing.waiting_for(project, family, task) if files else ""
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(digest(*(one.digest for one in known))),
        metadata={
            "dagster/row_count": sum(one.steps for one in known),
            "episodes": sum(one.episodes for one in known),
            "waits_for": waits or "nothing",
            "files": table(rows),
            **describe(store.folder(project.root, family, task)),
        },
        check_results=[
            dg.AssetCheckResult(
                passed=not changed,
                check_name=FILES_UNCHANGED,
                description=f"changed since they were accepted: {', '.join(changed)}" if changed else None,
            ),
            files_accepted(project, family, task),
        ],
    )


def _pieces(context: dg.AssetExecutionContext, project: Graph, chosen: Callable[[str], bool]) -> Events:
    """Do the pieces of the partition's target in the chosen stages."""
    project = current(project)
    family, task = target_of(project, context.partition_key)
    pieces = [(stage, key) for stage, key in standing.pieces(project, family, task) if chosen(stage)]
    if not pieces:
        waits = standing.waiting_for(project, family, task)
        raise dg.Failure(f"{context.partition_key} waits for data: {waits}", allow_retries=False)
    versions, found = Versions(context.instance, project), list[Done]()
    for done in do(context, project, pieces):
        found.append(done)
        if project.is_benchmark(done.stage, done.key):
            yield from events(context.instance, project, versions, done)
    rows = [
        {
            "piece": one.name,
            "done": "up to date" if one.outcome.skipped else f"in {one.seconds:.1f} s",
            "why": one.why,
            "data version": one.data_version,
        }
        for one in found
    ]
    stage, key = _shown(project, context.partition_key, [(one.stage, one.key) for one in found])
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(digest(*(f"{one.name} {one.data_version}" for one in found))),
        metadata={
            "pieces": table(rows),
            "shown": f"{stage} {key}",
            **describe(project.root / project.out(stage, key)),
            **plots(project.stages[stage], project.root / project.out(stage, key)),
        },
    )


def _shown(project: Graph, target: str, pieces: list[tuple[str, Key]]) -> tuple[str, Key]:
    """The piece whose plots are shown: that of the policy to promote, else the last one."""
    wanted = f"{TUNED}{candidates.candidate_method(project)}"
    return next((piece for piece in pieces if piece[0] == wanted), pieces[-1])


def _in_use(project: Graph, target: str, waits: str = "") -> dg.MaterializeResult:
    """The event of what is in use of a target, and of the last decision on it; `waits`: what the next one waits for."""
    made = decisions(project.root, target)
    now = candidates.in_use(project.root, target)
    assert now is not None, "the first policy of a target is always put in use"
    version, since = now
    folder = folder_of(project.root, target) / f"{version:04d}"
    last = made[-1] if made else None  # all of them may have been lost
    figures = {"candidate": last.candidate, "in_use_before": last.in_use, "margin": last.margin} if last else {}
    return dg.MaterializeResult(
        data_version=dg.DataVersion(digest(folder)),
        metadata={
            "version": version,
            "since": since,
            "method": describe_policy(folder).method,
            "decision": last.outcome if last else "lost",
            "reason": last.reason if last else "",
            "next_decision_waits_for": waits or "nothing",
            **{name: value for name, value in figures.items() if value is not None},
            **describe(folder),
        },
        check_results=[
            dg.AssetCheckResult(
                passed=last is None or last.outcome != "refused",
                check_name=NOT_REFUSED,
                severity=dg.AssetCheckSeverity.WARN,
                description=last.reason if last else "the decisions on it are lost",
            )
        ],
    )
