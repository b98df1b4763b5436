"""Losses and gradients over the steps of pre-training and tuning."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pd_pipeline.reporting.canvas import BLUE, MUTED, ORANGE, new_figure, styled
from pd_pipeline.reporting.gather import Table, phase


@styled
def learning_curves(tables: Mapping[Any, Table]) -> Figure:
    """Training and validation loss over the steps, one line per seed."""
    figure, (axes,) = new_figure(2.5)
    names = {"loss": ("training", BLUE, 1.2), "validation_loss": ("validation (held-out episodes)", ORANGE, 1.8)}
    for i, table in enumerate(tables.values()):
        for name, (label, color, width) in names.items():
            if name in table:
                known = np.isfinite(table[name])
                axes.plot(
                    table["step"][known],
                    table[name][known],
                    color=color,
                    linewidth=width,
                    label=label if i == 0 else None,
                )
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    return figure


LOGGED = {
    "best": ("best return so far", "episodes in the target's environment"),
    "loss": ("loss", "step"),
    "return": ("mean return", "step"),
}
"""Columns that a method may log -> their names and those of their steps."""


def logged(tables: Sequence[Table]) -> str:
    """What is shown of a method's logs: the first of `LOGGED` that they have."""
    return next((name for name in LOGGED if any(name in table for table in tables)), "loss")


@styled
def tuning_curves(tables: Sequence[Table], color: str) -> Figure:
    """What a method logged over its tuning, such as its loss: targets thin, their mean bold."""
    figure, (axes,) = new_figure(2.3)
    name = logged(tables)
    _bundle(axes, tables, name, color)
    of_values, of_steps = LOGGED[name]
    axes.set_xlabel(of_steps)
    axes.set_ylabel(of_values)
    return figure


@styled
def guidance_losses(tables: Iterable[Table]) -> Figure:
    """L_DM and L_DT over adaptation and guidance: targets thin, their mean bold."""
    tables = [joined_phases(table) for table in tables]
    figure, (diffusion, action) = new_figure(3.6, 2, sharex=True)
    _bundle(diffusion, tables, "l_dm", BLUE)
    _bundle(action, tables, "l_dt", ORANGE)
    diffusion.set_title("L_DM: how well the diffuser denoises the few-shot prompts")
    action.set_title("L_DT: action loss of the frozen PLM under generated prompts")
    for axes in (diffusion, action):
        axes.set_yscale("log")
        _mark_guidance(axes, tables)
    action.set_xlabel("step (adaptation, then guidance)")
    return figure


@styled
def guidance_gradients(tables: Iterable[Table]) -> Figure:
    """Cosine and norm ratio of the two gradients and the share of steps projected, over the guidance."""
    guided = [phase(table, 2) if "phase" in table else table for table in tables]
    wanted = {
        "cosine": ("Cosine of g_DM and g_DT (below 0: conflict)", "#009E73"),
        "norm_ratio": ("Norm of g_DT over norm of g_DM, before scaling", "#CC79A7"),
        "projected": ("Share projected (running mean)", "#D55E00"),
    }
    names = [name for name in wanted if any(name in table for table in guided)]
    figure, panels = new_figure(1.45 * len(names) + 0.3, len(names), sharex=True)
    for axes, name in zip(panels, names, strict=True):
        title, color = wanted[name]
        _bundle(axes, guided, name, color)
        axes.set_title(title)
    for axes, name in zip(panels, names, strict=True):
        if name == "cosine":
            axes.axhline(0, color=MUTED, linewidth=0.9)
        elif name == "norm_ratio":
            axes.set_yscale("log")
        else:
            axes.set_ylim(-0.05, 1.05)
    panels[-1].set_xlabel("guidance step")
    return figure


def joined_phases(table: Table) -> Table:
    """The phases of a log that are tuned by gradient, on one axis of steps; L_DM of the adaptation is its loss."""
    if "phase" not in table:
        return table
    table = {name: column[table["phase"] <= 2] for name, column in table.items()}
    first, second = (table["phase"] == which for which in (1, 2))  # adaptation, guidance
    offset = table["step"][first].max() if first.any() else 0.0
    joined = {name: column.copy() for name, column in table.items()}
    joined["step"][second] += offset
    joined["l_dm"][first] = table["loss"][first]
    return joined | {"guidance_at": np.array([offset])}


def _mark_guidance(axes: Axes, tables: Sequence[Table]) -> None:
    offsets = [float(table["guidance_at"][0]) for table in tables if "guidance_at" in table]
    if offsets and min(offsets) > 0:
        axes.axvline(min(offsets), color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))


def _bundle(axes: Axes, tables: Sequence[Table], name: str, color: str) -> None:
    """One thin line per table, and their mean, bold; smoothed within each phase."""
    smooth = []
    for table in tables:
        if name not in table:
            continue
        phases = table.get("phase", np.zeros(len(table["step"])))
        parts = [np.isfinite(table[name]) & (phases == which) for which in np.unique(phases)]
        steps = np.concatenate([table["step"][part] for part in parts])
        if len(steps):
            smooth.append((steps, np.concatenate([running_mean(table[name][part]) for part in parts])))
    for steps, values in smooth:
        axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.45)
    if smooth and all(len(steps) == len(smooth[0][0]) for steps, _ in smooth):
        axes.plot(smooth[0][0], np.mean([values for _, values in smooth], axis=0), color=color, linewidth=2)


def running_mean(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Mean over a centred window of `share` of the values, narrower at the ends."""
    half = int(len(values) * share / 2)
    total = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)
