"""Says in words whether Prompt Diffuser does what it should.

One rule for every family. What is to be preserved is the gain of full fine-tuning over prompts that are drawn and not
tuned (prompt_dt). A method with a frozen PLM preserves it where it lies above the middle between the two beyond chance:
a test of non-inferiority by half of the control's effect, seed by seed, so that the uncertainty of that effect counts.
Drawn prompts themselves fail it wherever it decides anything. Where full fine-tuning gains nothing beyond chance, there
is nothing to preserve, and the rule is silent.
"""

from typing import NamedTuple

from pd_pipeline.evaluation.results import Difference, MethodResult, Metrics
from pd_pipeline.evaluation.scores import CEILING, FLOOR, REFERENCE, START
from pd_pipeline.reporting.formatting import decimals, interval, number, percent

PRESERVED = 0.5  # share of full fine-tuning's gain over drawn prompts
SUCCESS = 0.95


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


def judge(metrics: Metrics, name: str = REFERENCE, seeds: int | None = None) -> Verdict:
    """Hold Prompt Diffuser, or a variant of it, against its bars. `seeds`: how many the results are of, if known."""
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
    if seeds == 1:
        sentence += " With one seed this is of one policy: intervals are over its prompts and episodes alone."
    return Verdict(sentence, checks, prompt_needed(metrics))


def _preserved_check(metrics: Metrics, name: str) -> Check:
    """Whether it lies above the middle between drawn prompts and full fine-tuning on the same data."""
    bar = f"preserves more than {percent(PRESERVED, 0)} of what {CEILING} gains over {START} (95 % interval)"
    ours, share, above = (getattr(metrics[name], of) for of in (f"difference_to_{CEILING}", "share", "above_half"))
    gain = metrics[ours.reference].difference_to_prompt_dt if ours else None
    if ours is None or gain is None:
        return Check(bar, f"{CEILING} or {START} was not run on the same data", None)
    digits = decimals([gain.value, ours.value])
    against = f"{interval(ours, digits)} against {ours.reference}"
    if ours.high < 0:
        against += " (significantly below it)"
    if gain.low <= 0:
        place = "below" if gain.high < 0 else "not above"
        return Check(
            bar,
            f"{ours.reference} is {place} {gain.reference} by more than chance, {interval(gain, digits)}, so "
            f"that there is no gain to preserve; {against}",
            None,
        )
    assert share is not None, "there is a share wherever the ceiling is above the start"
    way = f"{interval(share, 2)} of the way from {gain.reference} to {ours.reference}"
    if above is None:
        return Check(bar, f"{way}; {against}; evaluated before this was measured: run stage evaluation again", None)
    found = f"{way}; {against}; {interval(above, digits)} above half of the way, which must lie above zero"
    return Check(bar, found, above.low > 0)


def _success_check(result: MethodResult) -> list[Check]:
    rate = result.success
    if rate is None:  # locomotion: there is only the return
        return []
    found = (
        f"success in {percent(rate.value)} of the evaluated episodes "
        f"(95 % interval {percent(rate.low)} to {percent(rate.high)})"
    )
    return [Check(f"at least {percent(SUCCESS)} success", found, rate.value >= SUCCESS)]


def _frozen_check(metrics: Metrics, name: str) -> Check:
    bar = (
        "no other method that keeps the PLM frozen and had the same data is better by more than chance (95 % interval "
        "of each difference, whatever their number)"
    )
    others = rivals(metrics, name)
    if not others:
        return Check(bar, "no other such method was run", None)
    ours = metrics[name].mean.value
    best = max(others, key=lambda method: metrics[method].mean.value)
    theirs = metrics[best].mean.value
    digits = decimals([ours, theirs])
    found = f"return {number(ours, digits)} against {number(theirs, digits)} of the best other, {best}"
    better = [f"{method} by {interval(apart, digits)}" for method, apart in others.items() if apart.low > 0]
    if better:
        found += f"; better beyond chance: {', '.join(better)}"
    elif theirs > ours:
        found += ", a difference within its 95 % interval"
    return Check(bar, found, not better)


def rivals(metrics: Metrics, name: str) -> dict[str, Difference]:
    """Other methods with a frozen PLM and the data of `name`, and no more -> how far they lie above it.

    Those that also act in the target's environment have more.
    """
    found = {}
    for method, result in metrics.items():
        given, difference = result.given, result.difference_to_prompt_diffuser
        if difference is None or difference.reference != name:
            continue
        if given.frozen and given.method != REFERENCE and given.own_task and not result.costs.environment_episodes:
            found[method] = difference
    return found


def prompt_needed(metrics: Metrics, start: str = START) -> str:
    """Whether the task needs its prompt: what noise, nothing or another task's data in its place cost drawn prompts."""
    places = {
        FLOOR: "noise in a prompt's place",
        "no_prompt": "no prompt",
        "other": "another task's data",
    }
    compared: dict[str, list[Difference]] = {place: [] for place in places}
    for result in metrics.values():
        given, difference = result.given, result.difference_to_prompt_dt
        if difference is None or difference.reference != start:
            continue
        if not given.own_task and given.method == START:
            compared["other"].append(difference)
        elif given.method in (FLOOR, "no_prompt"):
            compared[given.method].append(difference)
    if not any(compared.values()):
        return ""
    clauses, harmless, unknown = [], [], []
    for place, differences in compared.items():
        if not differences:
            unknown.append(places[place])
            continue
        best = max(differences, key=lambda difference: difference.value)
        digits = decimals([best.value])
        if best.high < 0:
            clauses.append(f"{places[place]} costs {interval(best, digits, -1)} of return against {start}")
        else:
            clauses.append(f"{places[place]} does as well as {start} within chance ({interval(best, digits)})")
            harmless.append(place)
    needed = "its own prompt" if compared["other"] else "a prompt, and it is open whether that must be its own"
    answer = "That the task needs its prompt is not shown" if harmless else f"The task needs {needed}"
    rest = f"; {' and '.join(unknown)} {'were' if len(unknown) > 1 else 'was'} not tried" if unknown else ""
    return f"{answer}: {', '.join(clauses)}{rest}."
