"""Stage evaluation: roll out what every method left, for all target tasks of a family and seed; score it."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import torch
from pydantic import Field

from pd_pipeline.acting.environments import episode_seed, make_batch
from pd_pipeline.acting.rollouts import Group, Rollouts, rollout
from pd_pipeline.compute import pick_device, use_bf16
from pd_pipeline.config import Device, Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.fit import compare
from pd_pipeline.evaluation.scores import REFERENCE, method_metrics, summary_of
from pd_pipeline.models.decision_transformer import PromptingDecisionTransformer
from pd_pipeline.models.diffuser import Denoiser
from pd_pipeline.models.diffusion import Diffusion
from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.models.saved import load_diffuser, load_policy
from pd_pipeline.models.weights import load_weights
from pd_pipeline.prompts.segments import Normalization, Prompts
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import atomic_file, read_json, save_arrays, write_json
from pd_pipeline.trajectories.reading import read
from pd_pipeline.tuning import summary
from pd_pipeline.tuning.prompt_diffuser import generate
from pd_pipeline.tuning.protocol import FewShot, Pretrained, prompt_losses


class Params(Parameters):
    """How scores are made."""

    episodes: int = Field(default=1, gt=0, le=10_000, description="of each prompt; more where starts are random")
    workers: int | None = Field(
        default=None, ge=1, le=1024, description="processes for environments; None: one per core"
    )
    patience: float = Field(
        default=600.0, gt=0, le=86_400, description="seconds after which a step that has not come back is ended"
    )
    device: Device = "auto"
    precision: Literal["float32", "bf16"] = Field(
        default="float32", description="bf16 is faster where hardware has it, and then gives other actions"
    )
    bootstrap: int = Field(default=2000, gt=0, le=1_000_000, description="draws of an interval")
    fit_prompts: int = Field(
        default=512, gt=1, le=100_000, description="prompts generated to measure the diffuser's fit"
    )


class Result(NamedTuple):
    """What one method left for one target."""

    method: str
    task: int
    directory: Path
    prompts: Prompts
    summary: dict[str, Any]

    @property
    def target_return(self) -> float:
        """The return that the policy is asked for."""
        return float(self.summary["target_return"])


def run(context: StageContext) -> dict[str, Any]:
    """Write `scores.parquet`, `metrics.json`, `fit.json` and `rollouts.safetensors`."""
    params: Params = context.params
    device = pick_device(params.device)
    context.facts.update(device=str(device), precision=params.precision)
    policy, normalization = load_policy(context.inputs["plm"], device)
    results = [_result(d, name.removeprefix("tuned_"), task) for name, task, d in _directories(context)]
    rollouts = _roll_out(context, results, policy, normalization, device, 0)  # those of the first episode are kept
    tables = [_scores(context, results, rollouts, 0)]
    for episode in range(1, params.episodes):
        again = _roll_out(context, results, policy, normalization, device, episode)
        tables.append(_scores(context, results, again, episode))
    scores = pl.concat(tables)
    with atomic_file(context.out / "scores.parquet") as temporary:
        scores.write_parquet(temporary)
    summaries = {result.method: [r.summary for r in results if r.method == result.method] for result in results}
    metrics = method_metrics(scores, summaries, context.seed, params.bootstrap)
    write_json(
        context.out / "metrics.json",
        {"methods": metrics, "family": context.key.family, "seed": context.seed, "precision": params.precision},
    )
    plm = Pretrained(policy, normalization, device, load_diffuser(context.inputs["diffuser"], device))
    write_json(context.out / "fit.json", _fit(context, results, plm))
    first = scores.with_row_index().filter(pl.col("prompt") == 0, pl.col("episode") == 0)
    rows = first["index"].to_numpy()
    save_arrays(
        context.out / "rollouts.safetensors",
        {"observations": rollouts.observations[rows], "actions": rollouts.actions[rows], "rows": rows.astype(np.int64)},
    )
    return {f"return_mean_{method}": values["return_mean"] for method, values in metrics.items()}


def _directories(context: StageContext) -> list[tuple[str, int, Path]]:
    """(stage, task, directory) of every tuned out that this key reads."""
    names = [name for name in context.inputs if name.startswith("tuned_")]
    return [(name, task, context.inputs[name] / str(task)) for name in names for task in context.family.test_tasks]


def _result(directory: Path, method: str, task: int) -> Result:
    prompts = Prompts.load(directory / "prompts.safetensors")
    return Result(method, task, directory, prompts, summary_of(summary.load(directory).model_dump(), task))


def _roll_out(
    context: StageContext,
    results: list[Result],
    policy: PromptingDecisionTransformer,
    normalization: Normalization,
    device: torch.device,
    episode: int,
) -> Rollouts:
    """An episode of every prompt of every result; a result with its own weights acts with them."""
    counts = [len(result.prompts) for result in results]
    ends = np.cumsum(counts)
    rows = [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]
    tasks = [result.task for result in results for _ in result.prompts.start]
    targets = np.array([result.target_return for result in results for _ in result.prompts.start])
    groups = []
    shared: dict[int, list[int]] = {}  # prompt length -> results under which the PLM itself acts
    for i, result in enumerate(results):
        if (result.directory / "policy.safetensors").exists():
            tuned = PromptingDecisionTransformer(policy.config)
            load_weights(tuned, result.directory / "policy.safetensors", "the configuration of the PLM")
            groups.append(Group(tuned.to(device).eval(), rows[i], result.prompts))
        else:
            shared.setdefault(result.prompts.x0.shape[1], []).append(i)
    for alike in shared.values():
        joined = _joined([results[i].prompts for i in alike])
        groups.append(Group(policy, np.concatenate([rows[i] for i in alike]), joined))
    within = np.concatenate([np.arange(count) for count in counts])
    seeds = [episode_seed(context.seed, task, int(prompt), episode) for task, prompt in zip(tasks, within, strict=True)]
    workers, patience = context.params.workers, context.params.patience
    environments = make_batch(context.family, context.environment, context.root, tasks, seeds, workers, patience)
    try:
        count = context.params.episodes
        title = f"evaluation {context.key}" + (f", {episode + 1} of {count}" if count > 1 else "")
        bf16 = use_bf16(context.params.precision, device)
        return rollout(groups, targets, normalization, environments, context.progress, title, bf16)
    finally:
        environments.close()


def _joined(parts: list[Prompts]) -> Prompts:
    """Prompts of one length as one."""
    return Prompts(*(np.concatenate([getattr(p, name) for p in parts]) for name in Prompts.__dataclass_fields__))


def _scores(context: StageContext, results: list[Result], rollouts: Rollouts, episode: int) -> pl.DataFrame:
    """One row per method, task, seed, prompt and episode."""
    rows = [
        {
            "method": result.method,
            "task": result.task,
            "seed": context.seed,
            "prompt": prompt,
            "episode": episode,
            "target_return": result.target_return,
            "origin": "generated" if origin < 0 else f"episode {origin}",
            "origin_step": int(start),
        }
        for result in results
        for prompt, (origin, start) in enumerate(zip(result.prompts.episode_id, result.prompts.start, strict=True))
    ]
    return pl.DataFrame(rows).with_columns(
        pl.Series("return", rollouts.returns),
        pl.Series("success", rollouts.success if context.family.has_success else [None] * len(rows), dtype=pl.Boolean),
        pl.Series("length", rollouts.lengths),
    )


def _fit(context: StageContext, results: list[Result], plm: Pretrained) -> dict[str, Any]:
    """Fit of the pre-trained diffuser on held-out training prompts, and of the tuned ones on held-out target ones.

    The pre-trained one generates through its whole chain, the tuned ones through the chain that the prompts which are
    evaluated come from.
    """
    assert plm.diffuser is not None
    denoiser, diffusion = plm.diffuser
    quality = read_json(context.inputs["diffuser"] / "config.json")["quality"]
    held_out = Prompts.load(context.inputs["prompts"] / f"{quality}-held_out.safetensors")
    x0, y = prompt_tensors(held_out, plm.normalization, plm.device)
    rng = np.random.default_rng(context.seed)
    count = min(context.params.fit_prompts, len(y) // 2)
    made, _ = generate(denoiser, diffusion, y, count, diffusion.steps, context.seed)
    pretrained = compare(x0.cpu().numpy(), made.cpu().numpy(), rng) | {"chain": diffusion.steps}
    fit: dict[str, Any] = {"pretrained": pretrained, "targets": {}}
    for result in (result for result in results if result.method == REFERENCE):  # its variants are not mixed in
        for name in ("adapted", "guided"):
            if (result.directory / f"{name}.safetensors").exists():
                load_weights(denoiser, result.directory / f"{name}.safetensors", "the diffuser's configuration")
                kept = result.prompts if name == "guided" else None  # the evaluated prompts come from the last state
                target = _target_fit(context, result, kept, plm, denoiser, diffusion, rng)
                fit["targets"].setdefault(str(result.task), {})[name] = target
    return fit


def _target_fit(
    context: StageContext,
    result: Result,
    kept: Prompts | None,
    plm: Pretrained,
    denoiser: Denoiser,
    diffusion: Diffusion,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Generated against real prompts of the target's trajectories that tuning did not see, and L_DT under both.

    `kept` are the prompts that the method left, where they come from this denoiser.
    """
    file = context.inputs["trajectories"] / f"{result.summary['quality']}.parquet"
    data = read(file, [result.task], family=context.family)
    unseen = np.flatnonzero(~np.isin(data.episode_id, result.summary["few_shot_episodes"]))
    if not len(unseen):
        raise PipelineError(
            f"task {result.task}: all its trajectories are few-shot ones: collect more than few_shot "
            "(trajectories.episodes), so that the fit can be measured"
        )
    held_out = FewShot.of(data.select(unseen), plm)
    x0, y = held_out.tensors(plm)
    count = min(context.params.fit_prompts, len(y) // 2)
    chain = result.summary["chain"]
    made, conditions = generate(denoiser, diffusion, y, count, chain, context.seed)
    left = None if kept is None else plm.normalization.normalize(kept.x0)
    real = torch.from_numpy(rng.choice(len(x0), min(16, count), replace=False)).to(plm.device)
    return compare(x0.cpu().numpy(), made.cpu().numpy(), rng, left) | {
        "chain": min(chain, diffusion.steps),
        "action_loss_real": float(prompt_losses(plm, held_out, x0[real], y[real], context.seed).mean()),
        "action_loss_generated": float(
            prompt_losses(plm, held_out, made[: len(real)], conditions[: len(real)], context.seed).mean()
        ),
    }
