"""New data of targets: a sensor on the drop zone, and the job that takes what was dropped."""

import json
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from assets.partitions import ACCEPTED, ADAPTATION, OF_TARGETS, TARGETS, known_targets
from assets.targets import files_accepted, targets
from pd_pipeline import graph
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.incoming import standing, store
from pd_pipeline.incoming.drop_zone import dropped
from pd_pipeline.incoming.ingest import not_run, take
from pd_pipeline.storage import digest

REASON = "reason"
"""The tag of a run that says why it was asked for."""
FILES = "dropped_files"
"""The tag of a run with the digest of the files that it takes."""
VERSION = "accepted_data"
"""The tag of a run with the version of the accepted data that asked for it."""
ATTEMPTS = 3


def take_job(project: Graph) -> dg.JobDefinition:
    """Check and move what is in the drop zone: the first half of `pd-pipeline ingest`."""

    @dg.op(out=dg.Out(dg.Nothing), description="`pd-pipeline ingest --no-work`")
    def take_files(context: dg.OpExecutionContext) -> Iterator[dg.AssetCheckEvaluation | dg.Output]:
        try:
            now = graph.load(project.root)
            outcomes = take(now)
        except PipelineError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        for outcome in outcomes:
            write = context.log.error if outcome.state == "quarantined" else context.log.info
            write(f"{outcome.file}: {outcome.state}: {outcome.message}")
        seen = {(outcome.family, outcome.task) for outcome in outcomes if outcome.state != "waiting"}
        for family, task in sorted((f, t) for f, t in seen if f is not None and t is not None):
            result = files_accepted(now, family, task)
            yield dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey(ACCEPTED),
                check_name=str(result.check_name),
                passed=result.passed,
                metadata={},
                description=result.description,
                partition=f"{family}-{task}",
            )
        yield dg.Output(None)

    @dg.job(name="take_new_data", description="Check what is in data/incoming/, and accept it or quarantine it.")
    def job() -> None:
        take_files()

    return job


def retune_job() -> UnresolvedAssetJobDefinition:
    """What new data of a target asks for: the other half of `pd-pipeline ingest`."""
    return dg.define_asset_job(
        "retune_target",
        selection=dg.AssetSelection.assets(*OF_TARGETS),
        partitions_def=TARGETS,
        description="Adapt to a target, evaluate it, and put the new policy in use unless it is worse.",
    )


def request(
    project: Graph, target: str, reason: str, run_key: str | None = None, version: str | None = None
) -> dg.RunRequest:
    """Ask for the work of a target; of one that waits for more data, for what can be made already.

    `version`: of the accepted data that ask for it.
    """
    family, _, task = target.rpartition("-")
    waits = standing.waiting_for(project, family, int(task))
    shown = [dg.AssetKey(name) for name in ([ACCEPTED, ADAPTATION] if waits else OF_TARGETS)]
    return dg.RunRequest(
        run_key=run_key,
        job_name="retune_target",
        partition_key=target,
        asset_selection=shown,
        tags={REASON: reason} | ({} if version is None else {VERSION: version}),
    )


def new_data_sensor(root: Path, take: dg.JobDefinition, retune: UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """Sees complete files in the drop zone, and accepted data that no run has worked on yet."""

    @dg.sensor(
        name="new_data",
        jobs=[take, retune],
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Takes what is dropped into data/incoming/<family>/<task>/, and asks for the work of its target.",
    )
    def body(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            project = graph.load(root)
            found = _asked(project, context.instance, json.loads(context.cursor or "{}"))
            wanted = targets(project)
        except PipelineError as error:
            return dg.SkipReason(str(error))
        requests, cursor, gave_up = found
        missing = sorted({*wanted} - {*known_targets(context.instance)})
        if not requests and not missing:
            return dg.SkipReason(gave_up or "nothing new")
        return dg.SensorResult(
            run_requests=requests,
            dynamic_partitions_requests=[TARGETS.build_add_request(missing)] if missing else [],
            cursor=json.dumps(cursor),
        )

    return body


def _asked(
    project: Graph, instance: dg.DagsterInstance, before: dict[str, str]
) -> tuple[list[dg.RunRequest], dict[str, str], str]:
    """What to run; target -> the version of its accepted data that a run was asked for; what it gave up, or nothing."""
    requests, now = [], dict[str, str]()
    gave_up = ""
    settle = project.params.automation.settle_seconds
    others = not_run(project)
    if complete := [file.path for file in dropped(project.root, settle) if file.complete and file.family not in others]:
        stamps = [(str(path), path.lstat().st_ctime_ns) for path in complete]
        requests += (taking := _taking(instance, sha256(json.dumps(stamps).encode()).hexdigest()))
        if not taking:
            more = f" and {len(complete) - 1} more" if len(complete) > 1 else ""
            gave_up = f"{complete[0]}{more}: {ATTEMPTS} runs of take_new_data failed: see why, and touch the file"
    failures = _failures(instance)
    for family, tasks in project.accepted.items():
        for task in tasks:
            target, version = f"{family}-{task}", _version(project, family, task)
            now[target] = version
            of_target = f"{target} {version}"
            failed = failures[of_target]
            if before.get(target) != version or 0 < failed < ATTEMPTS:
                reason = "it failed" if failed else "more data" if target in before else "new data"
                key = f"{of_target} {failed}" if failed else of_target  # Dagster runs each key once
                requests.append(request(project, target, reason, key, of_target))
    return requests, now, gave_up


def _failures(instance: dg.DagsterInstance) -> Counter[str | None]:
    """Target and version of accepted data -> how many runs failed that these asked for.

    What a person cancelled is not among them: it is not asked for again.
    """
    failed = dg.RunsFilter(job_name="retune_target", statuses=[dg.DagsterRunStatus.FAILURE])
    return Counter(run.tags.get(VERSION) for run in instance.get_runs(failed))


def _taking(instance: dg.DagsterInstance, files: str) -> list[dg.RunRequest]:
    """Ask that files be taken, again if that failed, until it has failed too often; `files`: their digest."""
    over = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    failed = instance.get_runs_count(dg.RunsFilter(job_name="take_new_data", tags={FILES: files}, statuses=over))
    if failed >= ATTEMPTS:
        return []
    return [dg.RunRequest(run_key=f"take {files} {failed}", job_name="take_new_data", tags={FILES: files})]


def _version(project: Graph, family: str, task: int) -> str:
    """Digest of the accepted files of a target and of whether they are enough."""
    files = store.files(project.root, family, task)
    waits = standing.waiting_for(project, family, task)
    return digest(waits, *(store.received(file).digest for file in files))
