"""Writing a policy folder: one target's adaptation, as the actor with the lowest loss on the few-shot trajectories."""

import platform
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

import pd_pipeline
from pd_pipeline.acting.actors import Actors
from pd_pipeline.deployment import folder as folders
from pd_pipeline.deployment.ancestry import Piece
from pd_pipeline.deployment.candidates import digests_of
from pd_pipeline.deployment.folder import Description
from pd_pipeline.deployment.gathering import gather
from pd_pipeline.deployment.policy import read_policy
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.models.decision_transformer import Steps, action_loss
from pd_pipeline.models.prefixes import KeysValues
from pd_pipeline.models.saved_policy import save_policy
from pd_pipeline.piece import stage_context
from pd_pipeline.progress import silent
from pd_pipeline.stage import Key, StageContext
from pd_pipeline.stages import TUNED
from pd_pipeline.storage import atomic_directory, file_digest, save_arrays, write_json
from pd_pipeline.training.policy_data import PolicyData
from pd_pipeline.trajectories.reading import Trajectories
from pd_pipeline.tuning import adaptation, summary
from pd_pipeline.tuning.protocol import SELECTION_WINDOWS, Pretrained
from pd_pipeline.tuning.stage import drawn_trajectories
from pd_pipeline.tuning.summary import Summary

CHOSEN_BY = "the lowest action loss on the few-shot trajectories"
MODELS = ("plm", "diffuser")
FIRST = "the first one of a method that was given no trajectory of the target"


def write_policy(graph: Graph, method: str, key: Key, folder: Path) -> Description:
    """Write the policy that `method` tuned for a target to `folder`, whole or not at all.

    `method` is one of run.methods, a variant included; `key` has family, task and seed. Raises PipelineError if the
    method or key is unknown, the outs are missing or do not belong together, or `folder` is in use for something else.
    """
    stage = f"{TUNED}{method}"
    key = graph.key(stage, str(key))
    folders.refuse_other_contents(folder, *folders.CONTENTS)
    for need, other in [*graph.upstream(stage, key), (stage, key)]:
        if not (graph.root / graph.out(need, other)).is_dir():
            raise PipelineError(f"{graph.out(need, other)}: missing: run `pd-pipeline run {need} --key {other}` first")
    with atomic_directory(folder) as made:
        context = stage_context(graph, stage, key, made, made, silent)
        ancestry = gather(graph, stage, key, summary.load(graph.root / graph.out(stage, key)))
        _refuse_other_models(graph, ancestry.pieces[0])
        tuned = _tuned(graph, context)
        precision = graph.stage_params("evaluation", Key(key.family, seed=key.seed)).model_dump()["precision"]
        save_policy(made / folders.PLM, tuned.actors.policy, tuned.plm.normalization)
        save_arrays(made / folders.PREFIX, _arrays(_prefix(tuned.actors, tuned.chosen, precision == "bf16")))
        save_arrays(made / folders.SAMPLE, _sample(tuned.few_shot))
        write_json(made / folders.LINEAGE, ancestry.model_dump(mode="json"))
        description = _description(context, method, tuned, precision, digests_of(graph, method, key))
        write_json(made / folders.FILE, description.model_dump(mode="json"))
        read_policy(made)  # what cannot be loaded here could not be loaded anywhere
    return description


def _refuse_other_models(graph: Graph, tuned: Piece) -> None:
    """Raise PipelineError if a piece was tuned with other models than those that would act with it."""
    for need in tuned.replaced:
        if need.split("@")[0] in MODELS:
            raise PipelineError(
                f"{tuned.out}: tuned with another {need} than the one that is here now: run "
                f"`pd-pipeline run {tuned.stage} --key {tuned.key}` again"
            )


class _Tuned(NamedTuple):
    """What a method left for a target."""

    plm: Pretrained
    summary: Summary
    few_shot: Trajectories
    actors: Actors
    losses: np.ndarray  # (n,) of the actors

    @property
    def chosen(self) -> int:
        """The actor with the lowest loss; of a method that was given no trajectories, its first one."""
        return int(np.argmin(self.losses)) if self.summary.few_shot else 0


def _tuned(graph: Graph, context: StageContext) -> _Tuned:
    """What a method left. Raises PipelineError if its stage has other few-shot trajectories now."""
    stage, key, out = context.stage, context.key, graph.out(context.stage, context.key)
    plm = Pretrained.load(context.inputs["plm"], context.inputs.get("diffuser"), torch.device("cpu"))
    given = summary.load(graph.root / out)
    few_shot = drawn_trajectories(context)[0].data
    if given.few_shot and tuple(few_shot.episode_id.tolist()) != given.few_shot_episodes:
        raise PipelineError(
            f"{out}: tuned with other few-shot trajectories than {stage} has now: run "
            f"`pd-pipeline run {stage} --key {key}` again"
        )
    actors = adaptation.load(context.module, graph.root / out, plm).actors(plm)
    losses = actor_losses(actors, PolicyData(few_shot, plm.normalization, plm.device), _seed_of(key))
    return _Tuned(plm, given, few_shot, actors, losses)


def _description(
    context: StageContext, method: str, tuned: _Tuned, precision: Literal["float32", "bf16"], made_from: dict[str, str]
) -> Description:
    """The description of the folder `context.out`, whose other files have been written."""
    actors, normalization, origin = tuned.actors, tuned.plm.normalization, tuned.actors.origins[tuned.chosen]
    return Description(
        family=context.family.name,
        task=context.task,
        seed=context.seed,
        method=method,
        varies=tuned.summary.method,
        module=context.module,
        frozen=tuned.summary.frozen,
        requires_grad=any(weight.requires_grad for weight in actors.policy.parameters()),
        observation_size=normalization.observation_size,
        action_size=normalization.action_size,
        action_low=tuned.few_shot.metadata.action_low,
        action_high=tuned.few_shot.metadata.action_high,
        horizon=normalization.horizon,
        acting_context=actors.policy.config.acting_window,
        target_return=tuned.summary.target_return,
        precision=precision,
        actor=tuned.chosen,
        origin=origin.name,
        origin_step=origin.step,
        actor_losses=tuple(tuned.losses.tolist()),
        chosen_by=CHOSEN_BY if tuned.summary.few_shot else FIRST,
        versions={
            "pd_pipeline": pd_pipeline.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        made_from=made_from,
        files={
            file.relative_to(context.out).as_posix(): file_digest(file).hex()
            for file in sorted(context.out.rglob("*"))
            if file.is_file()
        },
    )


@torch.no_grad()
def actor_losses(actors: Actors, data: PolicyData, seed: int, windows: int = SELECTION_WINDOWS) -> np.ndarray:
    """Action loss (n,) of each of n actors over the same few-shot windows.

    The criterion that candidates are selected by (`tuning.protocol.prompt_losses`), for actors of any kind: each step
    of a window is predicted as in acting, from the steps before it.
    """
    context = actors.policy.config.acting_window
    window, valid = data.any_windows(np.random.default_rng(seed), windows, context)
    losses = []
    for actor in range(len(actors)):
        started = actors.select([actor] * windows).started()
        predicted = [started.act(Steps(*(part[:, : step + 1] for part in window))) for step in range(valid.shape[1])]
        losses.append(float(action_loss(torch.stack(predicted, dim=1), window.actions, valid)))
    return np.array(losses)


def _seed_of(key: Key) -> int:
    """The seed that the method had, as in `tuning.stage`: candidates were selected on the windows that it draws."""
    assert key.seed is not None
    assert key.task is not None
    return int(np.random.SeedSequence([key.seed, key.task]).generate_state(1)[0])


def _prefix(actors: Actors, chosen: int, bf16: bool) -> KeysValues:
    """Keys and values of every block, each (1, tokens, width)."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return actors.select([chosen]).started().before


def _arrays(prefix: KeysValues) -> dict[str, np.ndarray]:
    named: dict[str, np.ndarray] = {}
    for block, (keys, values) in enumerate(prefix):
        named |= {f"keys.{block}": keys[0].float().cpu().numpy(), f"values.{block}": values[0].float().cpu().numpy()}
    return named


def _sample(few_shot: Trajectories) -> dict[str, np.ndarray]:
    """The longest few-shot trajectory."""
    episode = few_shot.select(np.argmax(few_shot.lengths, keepdims=True))
    return {"observations": episode.observations, "rewards": episode.rewards}
