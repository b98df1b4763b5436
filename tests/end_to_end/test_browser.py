"""The Dagster UI as a person uses it, in headless Chromium: materialize all, look at an asset, drop a file in.

Needs Playwright and Debian's chromium. Where one of them is missing the test is skipped, unless the variable
PD_PIPELINE_BROWSER is set, as CI does. PD_PIPELINE_SCREENSHOTS names a folder for pictures of what was seen.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from pathlib import Path

import dagster as dg
import pytest

from assets.external_results import report
from benchmarks.dagster_click import BACKFILLS, Click, Server, dagster_dev
from pd_pipeline import graph, load_policy
from tests.assets.test_targets import NEW, PARAMS, drop
from tests.dvc_project import change, make_project
from tests.end_to_end.dagster_and_dvc import left_for_dvc, not_fresh, shown_otherwise

CHROMIUM = shutil.which("chromium")
REQUIRED, SCREENSHOTS = os.environ.get("PD_PIPELINE_BROWSER"), os.environ.get("PD_PIPELINE_SCREENSHOTS")
try:
    from playwright.sync_api import Page, sync_playwright
except ImportError:
    missing = "playwright is not installed: pip install playwright"
else:
    missing = "" if CHROMIUM else "chromium is not installed: apt install chromium"

pytestmark = [
    pytest.mark.skipif(bool(missing) and not REQUIRED, reason=missing),
    pytest.mark.timeout(600),  # a dozen runs, each a process that imports PyTorch
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = make_project(tmp_path / "project", PARAMS)
    change(root, "[prompt_dt, noise_prompt]", "[prompt_dt]")
    change(root, "plm: {steps: 4", "plm: {log_every: 5, steps: 60")  # a curve to look at
    return root


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    with dagster_dev(root) as running:
        yield running


@pytest.fixture
def page() -> Iterator["Page"]:
    assert not missing, missing
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1440, "height": 860})
        browser.close()


def _wait_until(holds: Callable[[], bool], what: str, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(1)


def _shows(page: "Page", address: str, pattern: str) -> bool:
    """Whether a page of the UI shows a text. The page is loaded anew, as a person does who waits."""
    page.goto(address)
    page.wait_for_timeout(3000)
    return re.search(pattern, page.locator("body").inner_text()) is not None


def _picture(page: "Page", name: str) -> None:
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def levels(click: Click) -> None:
    """What Dagster made of a click on "Materialize all": one level of the graph after the other, without long waits."""
    assert click.status == "COMPLETED_SUCCESS"
    made = [sorted(asset["path"][0] for asset in run["assetSelection"]) for run in click.runs]
    assert made[0] == ["behavior_policies", "prompts", "trajectories"]
    assert sorted(made[1:3]) == [["plm"], ["target_data"]], "the same level, with keys of different axes"
    # a level is several runs if what it needs was there for some of its keys first
    assert [names for names, _ in groupby(made[3:])] == [["tuned_prompt_dt"], ["evaluation"], ["report"]]
    waits = [after["creationTime"] - before["endTime"] for before, after in pairwise(click.runs)]
    assert sum(waits) < 10 * len(waits), f"waits between levels, 30 s with Dagster's default: {waits}"


def test_materialize_everything_and_drop_a_file_in(page: "Page", server: Server, root: Path) -> None:
    url = server.url
    page.goto(f"{url}/asset-groups")
    page.get_by_role("button", name="Materialize all").click()
    clicked = time.time()
    page.get_by_role("button", name="Launch backfill").click()
    _wait_until(lambda: server.ask(BACKFILLS)["partitionBackfillsOrError"]["results"], "the backfill is asked for")
    (backfill,) = server.ask(BACKFILLS)["partitionBackfillsOrError"]["results"]
    levels(server.clicked(backfill["id"], clicked))
    done = r"Backfill[\s\S]*Manually launched\s+Success"
    _wait_until(lambda: _shows(page, f"{url}/runs", done), "the backfill succeeds")
    assert left_for_dvc(root) == set(), "DVC agrees"
    with dg.DagsterInstance.local_temp(str(root / ".dagster")) as instance:
        assert report(instance, graph.load(root)) == []
        assert shown_otherwise(root, instance) == set()
        assert not_fresh(root, instance) == set()

    version = re.search(r"plm@point_robot-0:[\s\S]*?outs:[\s\S]*?md5: (\S+)", (root / "dvc.lock").read_text())
    assert version is not None
    page.goto(f"{url}/assets/plm?view=partitions&partition=point_robot-0")
    page.get_by_text("Show tags").click()
    page.get_by_text(version[1]).first.wait_for()
    page.get_by_text("[Show Markdown]").first.click()
    curve = page.locator("img[src^='data:image/png']")
    curve.wait_for()
    assert curve.evaluate("image => image.complete && image.naturalWidth > 300")
    page.wait_for_timeout(500)
    _picture(page, "asset")

    drop(root)
    in_use = f"{url}/assets/policy_in_use?view=partitions&partition={NEW}"
    _wait_until((root / "data/promoted" / NEW).is_dir, "the new target has a policy in use")
    _wait_until(lambda: _shows(page, in_use, rf"{NEW}\s+Materialized"), "the new target's policy is shown")
    _picture(page, "new_target")
    assert page.get_by_text("it is the first one").count()
    assert _shows(page, f"{url}/assets/target_adaptation?view=partitions&partition={NEW}", "tuned_prompt_dt")
    assert load_policy(root / "data/promoted" / NEW).description.task == 57
    follows = r"report_follows_results\s+Success"
    pages = root / "data/reports/index.html"
    _wait_until(lambda: NEW in pages.read_text(), "the report follows")
    _wait_until(lambda: _shows(page, f"{url}/runs", follows), "its run is shown")
