"""The stages tuned_<method>: prepare the inputs of a method, run it and write its result."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pd_pipeline.acting.environments import LocalBatch, WorkerBatch, make_batch
from pd_pipeline.acting.simulation import Simulation
from pd_pipeline.compute import pick_device, use_bf16
from pd_pipeline.errors import PipelineError
from pd_pipeline.foreign import error_text
from pd_pipeline.interruption import Interrupted
from pd_pipeline.prompts.segments import Normalization
from pd_pipeline.stage import StageContext
from pd_pipeline.training.loop import History, OptimizationParams
from pd_pipeline.trajectories.reading import Trajectories, read
from pd_pipeline.trajectories.target_data import OTHER, other_task
from pd_pipeline.tuning import summary as summaries
from pd_pipeline.tuning.adaptation import Adaptation, Cost, FellBack
from pd_pipeline.tuning.held_out import fall_back, split
from pd_pipeline.tuning.methods import FLAGS
from pd_pipeline.tuning.protocol import Pretrained, Run, Target, draw_few_shot
from pd_pipeline.tuning.summary import Summary
from pd_pipeline.tuning.unseen import Unseen

WORKERS = 1
"""Processes for the environments of a simulation: targets are already tuned in parallel."""


def run(context: StageContext) -> dict[str, Any]:
    """Write `prompts.safetensors`, `log.csv`, `summary.json` and any tuned weights."""
    method = importlib.import_module(context.module)
    params, seed = context.params, context.seed
    trained = isinstance(params, OptimizationParams)
    device = pick_device(context.device if trained else "cpu")
    context.facts["device"] = str(device)
    context.facts["precision"] = "bf16" if trained and use_bf16(params.precision, device) else "float32"
    plm = Pretrained.load(context.inputs["plm"], context.inputs.get("diffuser"), device, context.inputs)
    target: Target | Unseen
    drawn = held_out = None
    if getattr(method, "DEMONSTRATIONS", FLAGS["DEMONSTRATIONS"]):
        own, shown = drawn = drawn_trajectories(context)
        asked = context.params.target.target_return
        target_return = float(own.data.episode_returns.mean()) if asked is None else asked
        data, prompts_from = shown
        if params.held_out is not None:
            data, held_out = split(data, params.held_out.share, f"{context.stage} {context.key}")
            if prompts_from is shown.data:
                prompts_from = data
        target = Target.of(data, plm, target_return, prompts_from, held_out)
    else:
        target = Unseen.of(context.task, context.inputs["prompts"], plm, context.params.target)
    task_seed = int(np.random.SeedSequence([seed, context.task]).generate_state(1)[0])
    simulations: list[Simulation] = []

    def simulate(budget: int) -> Simulation:
        simulations.append(_simulation(context, plm.normalization, budget, task_seed, len(simulations)))
        return simulations[-1]

    online = getattr(method, "ONLINE", FLAGS["ONLINE"])
    title = f"{context.stage} {context.key}"
    given = context.work, context.logs, title, context.progress, task_seed, simulate if online else None
    method_run = Run(*given, task=context.task)
    result = _tune(context, method.tune, plm, target, method_run)
    if held_out is not None and params.held_out.fall_back:
        assert isinstance(target, Target), "only a method with demonstrations has some to hold out"
        result = fall_back(plm, target, result, held_out, params.prompts, task_seed)
    result.save(context.out)
    if result.history.rows:
        result.history.write(context.out / "log.csv")
    episodes = sum(simulation.episodes for simulation in simulations)
    acting = sum(simulation.steps for simulation in simulations)
    cost = result.cost.model_copy(update={"plm_forward": result.cost.plm_forward + acting})
    summaries.save(context.out, _summary(context, drawn, target.target_return, result, cost, episodes))
    figures = {"tuned_parameters": cost.tuned_parameters, "plm_passes": cost.plm_forward + cost.plm_backward}
    fell_back = {} if held_out is None else {"fell_back": isinstance(result, FellBack)}
    return figures | ({"environment_episodes": episodes} if online else {}) | fell_back


def _tune(
    context: StageContext, tune: Callable[..., Any], plm: Pretrained, target: Target | Unseen, run: Run
) -> Adaptation:
    """Call a method. Raises PipelineError if a user's module raises or returns something else."""
    try:
        result = tune(plm, target, context.params, run)
    except (PipelineError, Interrupted):
        raise
    except (Exception, SystemExit) as error:
        if context.module.startswith("pd_pipeline."):
            raise
        raise PipelineError(f"{run.title}: `tune` of {context.module} raised {error_text(error)}: fix it") from error
    if not isinstance(result, Adaptation):
        raise PipelineError(
            f"{run.title}: `tune` of {context.module} returned {type(result).__name__}, not an Adaptation"
        )
    if not isinstance(result.history, History):
        found = type(result.history).__name__
        raise PipelineError(
            f"{run.title}: the history that `tune` of {context.module} returned is {found}, not a History "
            "(pd_pipeline.training.loop): leave it out if nothing is logged"
        )
    return result


def _simulation(context: StageContext, normalization: Normalization, budget: int, seed: int, number: int) -> Simulation:
    """The environment of the target, even if the method is shown the trajectories of another task."""

    def make(seeds: list[int]) -> LocalBatch | WorkerBatch:
        tasks = [context.task] * len(seeds)
        return make_batch(context.family, context.environment, context.root, tasks, seeds, WORKERS, stage=context.stage)

    work = context.work / f"simulation-{number}"
    return Simulation(make, normalization, budget, seed, work, f"{context.stage} {context.key}")


class Drawn(NamedTuple):
    """What is drawn of one task."""

    data: Trajectories
    """The few-shot trajectories."""
    prompts: Trajectories
    """Those that prompts are cut from: the same ones unless `target.prompt_quality` is set."""


def drawn_trajectories(context: StageContext) -> tuple[Drawn, Drawn]:
    """Few-shot trajectories of the target and those shown to the method: the same, or drawn from another task."""
    own = _drawn(context, context.inputs["target_data"])
    if context.params.shown == "own":
        return own, own
    if other_task(context.family, context.task) is None:
        raise PipelineError(f"family '{context.family.name}' has only one task: `shown: other` needs another")
    return own, _drawn(context, context.inputs["target_data"] / OTHER)


def _drawn(context: StageContext, folder: Path) -> Drawn:
    """What is drawn from the files of one task, a file per quality."""
    target = context.params.target

    def drawn(quality: str) -> Trajectories:
        data = read(folder / f"{quality}.parquet", family=context.family, new_task=context.task)
        return data.select(draw_few_shot(data, context.params, context.seed)[0])

    data = drawn(target.quality)
    prompt_quality = target.prompt_quality or target.quality
    return Drawn(data, data if prompt_quality == target.quality else drawn(prompt_quality))


def _summary(
    context: StageContext,
    drawn: tuple[Drawn, Drawn] | None,
    target_return: float,
    result: Adaptation,
    cost: Cost,
    episodes: int,
) -> Summary:
    """The inputs and the cost of a method, and what evaluation needs. `drawn`: the target's and those shown, if any."""
    params = context.params
    own, shown = (None, None) if drawn is None else drawn
    return Summary(
        method=context.params_file.run.method_of(context.stage.removeprefix("tuned_")),
        frozen=result.frozen,
        quality=params.target.quality,
        few_shot=0 if own is None else len(own.data.task_id),
        few_shot_episodes=() if own is None else _numbers(own.data),
        choose=params.target.choose,
        prompt_quality=params.target.prompt_quality or params.target.quality,
        prompt_episodes=() if own is None else _numbers(own.prompts),
        shown_task=context.task if shown is None else int(shown.data.task_id[0]),
        shown_episodes=() if shown is None else _numbers(shown.data),
        target_return=target_return,
        candidates=params.candidates,
        chain=max((chain for _, chain in result.generators().values()), default=None),
        environment_episodes=episodes,
        fell_back=isinstance(result, FellBack),
        **cost.model_dump(),
    )


def _numbers(data: Trajectories) -> tuple[int, ...]:
    return tuple(data.episode_id.tolist())
