"""Says in words what the numbers show: whether Prompt Diffuser does what it should, and what mattered for it.

One rule for every family, fixed in advance and not chosen by any of these numbers. What is to be preserved is the gain
of full fine-tuning over prompts that are drawn and not tuned (prompt_dt). A method with a frozen PLM preserves it where
the 95 % interval of its difference to full fine-tuning lies above minus half of that gain: a non-inferiority test with
the margin that is usual for it, half of the control's effect. Drawn prompts themselves fail it wherever it decides
anything. Where full fine-tuning gains nothing beyond chance, there is nothing to preserve, and the rule is silent.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pd_pipeline.evaluation.scores import CEILING, FLOOR, OWN, REFERENCE, START

PRESERVED = 0.5  # share of full fine-tuning's gain over drawn prompts
SUCCESS = 0.95
MINUS = "\N{MINUS SIGN}"

Metrics = Mapping[str, Mapping[str, Any]]


class Check(NamedTuple):
    """One bar."""

    bar: str
    found: str
    met: bool | None
    """None where it is undecided: what it compares was not run, or leaves nothing to decide."""

    @property
    def state(self) -> str:
        """`met`, `missed` or `undecided`."""
        return "undecided" if self.met is None else "met" if self.met else "missed"


class Verdict(NamedTuple):
    """All bars, and the sentence they make."""

    sentence: str
    checks: list[Check]
    prompt: str = ""
    """Whether the policy needs its prompt at all."""

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
    text = f"{value:,.{digits}f}"
    return text.replace("-", MINUS if any(digit in text for digit in "123456789") else "")  # no minus before zero


def percent(value: float, digits: int = 1) -> str:
    """0.985 -> 98.5 %."""
    return f"{number(100 * value, digits)} %"


def interval(difference: Mapping[str, Any], digits: int, sign: int = 1) -> str:
    """3.6 (2.9 to 4.3): a value with its interval, which may be unknown; with `sign` -1 those of the opposite."""
    value = number(sign * difference["value"], digits)
    if difference["low"] is None:
        return f"{value} (no interval)"
    low, high = sorted((sign * difference["low"], sign * difference["high"]))
    return f"{value} ({number(low, digits)} to {number(high, digits)})"


def judge(metrics: Metrics, name: str = REFERENCE) -> Verdict:
    """Hold Prompt Diffuser, or a variant of it, against its bars."""
    if name not in metrics:
        return Verdict(f"{name} was not run: nothing to judge.", [Check(f"{name} runs", "not run", None)])
    checks = [_preserved_check(metrics, name), *_success_check(metrics[name]), _frozen_check(metrics, name)]
    missed, good, unknown = ([c for c in checks if c.met is state] for state in (False, True, None))
    if len(good) == len(checks):
        sentence = f"{name} meets all {len(good)} bars."
    else:
        counts = {"meets": good, "misses": missed, "leaves undecided": unknown}
        parts = [f"{verb} {len(found)}" for verb, found in counts.items() if found]
        sentence = f"{name} {' and '.join(parts)} of {len(checks)} bars."
    return Verdict(sentence, checks, prompt_needed(metrics))


def _preserved_check(metrics: Metrics, name: str) -> Check:
    """Non-inferiority to full fine-tuning on the same data, by a margin of half of its gain over drawn prompts."""
    bar = f"preserves more than {percent(PRESERVED, 0)} of what {CEILING} gains over {START} (95 % interval)"
    ours, share = metrics[name]["difference_to_full_finetune"], metrics[name]["share"]
    if ours is None or metrics[name]["difference_to_prompt_dt"] is None:
        return Check(bar, f"{CEILING} or {START} was not run on the same data", None)
    gain = metrics[ours["reference"]]["difference_to_prompt_dt"]
    digits = decimals([gain["value"], ours["value"]])
    against = f"{interval(ours, digits)} against {ours['reference']}"
    if ours["high"] < 0:
        against += " (significantly below it)"
    if gain["low"] <= 0:
        place = "below" if gain["high"] < 0 else "not above"
        return Check(
            bar,
            f"{ours['reference']} is {place} {gain['reference']} by more than chance, {interval(gain, digits)}, so "
            f"that there is no gain to preserve; {against}",
            None,
        )
    margin = PRESERVED * gain["value"]
    way = f"{interval(share, 2)} of the way from {gain['reference']} to {ours['reference']}"
    must = f"the interval must lie above {number(-margin, digits)}"
    return Check(bar, f"{way}; {against}; {must}", ours["low"] > -margin)


def _success_check(values: Mapping[str, Any]) -> list[Check]:
    rate = values["success_rate"]
    if rate is None:  # locomotion: there is only the return
        return []
    chance = f"95 % interval {percent(values['success_low'])} to {percent(values['success_high'])}"
    found = f"success in {percent(rate)} of the evaluated episodes ({chance})"
    return [Check(f"at least {percent(SUCCESS)} success", found, rate >= SUCCESS)]


def _frozen_check(metrics: Metrics, name: str) -> Check:
    bar = (
        "no other method that keeps the PLM frozen and had the same data is better by more than chance (95 % interval "
        "of the difference)"
    )
    others = rivals(metrics, name)
    if not others:
        return Check(bar, "no other such method was run", None)
    ours = metrics[name]["return_mean"]
    best = max(others, key=lambda method: metrics[method]["return_mean"])
    theirs = metrics[best]["return_mean"]
    digits = decimals([ours, theirs])
    found = f"return {number(ours, digits)} against {number(theirs, digits)} of the best other, {best}"
    better = {method: difference for method, difference in others.items() if difference["low"] > 0}
    if better:
        told = ", ".join(f"{method} by {interval(difference, digits)}" for method, difference in better.items())
        found += f"; better beyond chance: {told}"
    elif theirs > ours:
        found += ", a difference within its 95 % interval"
    return Check(bar, found, not better)


def rivals(metrics: Metrics, name: str) -> dict[str, Mapping[str, Any]]:
    """Other methods with a frozen PLM and the data of `name` -> how far they lie above it."""
    found = {}
    for method, values in metrics.items():
        difference = values["difference_to_prompt_diffuser"]
        alike = difference is not None and difference["reference"] == name
        if alike and values["frozen"] and values["method"] != REFERENCE and values["shown"] in (None, OWN):
            found[method] = difference
    return found


def prompt_needed(metrics: Metrics, start: str = START) -> str:
    """Whether the task needs its prompt: what noise, nothing or another task's data in its place cost drawn prompts."""
    places = {
        FLOOR: "noise in a prompt's place",
        "no_prompt": "no prompt",
        "other": "another task's data",
    }
    compared: dict[str, list[Mapping[str, Any]]] = {place: [] for place in places}
    for values in metrics.values():
        difference = values["difference_to_prompt_dt"]
        if difference is None or difference["reference"] != start:
            continue
        if values["shown"] not in (None, OWN) and values["method"] == START:
            compared["other"].append(difference)
        elif values["method"] in (FLOOR, "no_prompt"):
            compared[values["method"]].append(difference)
    if not any(compared.values()):
        return ""
    told, harmless, unknown = [], [], []
    for place, differences in compared.items():
        if not differences:
            unknown.append(places[place])
            continue
        best = max(differences, key=lambda difference: difference["value"])
        digits = decimals([best["value"]])
        if best["high"] < 0:
            told.append(f"{places[place]} costs {interval(best, digits, -1)} of return against {start}")
        else:
            told.append(f"{places[place]} does as well as {start} within chance ({interval(best, digits)})")
            harmless.append(place)
    needed = "its own prompt" if compared["other"] else "a prompt, and it is open whether that must be its own"
    answer = "That the task needs its prompt is not shown" if harmless else f"The task needs {needed}"
    rest = f"; {' and '.join(unknown)} {'were' if len(unknown) > 1 else 'was'} not tried" if unknown else ""
    return f"{answer}: {', '.join(told)}{rest}."


def what_mattered(
    metrics: Metrics,
    logs: Mapping[tuple[int, int], Mapping[str, np.ndarray]],
    fits: Iterable[Mapping[str, Any]],
) -> list[str]:
    """Sentences from the figures measured: what adaptation and guidance did to the losses, the fit and the return.

    `logs`: (target, seed) -> log of prompt_diffuser; `fits`: one fit.json per seed.
    """
    return [*_return_findings(metrics), *_loss_findings(list(logs.values())), *_fit_findings(list(fits))]


def _return_findings(metrics: Metrics) -> list[str]:
    if not {REFERENCE, START} <= set(metrics):
        return []
    ours, theirs = (metrics[method]["return_mean"] for method in (REFERENCE, START))
    gain = metrics[REFERENCE]["difference_to_prompt_dt"]
    if gain is None:
        return []
    digits = max(decimals([ours, theirs]), _telling(gain["value"]))
    text = (
        f"Tuning the diffuser {'gains' if gain['value'] >= 0 else 'loses'} "
        f"{number(abs(gain['value']), digits)} of return over prompts drawn from the few-shot trajectories ({START}; "
        f"95 % interval of the difference {number(gain['low'], digits)} to {number(gain['high'], digits)})"
    )
    share = metrics[REFERENCE]["share"]
    if share is not None:
        text += f": {interval(share, 2)} of the way from there to {CEILING}"
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
            f"The pre-trained diffuser's prompts{_chain(pretrained)} lie {made:.3g} from held-out real prompts "
            f"(Wasserstein){_times(made, real)} other real ones do ({real:.3g})."
        )
    for name in ("adapted", "guided"):
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


def _telling(value: float) -> int:
    """Digits after the point that show two figures of a value below 1, but no more than six."""
    return min(6, 1 - math.floor(math.log10(abs(value)))) if 0 < abs(value) < 1 else 0


def _times(made: float, real: float) -> str:
    """ ", 2.1 times as far as"; a ratio to next to nothing says nothing, and is left out."""
    return f", {made / real:.2g} times as far as" if real > 1e-3 * made else ", much farther than"


def _chain(fits: list[Mapping[str, Any]]) -> str:
    """The steps of the reverse chain that the prompts were generated with."""
    steps = sorted({fit["chain"] for fit in fits if "chain" in fit})
    return f" (a chain of {' or '.join(map(str, steps))} steps)" if steps else ""


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
