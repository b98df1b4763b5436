"""Documents whose figures come from results/: rendered, and never typed.

    python -m pd_pipeline.reporting.claims --write     # render them
    python -m pd_pipeline.reporting.claims --check     # exit 1 where one is not what results/ gives

Every docs/<name>.md.j2 becomes docs/<name>.md; docs/summary.md.j2 becomes the block of README.md between its marks.
In a template a figure is an expression over results/. What is left when expressions, code and addresses are taken away
may hold no digit, but for the names and constants of `NAMES`, and no "three times"; nor may an expression hold a figure
of its own. So a sentence can't keep a number that the results no longer give.
"""

import re
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pd_pipeline import config
from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation import results
from pd_pipeline.evaluation.comparison import ALL, Compared
from pd_pipeline.evaluation.results import Difference, MethodResult, Metrics
from pd_pipeline.evaluation.scores import CEILING, REFERENCE, START, by_task, same_data
from pd_pipeline.evaluation.statistics import Estimate, above_middle, paired_difference
from pd_pipeline.families.base import load_family
from pd_pipeline.reporting import comparison
from pd_pipeline.reporting.episodes import curves
from pd_pipeline.reporting.formatting import interval, number, percent
from pd_pipeline.reporting.score_tables import of_files
from pd_pipeline.reporting.study import load as load_study
from pd_pipeline.reporting.verdict import Verdict, judge, rivals
from pd_pipeline.storage import atomic_file, read_json

ROOT = Path(__file__).parents[2]
BLOCK = "summary.md.j2"
MARKS = ("<!-- rendered from docs/summary.md.j2 -->", "<!-- end -->")

NAMES = (
    r"arXiv 2411\.01168",
    r"Python 3\.11",
    r"D4RL|HDF5",
    r"ML1",
    r"reach-v3|pick-place-v3",
    r"K\*",
    r"x0",
    r"95 % interval",
    r"seeds 0 to 2|seed 0",
    r"bf16|float32",
    r"SHA-256",
    r"^\d+\. ",  # of a list
)
"""What may hold a digit in prose: names, and constants that no result can change."""

_CODE = r"^```.*?^```|(?<=\n\n)(?: {4}[^\n]*\n)+|`[^`\n]*`"
_ADDRESS = r"\]\([^)]*\)|https?://\S+|<!--.*?-->"
_EXPRESSION = r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}"
_QUOTED = r"\"[^\"]*\"|'[^']*'"
_NUMBER = r"(?<![\w.])\d+(?:\.\d+)?"
MOST_DIGITS = 3  # in an expression a number up to this is how many digits to show, or which of a list
_FIGURE = r"\d[\d.,]*|\b(?:twice|(?:two|three|four|five|six|seven|eight|nine|ten|many) times)\b"


class Results:
    """One folder of results: a family, or all that was published."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def metrics(self) -> Metrics:
        """Method -> its result over all seeds."""
        return results.load(self.folder / "metrics.json").methods

    def seed(self, seed: int) -> Metrics:
        """Method -> its result of one seed."""
        return results.load(self.folder / f"metrics-{seed}.json").methods

    def ordered(self, seed: int | None = None) -> list[tuple[str, MethodResult]]:
        """(method, result) by data, expert first, and by return."""
        metrics = self.metrics if seed is None else self.seed(seed)
        return sorted(metrics.items(), key=lambda item: (item[1].given.quality != "expert", -item[1].mean.value))

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What made the numbers."""
        return read_json(self.folder / "provenance.json")

    @cached_property
    def data(self) -> dict[str, Any]:
        """Quality -> what its trajectories are like."""
        return read_json(self.folder / "data.json")

    def data_return(self, quality: str) -> float:
        """Mean return of a quality's trajectories on the target tasks, and on no others."""
        tasks = self.metrics[START].tasks
        return float(np.mean([self.data[quality]["tasks"][str(task)]["return_mean"] for task in tasks]))

    def verdict(self, name: str = REFERENCE) -> Verdict:
        """What the rule decides."""
        return judge(self.metrics, name, len(self.provenance["seeds"]))

    def best_rival(self, name: str = REFERENCE) -> str:
        """The other method with a frozen PLM and the same data that has the highest return."""
        return max(rivals(self.metrics, name), key=lambda method: self.metrics[method].mean.value)

    def fit(self, state: str, measure: str) -> float:
        """A measure of fit.json in one state of the diffuser, the mean over seeds and targets."""
        files = [read_json(self.folder / f"fit-{seed}.json") for seed in self.provenance["seeds"]]
        if state == "pretrained":
            return float(np.mean([file["pretrained"][measure] for file in files]))
        return float(np.mean([target[state][measure] for file in files for target in file["targets"].values()]))

    @property
    def minutes(self) -> float:
        """Wall-clock minutes of what was made per seed, the mean over seeds."""
        seeds = self.provenance["seeds"]
        total = sum(
            seconds or 0.0
            for piece, seconds in self.provenance["seconds"].items()
            if piece.partition("@")[0] not in ("behavior_policies", "trajectories", "target_data", "prompts")
        )
        return total / len(seeds) / 60


def against(difference: Difference, digits: int = 0) -> str:
    """A difference with its interval in words: `below by 3.6 (2.9 to 4.3)`, or not significantly different."""
    if difference.high < 0:
        return f"below by {interval(difference, digits, -1)}"
    if difference.low > 0:
        return f"above by {interval(difference, digits)}"
    return f"not significantly different ({interval(difference, digits)})"


def paired(folder: Path, method: str, other: str) -> Difference:
    """How far the mean return of a method of a published study lies above another's, paired by target and seed."""
    scores = _of_one_point(folder)
    found = paired_difference(by_task(scores, method), by_task(scores, other), np.random.default_rng(0))
    return Difference(*found, reference=other)


def above_half(folder: Path, method: str) -> Estimate:
    """How far a method of a published study lies above the middle between drawn prompts and full fine-tuning."""
    scores = _of_one_point(folder)
    ours, drawn, tuned = (by_task(scores, name) for name in (method, START, CEILING))
    return above_middle(ours, drawn, tuned, np.random.default_rng(0))


def _of_one_point(folder: Path) -> pl.DataFrame:
    scores = pl.read_csv(folder / "scores.csv")
    if len(scores.select("point", "family").unique()) > 1:
        raise PipelineError(f"{folder}: holds several points or families, whose scores must not be pooled")
    return scores


def over_all(published: Path, reference: str) -> list[Compared]:
    """Every method of the published families that had the same data as `reference` against it, over all of them."""
    files = sorted(published.glob("*/scores.csv"))
    given = {method: found.given for method, found in Results(files[0].parent).metrics.items()}
    base = given[reference].method
    same = [name for name, data in given.items() if data.own_task and same_data(given, name, base) == reference]
    scale = comparison.on_one_scale({f: t.filter(pl.col("method").is_in(same)) for f, t in of_files(files).items()})
    return comparison.rows({ALL: scale[ALL]}, reference)


def environment(root: Path) -> Environment:
    """Templates of docs/ with the names they may use."""
    made = Environment(
        loader=FileSystemLoader(root / "docs"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )
    made.filters.update(n=number, percent=percent, interval=interval, against=against)
    made.filters["p"] = comparison.p_text
    made.filters["difference"] = lambda values: Difference(**values)  # of a study, which keeps some figures as JSON
    folder, project = root / "results", root / "published"
    params = config.load(project)
    made.globals.update(
        reach=Results(folder / "reach"),
        default=Results(folder / "default" / "reach"),
        published={path.name: Results(path) for path in sorted((folder / "published").iterdir()) if path.is_dir()},
        families={name: load_family(name, params.block(name, "environment"), project) for name in params.run.families},
        studies={path.stem: read_json(path) for path in sorted((folder / "studies").glob("*.json"))}
        | {path.name: load_study(path)[0] for path in sorted((folder / "studies").iterdir()) if path.is_dir()},
        load=lambda name: read_json(folder / name),
        over_all_families=lambda reference: over_all(folder / "published", reference),
        searched=lambda study: curves(pl.read_csv(folder / "studies" / study / "searches.csv")),
        above_half=lambda study, method: above_half(folder / "studies" / study, method),
        paired=lambda study, method, other: paired(folder / "studies" / study, method, other),
    )
    return made


def render(root: Path = ROOT) -> dict[Path, str]:
    """File -> the text that results/ gives it."""
    made = environment(root)
    texts = {}
    for template in sorted((root / "docs").glob("*.md.j2")):
        text = made.get_template(template.name).render()
        if template.name != BLOCK:
            texts[template.with_suffix("")] = text
            continue
        readme = (root / "README.md").read_text()
        before, begin, rest = readme.partition(MARKS[0])
        _, end, after = rest.partition(MARKS[1])
        if not end:
            raise PipelineError(f"{root / 'README.md'}: lacks {MARKS[0]} or {MARKS[1]}: write them around the block")
        texts[root / "README.md"] = f"{before}{begin}\n{text.strip()}\n{end}{after}"
    return texts


def stale(root: Path = ROOT) -> list[Path]:
    """Documents that are not what results/ gives."""
    return [path for path, text in render(root).items() if not path.is_file() or path.read_text() != text]


def prose(root: Path = ROOT) -> dict[Path, str]:
    """What people write: templates, README.md outside its block, and documents without a template."""
    texts = {path: path.read_text() for path in sorted((root / "docs").glob("*.md.j2"))}
    texts |= {path: path.read_text() for path in sorted((root / "docs").glob("*.md")) if not _template(path).exists()}
    before, _, rest = (root / "README.md").read_text().partition(MARKS[0])
    return texts | {root / "README.md": before + rest.partition(MARKS[1])[2]}


def _template(document: Path) -> Path:
    return document.with_name(document.name + ".j2")


def typed_figures(text: str) -> Iterator[str]:
    """Figures of a text that come from no expression, each with its line."""
    for expression in re.finditer(_EXPRESSION, text, re.DOTALL):
        code = expression.group()
        if not code.startswith("{#"):
            quoted = [inside for inside in re.findall(_QUOTED, code) if re.search(r"\d\d", inside)]
            bare = re.findall(_NUMBER, re.sub(_QUOTED, "", code))
            bare = [found for found in bare if "." in found or int(found) > MOST_DIGITS]
            yield from (f"{found} in {code}" for found in quoted + bare)
    blank = text
    for pattern in (_EXPRESSION, _CODE, _ADDRESS, *NAMES):
        flags = re.MULTILINE | re.IGNORECASE | (re.DOTALL if pattern in (_EXPRESSION, _ADDRESS, _CODE) else 0)
        blank = re.sub(pattern, lambda match: re.sub(r"[^\n]", " ", match.group()), blank, flags=flags)
    for place, line in enumerate(blank.splitlines()):
        for found in re.finditer(_FIGURE, line, re.IGNORECASE):
            yield f"line {place + 1}: {found.group()} in: {text.splitlines()[place].strip()}"


def main(arguments: list[str]) -> int:
    """Render or check; returns the exit code."""
    if arguments == ["--write"]:
        for path, text in render().items():
            with atomic_file(path) as temporary:
                temporary.write_text(text)
        return 0
    if arguments == ["--check"]:
        problems = [f"{path}: not what results/ gives: run this with --write" for path in stale()]
        problems += [f"{path}: {figure}" for path, text in prose().items() for figure in typed_figures(text)]
        print("\n".join(problems), end="\n" if problems else "", file=sys.stderr)
        return 1 if problems else 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
