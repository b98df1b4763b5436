"""Says in words what mattered: what adaptation and guidance did to the losses, the fit of prompts and the return."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pd_pipeline.evaluation.results import Metrics
from pd_pipeline.evaluation.scores import REFERENCE, START
from pd_pipeline.reporting.formatting import decimals, interval, number, percent
from pd_pipeline.reporting.gather import Table, phase


def what_mattered(
    metrics: Metrics,
    logs: Mapping[tuple[int, int], Table],
    fits: Iterable[Mapping[str, Any]],
) -> list[str]:
    """Sentences from the figures measured: what adaptation and guidance did to the losses, the fit and the return.

    `logs`: (target, seed) -> log of prompt_diffuser; `fits`: one fit.json per seed.
    """
    return [*_return_findings(metrics), *_loss_findings(list(logs.values())), *_fit_findings(list(fits))]


def _return_findings(metrics: Metrics) -> list[str]:
    if not {REFERENCE, START} <= set(metrics):
        return []
    result = metrics[REFERENCE]
    gain = result.difference_to_prompt_dt
    if gain is None:
        return []
    digits = max(decimals([result.mean.value, metrics[START].mean.value]), _digits_shown(gain.value))
    text = (
        f"Tuning the diffuser {'gains' if gain.value >= 0 else 'loses'} "
        f"{number(abs(gain.value), digits)} of return over prompts drawn from the few-shot trajectories "
        f"({gain.reference}; 95 % interval of the difference {number(gain.low, digits)} to {number(gain.high, digits)})"
    )
    if result.share is not None:
        text += f": {interval(result.share, 2)} of the way from there to {result.share.ceiling}"
    return [text + "."]


def _loss_findings(logs: list[Table]) -> list[str]:
    found = []
    adapted = [phase(log, 1) for log in logs if "phase" in log]
    if ends := _ends(adapted, "loss"):
        found.append(f"Adaptation with L_DM alone: L_DM {_went(*ends)} over its steps.")
    guided = [phase(log, 2) if "phase" in log else log for log in logs]
    if ends := _ends(guided, "l_dt"):
        text = f"Guidance: L_DT, the frozen PLM's action loss under generated prompts, {_went(*ends)}"
        if other := _ends(guided, "l_dm"):
            text += f", while L_DM {_went(*other)}"
        found.append(text + ".")
    if (cosines := _values(guided, "cosine")).size:
        text = (
            f"The gradients of L_DM and L_DT had a mean cosine of {number(float(cosines.mean()), 3)} and conflicted "
            f"(cosine below 0) in {percent(float((cosines < 0).mean()), 0)} of the steps"
        )
        if (projected := _values(guided, "projected")).size:
            text += f"; {percent(float(projected.mean()), 0)} of the steps were projected"
        found.append(text + ".")
    if (ratios := _values(guided, "norm_ratio")).size:
        low, middle, high = np.quantile(ratios, [0.05, 0.5, 0.95])
        found.append(
            f"Before scaling, the norm of g_DT was {middle:.3g} times that of g_DM (median; 5 to 95 %: {low:.3g} to "
            f"{high:.3g}), which a fixed lambda would have had to cover."
        )
    return found


def _fit_findings(fits: list[Mapping[str, Any]]) -> list[str]:
    found = []
    pretrained = [fit["pretrained"] for fit in fits if "pretrained" in fit]
    if pretrained:
        made, real = (np.mean([p[f"wasserstein_{kind}"] for p in pretrained]) for kind in ("generated", "real"))
        found.append(
            f"The pre-trained diffuser's prompts{_chain(pretrained)} lie {made:.3g} from held-out real prompts "
            f"(Wasserstein){_times(made, real)} other real ones do ({real:.3g})."
        )
    for name in dict.fromkeys(state for fit in fits for target in fit.get("targets", {}).values() for state in target):
        targets = [t[name] for fit in fits for t in fit.get("targets", {}).values() if name in t]
        if targets and "action_loss_generated" in targets[0]:
            made, real = (np.mean([t[f"action_loss_{kind}"] for t in targets]) for kind in ("generated", "real"))
            near, far = (np.mean([t[f"nearest_{kind}"] for t in targets]) for kind in ("real", "generated"))
            text = (
                f"After being {name}, its prompts for the targets{_chain(targets)} give the PLM an action loss of "
                f"{made:.4g} on trajectories that tuning did not see, real prompts {real:.4g}; their nearest real "
                f"prompt is {far:.3g} away{_times(far, near)} that of a real one ({near:.3g})"
            )
            if kept := [t["nearest_kept"] for t in targets if "nearest_kept" in t]:
                text += f", that of those which are evaluated {np.mean(kept):.3g}"
            found.append(text + ".")
    return found


def _digits_shown(value: float) -> int:
    """Digits after the point that show two figures of a value below 1, but no more than six."""
    return min(6, 1 - math.floor(math.log10(abs(value)))) if 0 < abs(value) < 1 else 0


def _times(made: float, real: float) -> str:
    """ ", 2.1 times as far as"; a ratio to next to nothing says nothing, and is left out."""
    return f", {made / real:.2g} times as far as" if real > 1e-3 * made else ", much farther than"


def _chain(fits: list[Mapping[str, Any]]) -> str:
    """The steps of the reverse chain that the prompts were generated with."""
    steps = sorted({fit["chain"] for fit in fits if "chain" in fit})
    return f" (a chain of {' or '.join(map(str, steps))} steps)" if steps else ""


def _values(logs: list[Table], name: str) -> np.ndarray:
    columns = [log[name] for log in logs if name in log]
    joined = np.concatenate(columns) if columns else np.empty(0)
    return joined[np.isfinite(joined)]


def _ends(logs: list[Table], name: str) -> tuple[float, float] | None:
    """Means over logs of a column's first and last tenth."""
    columns = [log[name][np.isfinite(log[name])] for log in logs if name in log]
    columns = [column for column in columns if len(column) > 1]
    if not columns:
        return None
    tenths = [max(1, len(column) // 10) for column in columns]
    first = np.mean([column[:n].mean() for column, n in zip(columns, tenths, strict=True)])
    last = np.mean([column[-n:].mean() for column, n in zip(columns, tenths, strict=True)])
    return float(first), float(last)


def _went(first: float, last: float) -> str:
    verb = "fell" if last < first else "rose"
    change = f" ({number(100 * (last / first - 1), 0)} %)" if first else ""
    return f"{verb} from {first:.4g} to {last:.4g}{change}"
