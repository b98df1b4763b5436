"""Says in words what the numbers show: whether Prompt Diffuser does what it should, and what mattered for it."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pd_pipeline.evaluation.scores import CEILING, FLOOR, REFERENCE

SHARE_OF_CEILING = 0.985
NORMALIZED = 0.98
SUCCESS = 0.95
MINUS = "\N{MINUS SIGN}"


class Check(NamedTuple):
    """One bar."""

    bar: str
    found: str
    met: bool | None
    """None where what it compares was not run."""


class Verdict(NamedTuple):
    """All bars, and the sentence they make."""

    sentence: str
    checks: list[Check]

    @property
    def met(self) -> bool:
        """Whether every bar was measured and met."""
        return all(check.met for check in self.checks)


def decimals(values: Iterable[float]) -> int:
    """Digits after the point that suit the largest of `values`."""
    largest = max((abs(value) for value in values), default=0.0)
    return 1 if largest >= 100 else 2 if largest >= 1 else 3


def number(value: float, digits: int) -> str:
    """1234.5 -> 1,234 or 1,234.5: thousands set apart, a true minus sign."""
    return f"{value:,.{digits}f}".replace("-", MINUS)


def percent(value: float, digits: int = 1) -> str:
    """0.985 -> 98.5 %."""
    return f"{number(100 * value, digits)} %"


def share_of(value: float, ceiling: float) -> float | None:
    """`value` as a share of `ceiling`; for negative ceilings, one less the gap relative to its size."""
    return 1 - (ceiling - value) / abs(ceiling) if ceiling else None


def judge(metrics: Mapping[str, Mapping[str, Any]], frozen: Mapping[str, bool]) -> Verdict:
    """Hold Prompt Diffuser against its bars. `frozen`: method -> whether it keeps the PLM's weights."""
    if REFERENCE not in metrics:
        return Verdict(f"{REFERENCE} was not run: nothing to judge.", [Check(f"{REFERENCE} runs", "not run", None)])
    checks = [_share_check(metrics), *_success_check(metrics), _frozen_check(metrics, frozen)]
    missed, good, unknown = ([c for c in checks if c.met is state] for state in (False, True, None))
    parts = []
    if missed:
        parts.append(f"misses {len(missed)} of {len(checks)} bars ({_list(missed)})")
    if good:
        count = str(len(good)) if missed else f"all {len(good)} bars" + " measured" * bool(unknown)
        parts.append(f"meets {count} ({_list(good)})")
    if unknown:
        parts.append(f"is not held against {len(unknown)} ({_list(unknown)})")
    return Verdict(f"{REFERENCE} {' and '.join(parts)}.", checks)


def _list(checks: list[Check]) -> str:
    return "; ".join(check.found for check in checks)


def _share_check(metrics: Mapping[str, Mapping[str, Any]]) -> Check:
    bar = f"at least {percent(SHARE_OF_CEILING)} of {CEILING}'s return"
    if CEILING not in metrics:
        return Check(bar, f"{CEILING} was not run", None)
    if metrics[REFERENCE]["success_rate"] is None:  # locomotion, whose returns have no zero of their own
        return _normalized_check(metrics[REFERENCE]["normalized"])
    ceiling = metrics[CEILING]["return_mean"]
    share = share_of(metrics[REFERENCE]["return_mean"], ceiling)
    if share is None:
        return Check(bar, f"{CEILING}'s return is zero", None)
    if ceiling > 0:
        return Check(bar, f"{percent(share)} of {CEILING}'s return", share >= SHARE_OF_CEILING)
    # a share of a negative return would say the opposite of what it seems to
    bar = f"a return at most {percent(1 - SHARE_OF_CEILING)} below {CEILING}'s"
    side = "below" if share < 1 else "above"
    return Check(bar, f"a return {percent(abs(1 - share))} {side} {CEILING}'s", share >= SHARE_OF_CEILING)


def _normalized_check(value: float | None) -> Check:
    bar = f"at least {percent(NORMALIZED)} of the way from {FLOOR} to {CEILING}"
    if value is None:
        return Check(bar, f"{FLOOR} or {CEILING} was not run, or {CEILING} is not the better of the two", None)
    return Check(bar, f"{percent(value)} of the way from {FLOOR} to {CEILING}", value >= NORMALIZED)


def _success_check(metrics: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    rate = metrics[REFERENCE]["success_rate"]
    if rate is None:  # locomotion: there is only the return
        return []
    return [Check(f"at least {percent(SUCCESS)} success", f"success in {percent(rate)} of episodes", rate >= SUCCESS)]


def _frozen_check(metrics: Mapping[str, Mapping[str, Any]], frozen: Mapping[str, bool]) -> Check:
    bar = "no other method that keeps the PLM frozen is better by more than chance (95 % interval of the difference)"
    others = {m: v["return_mean"] for m, v in metrics.items() if m != REFERENCE and frozen.get(m, False)}
    if not others:
        return Check(bar, "no other such method was run", None)
    ours = metrics[REFERENCE]["return_mean"]
    best = max(others, key=lambda method: others[method])
    digits = decimals([ours, others[best]])
    found = f"return {number(ours, digits)} against {number(others[best], digits)} of the best other, {best}"
    better = {m: metrics[m]["difference_to_prompt_diffuser"] for m in others}
    better = {m: difference for m, difference in better.items() if difference["low"] > 0}
    if better:
        found += "; better beyond chance: " + ", ".join(
            f"{m} by {number(d['value'], digits)} ({number(d['low'], digits)} to {number(d['high'], digits)})"
            for m, d in better.items()
        )
    elif others[best] > ours:
        found += ", a difference within its 95 % interval"
    return Check(bar, found, not better)


def what_mattered(
    metrics: Mapping[str, Mapping[str, Any]],
    logs: Mapping[tuple[int, int], Mapping[str, np.ndarray]],
    fits: Iterable[Mapping[str, Any]],
) -> list[str]:
    """Sentences from the figures measured: what adaptation and guidance did to the losses, the fit and the return.

    `logs`: (target, seed) -> log of prompt_diffuser; `fits`: one fit.json a seed.
    """
    return [*_return_findings(metrics), *_loss_findings(list(logs.values())), *_fit_findings(list(fits))]


def _return_findings(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    start = "prompt_dt"
    if not {REFERENCE, start} <= set(metrics):
        return []
    ours, theirs = (metrics[method]["return_mean"] for method in (REFERENCE, start))
    difference = metrics[start]["difference_to_prompt_diffuser"]
    digits = decimals([ours, theirs])
    text = (
        f"Tuning the diffuser {'gains' if ours >= theirs else 'loses'} {number(abs(ours - theirs), digits)} of return "
        f"over prompts drawn from the few-shot trajectories ({start}; 95 % interval of the difference "
        f"{number(-difference['high'], digits)} to {number(-difference['low'], digits)})"
    )
    if CEILING in metrics and metrics[CEILING]["return_mean"] > theirs and ours > theirs:
        room = metrics[CEILING]["return_mean"] - theirs
        text += f": {percent((ours - theirs) / room, 0)} of the way from there to {CEILING}"
    return [text + "."]


def _loss_findings(logs: list[Mapping[str, np.ndarray]]) -> list[str]:
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
            f"The pre-trained diffuser's prompts lie {made / real:.2g} times as far from held-out real prompts "
            f"(Wasserstein) as other real ones do."
        )
    for name in ("adapted", "guided"):
        targets = [t[name] for fit in fits for t in fit.get("targets", {}).values() if name in t]
        if targets and "action_loss_generated" in targets[0]:
            made, real = (np.mean([t[f"action_loss_{kind}"] for t in targets]) for kind in ("generated", "real"))
            near, far = (np.mean([t[f"nearest_{kind}"] for t in targets]) for kind in ("real", "generated"))
            found.append(
                f"After being {name}, its prompts for the targets give the PLM an action loss of {made:.4g} on "
                f"trajectories that tuning did not see, real prompts {real:.4g}; their nearest real prompt is "
                f"{far:.3g} away, {far / near:.2g} times as far as that of a real one ({near:.3g})."
            )
    return found


def phase(log: Mapping[str, np.ndarray], which: int) -> dict[str, np.ndarray]:
    """The rows of one phase of a log: 1 is adaptation, 2 guidance."""
    return {name: column[log["phase"] == which] for name, column in log.items()}


def _values(logs: list[Mapping[str, np.ndarray]] | list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    columns = [log[name] for log in logs if name in log]
    joined = np.concatenate(columns) if columns else np.empty(0)
    return joined[np.isfinite(joined)]


def _ends(logs: list[Any], name: str) -> tuple[float, float] | None:
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
    return f"{verb} from {first:.4g} to {last:.4g} ({number(100 * (last / first - 1), 0)} %)"
