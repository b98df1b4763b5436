"""The stages tuned_<method>: prepare what a method is given, run it, write what it leaves."""

import importlib
from typing import Any

import numpy as np

from pd_pipeline.compute import pick_device, use_bf16
from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import Family
from pd_pipeline.models.saved import load_diffuser, load_policy
from pd_pipeline.models.weights import weights
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import save_arrays
from pd_pipeline.training.loop import OptimizationParams
from pd_pipeline.trajectories.reading import Trajectories, read
from pd_pipeline.tuning import summary as summaries
from pd_pipeline.tuning.protocol import FewShot, Pretrained, Run, Tuned, TuningParams, draw_few_shot
from pd_pipeline.tuning.summary import Summary


def run(context: StageContext) -> dict[str, Any]:
    """Write `prompts.safetensors`, `log.csv`, `summary.json` and what weights were tuned."""
    method = importlib.import_module(type(context.params).__module__)  # a variant's stage has another name
    params, seed = context.params, context.seed
    trained = isinstance(params, OptimizationParams)
    device = pick_device(params.device if trained else "cpu")
    context.facts["device"] = str(device)
    context.facts["precision"] = "bf16" if trained and use_bf16(params.precision, device) else "float32"
    policy, normalization = load_policy(context.inputs["plm"], device)
    diffuser = load_diffuser(context.inputs["diffuser"], device) if "diffuser" in context.inputs else None
    plm = Pretrained(policy, normalization, device, diffuser)
    own, shown = few_shot_trajectories(context)
    title = f"{context.stage} {context.key}"
    run_ = Run(context.work, context.logs, title, context.progress)
    task_seed = int(np.random.SeedSequence([seed, context.task]).generate_state(1)[0])
    tuned = method.tune(plm, FewShot.of(shown, plm), params, task_seed, run_)
    tuned.prompts.save(context.out / "prompts.safetensors")
    if tuned.policy is not None:
        save_arrays(context.out / "policy.safetensors", weights(tuned.policy))
    for name, denoiser in tuned.denoisers.items():
        save_arrays(context.out / f"{name}.safetensors", weights(denoiser))
    if tuned.history.rows:
        tuned.history.write(context.out / "log.csv")
    name = method.__name__.rpartition(".")[2]
    summaries.save(context.out, summary(name, params, own, shown, tuned))
    return {"tuned_parameters": tuned.tuned_parameters, "plm_passes": tuned.plm_passes}


def few_shot_trajectories(context: StageContext) -> tuple[Trajectories, Trajectories]:
    """Of the target, and those that the method is shown: the same, or another task's drawn by the same rule."""
    params, target = context.params, context.task
    shown = target if params.shown == "own" else other_task(context.family, target)
    path = context.inputs["trajectories"] / f"{params.quality}.parquet"
    data = read(path, sorted({target, shown}), family=context.family)

    def drawn(task: int) -> Trajectories:
        of_task = data.select(np.flatnonzero(data.task_id == task))
        return of_task.select(draw_few_shot(of_task, params, context.seed)[0])

    return drawn(target), drawn(shown)


def other_task(family: Family, task: int) -> int:
    """The target after `task`, the first after the last; with a single target the first training task."""
    targets = family.test_tasks
    following = targets[(targets.index(task) + 1) % len(targets)]
    if others := [other for other in (following, *family.train_tasks) if other != task]:
        return others[0]
    raise PipelineError(f"family '{family.name}' has one task alone: `shown: other` needs another")


def summary(method: str, params: TuningParams, own: Trajectories, shown: Trajectories, tuned: Tuned) -> Summary:
    """What a method was given, what it cost and how its prompts are to be evaluated."""
    return Summary(
        method=method,
        frozen=tuned.policy is None,
        quality=params.quality,
        few_shot=len(own.task_id),
        few_shot_episodes=tuple(own.episode_id.tolist()),
        shown_task=int(shown.task_id[0]),
        shown_episodes=tuple(shown.episode_id.tolist()),
        target_return=float(own.episode_returns.mean()),
        candidates=params.candidates,
        chain=tuned.chain,
        tuned_parameters=tuned.tuned_parameters,
        plm_passes=tuned.plm_passes,
        environment_episodes=tuned.environment_episodes,
    )
