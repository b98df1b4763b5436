"""Stage prompt_fit: distances between generated and real prompts, for the pre-trained and the tuned diffusers."""

from typing import Any

import numpy as np
import torch
from pydantic import Field

from pd_pipeline.compute import pick_device
from pd_pipeline.config import TUNED, Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.fit import compare
from pd_pipeline.evaluation.scores import REFERENCE
from pd_pipeline.models.conditions import conditioned
from pd_pipeline.models.diffuser import Denoiser, generate
from pd_pipeline.models.diffusion import Diffusion
from pd_pipeline.prompts.segments import Prompts
from pd_pipeline.prompts.stage import HELD_OUT, load_prompts, tensors_of
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import read_json, write_json
from pd_pipeline.trajectories.reading import read
from pd_pipeline.tuning import adaptation, summary
from pd_pipeline.tuning.protocol import Pretrained, Target, prompt_losses
from pd_pipeline.tuning.summary import Summary

SCORED = 16
"""Prompts at most whose action loss is measured."""


class Params(Parameters):
    """How the fit is measured."""

    prompts: int = Field(default=512, gt=1, le=100_000, description="prompts to generate")


def run(context: StageContext) -> dict[str, Any]:
    """Write `fit.json`.

    The pre-trained diffuser is compared with held-out training prompts and generates with its full chain. The tuned
    diffusers are compared with prompts from target trajectories that tuning did not use, and generate with the same
    chain as the evaluated prompts. Their names are those of `Adaptation.generators`; `guided by my_method` is one of
    a method other than prompt_diffuser.
    """
    device = pick_device(context.device)
    context.facts["device"] = str(device)
    plm = Pretrained.load(context.inputs["plm"], context.inputs["diffuser"], device)
    assert plm.diffuser is not None
    denoiser, diffusion = plm.diffuser
    qualities = tuple(read_json(context.inputs["diffuser"] / "config.json")["qualities"])
    conditions = denoiser.config.conditions
    loaded = load_prompts(context.inputs["prompts"], qualities, HELD_OUT, plm.normalization)
    x0, y = tensors_of(loaded, plm.normalization, conditions, device)
    rng = np.random.default_rng(context.seed)
    count = min(context.params.prompts, len(y) // 2)
    generated, _ = generate(denoiser, diffusion, y, count, diffusion.steps, context.seed)
    episodes = np.concatenate([_episodes(prompts, number) for number, prompts in enumerate(loaded)])
    pretrained = compare(x0.cpu().numpy(), episodes, generated.cpu().numpy(), rng) | {"chain": diffusion.steps}
    targets: dict[str, dict[str, Any]] = {}
    for name in (name for name in context.inputs if name.startswith("tuned_")):
        for task in context.family.test_tasks:
            directory = context.inputs[name] / str(task)
            result = adaptation.load(context.modules[name], directory, plm)
            tuned_summary = summary.load(directory)
            generators = result.generators()
            for state, (tuned, chain) in generators.items():
                is_last = state == list(generators)[-1]
                shown = result.prompts_to_show() if is_last else None  # the last state generated the prompts
                by = "" if name == f"{TUNED}{REFERENCE}" else f" by {name.removeprefix(TUNED)}"
                targets.setdefault(str(task), {})[f"{state}{by}"] = _target_fit(
                    context, task, tuned_summary, shown, plm, tuned, diffusion, chain, rng
                )
    write_json(context.out / "fit.json", {"pretrained": pretrained, "targets": targets})
    return {f"wasserstein_{kind}": pretrained[f"wasserstein_{kind}"] for kind in ("real", "generated")}


def _target_fit(
    context: StageContext,
    task: int,
    tuned_summary: Summary,
    shown: Prompts | None,
    plm: Pretrained,
    denoiser: Denoiser,
    diffusion: Diffusion,
    chain: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Compare generated with real prompts of target trajectories that tuning did not use.

    The action loss on these trajectories is that of generated prompts and of real ones that the method was given.
    `shown` are the prompts that the method returned, if this denoiser generated them.
    """
    path = context.inputs["target_data"] / str(task) / f"{tuned_summary.prompt_quality}.parquet"
    data = read(path, family=context.family)
    unseen = np.flatnonzero(~np.isin(data.episode_id, tuned_summary.prompt_episodes))
    if not len(unseen):
        raise PipelineError(
            f"task {task}: all its trajectories are few-shot trajectories: to measure the fit, collect more "
            "(trajectories.episodes)"
        )
    held_out = Target.of(data.select(unseen), plm)
    x0, y = conditioned(held_out.prompts, denoiser.config.conditions, plm.normalization, plm.device)
    if len(y) < 2:
        raise PipelineError(
            f"task {task}: a single prompt can be cut from the trajectories that were not given to the method: to "
            "measure the fit, collect more (trajectories.episodes)"
        )
    count = min(context.params.prompts, len(y) // 2)
    made, conditions = generate(denoiser, diffusion, y, count, chain, context.seed)
    kept = None if shown is None else plm.normalization.normalize(shown.x0)
    episodes = _episodes(held_out.prompts, 0)
    # real prompts from what the method was given, as its own are: one of an unseen trajectory would know its actions
    given = Target.of(data.select(np.flatnonzero(np.isin(data.episode_id, tuned_summary.prompt_episodes))), plm)
    of_given = conditioned(given.prompts, denoiser.config.conditions, plm.normalization, plm.device)
    rows = rng.choice(len(given.prompts), min(SCORED, len(given.prompts)), replace=False)
    real, of_real = (part[torch.from_numpy(rows).to(plm.device)] for part in of_given)
    return compare(x0.cpu().numpy(), episodes, made.cpu().numpy(), rng, kept) | {
        "chain": min(chain, diffusion.steps),
        "action_loss_real": float(prompt_losses(plm, held_out, real, of_real, context.seed).mean()),
        "action_loss_generated": float(
            prompt_losses(plm, held_out, made[:SCORED], conditions[:SCORED], context.seed).mean()
        ),
    }


def _episodes(prompts: Prompts, number: int) -> np.ndarray:
    """(n, 3): task, number of the file and episode of each prompt."""
    return np.stack((prompts.task_id, np.full(len(prompts), number), prompts.episode_id), axis=1)
