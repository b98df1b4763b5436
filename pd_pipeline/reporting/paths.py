"""Plots in the space of the task: where rollouts went, and which prompts were generated."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pd_pipeline.prompts.segments import Normalization, Prompts
from pd_pipeline.reporting.canvas import INK, MUTED, PAPER, Styles, legend_below, new_figure, styled
from pd_pipeline.reporting.gather import FamilyResults
from pd_pipeline.reporting.rollouts import Episode
from pd_pipeline.trajectories.reading import Trajectories

GOAL_COLOR = "#009E73"


@styled
def rollout_paths(results: FamilyResults) -> Figure:
    """The first recorded rollout of each method for each target, seen from above; the star is the goal."""
    tasks = [task for task in results.targets if results.goal_position(task) is not None]
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, panels = new_figure(1.75 * rows + 0.6, rows, columns)
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    first = results.seeds[0]
    for axes, task in zip(panels, tasks, strict=False):
        for method in results.methods:
            for episode in _episodes(results, method, task, first):
                axes.plot(*episode.observations[:, :2].T, color=results.styles[method][0], linewidth=1.4, label=method)
        start = next((e.observations[0] for e in results.episodes if e.task == task), None)
        if start is not None:
            axes.plot(*start[:2], "o", color=PAPER, markeredgecolor=INK, markersize=5)
        goal = results.goal_position(task)
        assert goal is not None
        axes.plot(*goal[:2], "*", color=GOAL_COLOR, markeredgecolor=INK, markeredgewidth=0.6, markersize=12)
        axes.set_title(f"task {task}")
        axes.set_aspect("equal", adjustable="datalim")
        axes.locator_params(nbins=4)
    panels[len(tasks) - 1].set_xlabel("observation 0")
    panels[0].set_ylabel("observation 1")
    legend_below(figure, panels[0])
    return figure


def _episodes(results: FamilyResults, method: str, task: int | None = None, seed: int | None = None) -> list[Episode]:
    return [
        e
        for e in results.episodes
        if e.method == method and task in (None, e.task) and seed in (None, e.seed) and len(e.observations)
    ]


@styled
def goal_distance(results: FamilyResults) -> Figure:
    """Distance to the goal over the steps: mean over targets and seeds, the band from the best to the worst.

    An episode that has ended counts no longer.
    """
    figure, (axes,) = new_figure(2.7)
    for method in results.methods:
        color, _ = results.styles[method]
        distances = []
        for episode in _episodes(results, method):
            goal = results.goal_position(episode.task)
            if goal is not None:
                distances.append(np.linalg.norm(episode.observations[:, : len(goal)] - goal, axis=1))
        if not distances:
            continue
        steps = max(len(each) for each in distances)
        stacked = np.full((len(distances), steps), np.nan)  # (episodes, T); nan where an episode has ended
        for row, each in zip(stacked, distances, strict=True):
            row[: len(each)] = each
        lowest, highest, mean = np.nanmin(stacked, 0), np.nanmax(stacked, 0), np.nanmean(stacked, 0)
        axes.fill_between(range(steps), lowest, highest, color=color, alpha=0.1, linewidth=0)
        axes.plot(mean, color=color, label=method)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("distance to the goal")
    legend_below(figure, axes)
    return figure


def varying_channels(data: Trajectories, normalization: Normalization, count: int = 3) -> list[int]:
    """The first observation channels that vary by more than a tenth of their deviation over all training tasks."""
    scaled = data.observations.std(0) / normalization.std[: normalization.observation_size]
    return np.flatnonzero(scaled > 0.1)[:count].tolist()


@styled
def prompts_over_time(few_shot: Trajectories, generated: Prompts, channels: Sequence[int], color: str) -> Figure:
    """Generated prompts drawn at their timestep over the few-shot trajectories, one panel per channel."""
    figure, panels = new_figure(1.35 * len(channels) + 0.7, len(channels), sharex=True)
    for axes, channel in zip(panels, channels, strict=True):
        for i, (a, b) in enumerate(zip(few_shot.starts[:-1], few_shot.starts[1:], strict=True)):
            label = "few-shot trajectories" if i == 0 else None
            axes.plot(few_shot.observations[a:b, channel], color=MUTED, linewidth=0.8, alpha=0.6, label=label)
        for i in range(len(generated)):
            label = "generated prompts" if i == 0 else None
            axes.plot(generated.y[i, :, 1], generated.x0[i, :, channel], color=color, linewidth=3, label=label)
        axes.set_ylabel(f"observation {channel}")
    panels[-1].set_xlabel("timestep")
    legend_below(figure, panels[0])
    return figure


@styled
def prompt_map(
    few_shot: Prompts, others: Prompts | None, tuned: dict[str, Prompts], normalization: Normalization, styles: Styles
) -> tuple[Figure, float]:
    """Prompts in the plane of the two main components of real ones; second: the share of variance that plane shows.

    `others`: real prompts of other tasks, if there are; `tuned`: method -> prompts it left for the target.
    """
    known = [few_shot] if others is None else [few_shot, others]
    rows = [normalization.normalize(p.x0).reshape(len(p), -1) for p in known]
    real = np.concatenate(rows)
    centre = real.mean(0)
    _, singular, axes_ = np.linalg.svd(real - centre, full_matrices=False)

    def project(prompts: Prompts) -> np.ndarray:
        return (normalization.normalize(prompts.x0).reshape(len(prompts), -1) - centre) @ axes_[:2].T

    figure, (axes,) = new_figure(3.3)
    if others is not None:
        axes.plot(*project(others).T, ".", color=MUTED, alpha=0.25, markersize=3, label="real, other tasks")
    axes.plot(*project(few_shot).T, "o", color=PAPER, markeredgecolor=INK, markersize=4, label="real, few-shot")
    for method, prompts in tuned.items():
        color, marker = styles[method]
        style: dict[str, Any] = {"color": color, "markeredgecolor": PAPER, "markeredgewidth": 0.5, "markersize": 7}
        axes.plot(*project(prompts).T, marker, label=method, **style)
    axes.set_xlabel("first component")
    axes.set_ylabel("second component")
    legend_below(figure, axes)
    return figure, float((singular[:2] ** 2).sum() / (singular**2).sum())
