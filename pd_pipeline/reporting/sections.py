"""The plots of one family, each with the one sentence that says how to read it, and the pictures of its rollouts."""

import base64
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from pd_pipeline.evaluation.scores import CEILING, FLOOR, REFERENCE, START
from pd_pipeline.families.base import ExpertBars
from pd_pipeline.prompts.segments import cut
from pd_pipeline.reporting import comparison, cost_plots, curves, paths, plots
from pd_pipeline.reporting.canvas import svg
from pd_pipeline.reporting.formatting import number, percent
from pd_pipeline.reporting.gather import FamilyResults, phase
from pd_pipeline.reporting.replay import Replay, animation, filmstrip, replay
from pd_pipeline.reporting.rollouts import Episode
from pd_pipeline.stage import StageContext
from pd_pipeline.trajectories.reading import Trajectories, read
from pd_pipeline.tuning import summary
from pd_pipeline.tuning.adaptation import load
from pd_pipeline.tuning.protocol import Pretrained

SENTENCES = {
    "loss": "Action loss on the few-shot trajectories over the steps of tuning; thin lines are targets.",
    "best": "Best return of the episodes so far; thin lines are targets.",
    "return": "Mean return of the episodes of each step; thin lines are targets.",
}
"""What a method logged -> how to read its curve."""


class Plot(NamedTuple):
    """One figure of the page."""

    title: str
    sentence: str
    image: str
    """An SVG element."""


def family_figures(context: StageContext, results: FamilyResults, bars: ExpertBars) -> dict[str, list[Plot]]:
    """Chapter of the page -> its figures."""
    chapters = {
        "comparison": _comparison(results),
        "rollouts": _rollouts(results),
        "tuning": _tuning(results),
        "prompts": _prompts(context, results),
        "fit": _fit(results),
        "training": _training(results),
        "data": _data(results, bars),
    }
    return {
        chapter: [Plot(title, sentence, svg(figure, f"{results.name}: {title}")) for title, sentence, figure in drawn]
        for chapter, drawn in chapters.items()
    }


Drawn = list[tuple[str, str, Figure]]


def _comparison(results: FamilyResults) -> Drawn:
    if results.offline:
        return [
            (
                "Methods compared, offline",
                "Each mark is a method's action loss on held-out trajectories of the targets, the mean over targets, "
                "with its 95 % interval: of one seed over trajectories (bootstrap), of several over seeds (Student). "
                "Lower is better.",
                plots.offline_comparison(results.offline, results.styles),
            ),
            (
                "Action loss by target task",
                "Marks are means over the held-out trajectories of a target, lines their 95 % intervals: a method that "
                "fails on one task only shows it here.",
                plots.offline_per_task(results.offline, results.styles),
            ),
        ]
    costs: Drawn = []
    if any(any(asdict(found.costs).values()) for found in results.metrics.values()):
        figure = cost_plots.against_cost(results.metrics, results.styles, len(results.seeds))
        costs = [("Return against cost", cost_plots.MEANING, figure)]
    return [
        (
            "Methods compared",
            "Each mark is a method's return or success rate over all target tasks, seeds and prompts; the line is its "
            "95 % interval: of one seed over prompts (bootstrap within tasks for returns, Wilson for success), of "
            "several over seeds (Student). A noise prompt far below is not drawn to scale.",
            plots.comparison(results.metrics, results.styles),
        ),
        (
            "Return by target task",
            "Marks are mean returns, lines their 95 % intervals: a method that fails on one "
            "task only shows it here. An arrow at the edge stands for a mark below it.",
            plots.per_task(results.scores, results.methods),
        ),
        *costs,
        *(
            (
                "Performance profiles",
                f"The share of runs with a normalised return (0: {FLOOR}, 1: {CEILING}) above a level. A line above "
                "another's everywhere is better whatever the level; with several seeds, bands are 95 % intervals.",
                comparison.profiles(runs, results.styles),
            )
            for runs in comparison.if_one_scale(results.name, results.scores)
        ),
    ]


def _rollouts(results: FamilyResults) -> Drawn:
    if not any(results.goal_position(task) is not None for task in results.targets):
        return []
    return [
        (
            "Paths to the goal",
            f"Seen from above, the first rollout of each method (seed {results.seeds[0]}) from the start (circle) to "
            "the hidden goal (star): only the prompt tells the policy where that is.",
            paths.rollout_paths(results),
        ),
        (
            "Distance to the goal",
            "Lines are means over targets and seeds, bands reach from the closest to the farthest rollout; one "
            "that has ended counts no longer. A line that stays up never found the goal.",
            paths.goal_distance(results),
        ),
    ]


def _tuning(results: FamilyResults) -> Drawn:
    drawn = []
    tables = list(results.logs.get(REFERENCE, {}).values())
    if any("l_dt" in table for table in tables):
        drawn += [
            (
                "L_DM and L_DT",
                "Thin lines are targets, the bold one their mean; right of the dashed line the PLM's gradient guides "
                "the diffuser, and L_DT should fall without L_DM rising much.",
                curves.guidance_losses(tables),
            ),
            (
                "Gradients during guidance",
                "A cosine below zero means that making prompts more useful to the PLM would unlearn their "
                "distribution; in those steps the conflicting part is projected away.",
                curves.guidance_gradients(tables),
            ),
        ]
    for method, logs in results.logs.items():
        found, color = list(logs.values()), results.styles[method][0]
        guided = any("l_dt" in table for table in found)  # as the reference is, or a variant of it
        if guided and any("return" in table for table in found):  # episodes after that
            found, guided = [phase(table, int(table["phase"].max())) for table in found], False
        if not guided:
            drawn.append((f"Tuning of {method}", SENTENCES[curves.logged(found)], curves.tuning_curves(found, color)))
    return drawn


def _prompts(context: StageContext, results: FamilyResults) -> Drawn:
    """Prompts that were made or tuned, of the first target and seed.

    Variants are left out, and methods that got no trajectory of the target to compare their prompts with.
    """
    task, key = results.targets[0], f"{results.name}-{results.seeds[0]}"
    outs = {method: context.inputs[f"tuned_{method}"] / key / str(task) for method in results.methods}
    plm, tuned = _pretrained(context, key), {}
    for method in (method for method in results.logs if method not in context.params_file.run.variants):
        shown = load(context.modules[f"tuned_{method}"], outs[method], plm).prompts_to_show()
        given = summary.load(outs[method]).prompt_episodes
        if shown is not None and (shown.episode_id < 0).all() and given:
            tuned[method] = shown
    if not tuned:
        return []
    first, prompts = next(iter(tuned.items()))
    recorded = summary.load(outs[first])
    file = f"{recorded.prompt_quality}.parquet"
    own = read(context.inputs["target_data"] / results.name / str(task) / file)
    few_shot = own.select(np.flatnonzero(np.isin(own.episode_id, recorded.prompt_episodes)))
    data = read(context.inputs["trajectories"] / results.name / file)
    length = prompts.x0.shape[1]
    of_others = _one_of_each(data, exclude=task)
    long_enough = of_others.select(np.flatnonzero(of_others.lengths >= length))
    stride = max(1, int(data.lengths.max()) // 25)
    others = cut(long_enough, length, stride) if len(long_enough.task_id) else None
    figure, share = paths.prompt_map(cut(few_shot, length), others, tuned, plm.normalization, results.styles)
    channels = paths.varying_channels(few_shot, plm.normalization)
    over_time = [
        (
            f"Generated prompts over time, task {task}",
            f"Each short line is a prompt of {first}, at its timestep, over the few-shot trajectories (grey) it was "
            "tuned on: good ones lie on them.",
            paths.prompts_over_time(few_shot, prompts, channels, results.styles[first][0]),
        )
    ]
    return [
        *(over_time if channels else []),
        (
            f"Map of prompts, task {task}",
            f"Prompts in the plane of the two main components of real ones ({percent(share, 0)} of their variance): "
            f"those of {' and '.join(tuned)} among the few-shot ones imitate them, those away from all real ones left "
            "the data.",
            figure,
        ),
    ]


def _pretrained(context: StageContext, key: str) -> Pretrained:
    diffuser = context.inputs["diffuser"] / key if "diffuser" in context.inputs else None
    return Pretrained.load(context.inputs["plm"] / key, diffuser, torch.device("cpu"))


def _one_of_each(data: Trajectories, exclude: int) -> Trajectories:
    """The first episode of every task but one."""
    tasks, first = np.unique(data.task_id, return_index=True)
    return data.select(first[tasks != exclude])


def _fit(results: FamilyResults) -> Drawn:
    fits = list(results.fit.values())
    if not fits:
        return []
    drawn = [
        (
            "Generated against real prompts",
            "The bar shows what two real samples have between them, the dot what generated prompts have: the closer "
            "the dot to the bar, the better the fit (small marks are targets and seeds). The pre-trained diffuser is "
            "measured on training tasks and through its whole chain, the tuned ones on the targets and through the "
            "chain of so many steps that the prompts which are evaluated (diamond) come from.",
            plots.fit_distances(fits),
        )
    ]
    if "wasserstein_generated_per_channel" in fits[0].get("pretrained", {}):
        sentence = (
            "Each point is a channel of the prompt matrix (observation, action or reward) under the pre-trained "
            "diffuser; on the dashed line generated values are spread just as real ones."
        )
        drawn.append(("Fit by channel", sentence, plots.fit_channels(fits[0]["pretrained"])))
    return drawn


def _training(results: FamilyResults) -> Drawn:
    described = {
        "plm": (
            "Policy transformer (PLM)",
            "Action loss in pre-training on the training tasks; the gap between the lines is what was learned by "
            "heart.",
        ),
        "diffuser": ("Diffuser", "Denoising loss L_DM in pre-training on the prompts of the training tasks."),
        "hyper_network": (
            "Hyper-network",
            "Action loss of the frozen PLM with the adapters that it makes for the training tasks.",
        ),
    }
    return [(*described[stage], curves.learning_curves(tables)) for stage, tables in results.training.items()]


def _data(results: FamilyResults, bars: ExpertBars) -> Drawn:
    return [
        (
            "Behaviour data",
            "Mean return of the collected trajectories of each task, by the quality of the policy that made them"
            + ("; the dashed line is what the mean over tasks of expert data must reach." if bars.return_mean else "."),
            plots.data_returns(results.data, results.targets, bars.return_mean),
        ),
        (
            "States visited and episodes lost",
            "How evenly a quality's data fills the cells of each state dimension (100 %: all alike), and the share of "
            "its episodes that ended before the horizon.",
            plots.data_coverage(results.data),
        ),
    ]


def family_pictures(context: StageContext, block: dict[str, Any], results: FamilyResults) -> dict[str, Any]:
    """Animation and still frames of two methods on the target where they differ most, or why there are none."""
    if results.offline:
        return {"missing": "Nothing was rolled out: the family has no simulator."}
    chosen = _most_different(results)
    if not chosen:
        return {"missing": "No rollouts of two methods were recorded."}
    made: Replay = replay(chosen, results.name, block, context.root, context.work)
    if made.missing:
        return {"missing": made.missing}
    outcomes = [
        f"{episode.method} {_OUTCOMES[episode.success]} (return {number(episode.episode_return, 1)})"
        for episode in chosen
    ]
    return {
        "missing": "",
        "task": chosen[0].task,
        "outcomes": "; ".join(outcomes),
        "drift": made.drift,
        "goal_shown": results.goal_position(chosen[0].task) is not None,
        "animation": "data:image/webp;base64," + base64.b64encode(animation(made)).decode(),
        "filmstrip": "data:image/webp;base64," + base64.b64encode(filmstrip(made)).decode(),
    }


_OUTCOMES = {True: "solves it", False: "does not solve it", None: "runs"}


def _most_different(results: FamilyResults) -> list[Episode]:
    """prompt_dt beside prompt_diffuser (or the first two methods) for the target and seed of the largest gap."""
    pair = (START, REFERENCE) if {START, REFERENCE} <= set(results.methods) else results.methods[:2]
    found = {(e.method, e.task, e.seed): e for e in results.episodes}
    keys = [(task, seed) for task in results.targets for seed in results.seeds]
    pairs = [[found[m, *key] for m in pair] for key in keys if all((m, *key) in found for m in pair)]
    return max(pairs, key=lambda p: abs(p[0].episode_return - p[-1].episode_return), default=[])
