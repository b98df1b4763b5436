"""The result of an attack: how many tries, how many the pipeline survived, and how it failed the others."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Attack:
    """One kind of attack."""

    name: str
    tries: int = 0
    failures: list[str] = field(default_factory=list)

    def survived(self, problem: str | None) -> None:
        """Count a try; `problem` says what went wrong, None if nothing did."""
        self.tries += 1
        if problem is not None:
            self.failures.append(problem)


def table(attacks: Iterable[Attack]) -> str:
    """A Markdown table of attacks, tries and survived ones, with what failed below it."""
    attacks = list(attacks)
    rows = [f"| {a.name} | {a.tries} | {a.tries - len(a.failures)} |" for a in attacks]
    lines = ["| attack | tries | survived |", "|---|---|---|", *rows]
    for attack in attacks:
        lines += [f"\n{attack.name}: {problem}" for problem in attack.failures[:20]]
    return "\n".join(lines)


def complaint(message: str) -> str | None:
    """What is wrong with an error message; None if it is one printable line under 1 kB."""
    if not message.strip():
        return "an empty refusal"
    if len(message.encode()) > 4096 or len(message) > 1000:
        return f"a refusal of {len(message)} characters: {message[:200]}"
    if not message.isprintable():
        return f"a refusal that is not one printable line: {message[:200]!r}"
    return None
