"""The Dagster UI as a person uses it, in headless Chromium: materialize all, look at an asset, drop a file in.

Needs Playwright and Debian's chromium. Where one of them is missing the test is skipped, unless the variable
PD_PIPELINE_BROWSER is set, as CI does. PD_PIPELINE_SCREENSHOTS names a folder for pictures of what was seen.
"""

import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import STDOUT, Popen
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from pd_pipeline import load_policy
from tests.assets.test_targets import NEW, PARAMS, drop
from tests.dvc_project import BIN, ENVIRONMENT, call, change, make_project

REPOSITORY = Path(__file__).parents[2]
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
    change(root, "plm: {steps: 4", "plm: {log_every: 5, steps: 60")  # a curve to look at
    return root


@pytest.fixture
def url(root: Path, tmp_path: Path) -> Iterator[str]:
    """`make ui` on a free port."""
    home = tmp_path / "dagster"
    home.mkdir()
    settings = [REPOSITORY / "dagster.yaml"]
    if "DAGSTER_POSTGRES_URL" in os.environ:
        settings.append(REPOSITORY / "docs/examples/dagster-postgres.yaml")
    (home / "dagster.yaml").write_text("".join(file.read_text() for file in settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"DAGSTER_HOME": str(home), "PD_PIPELINE_ROOT": str(root), "DAGSTER_DISABLE_TELEMETRY": "yes"}
    command = [str(BIN / "dagster"), "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)]
    with (tmp_path / "ui.log").open("w") as log:
        server = Popen(
            command, cwd=REPOSITORY, env=ENVIRONMENT | names, stdout=log, stderr=STDOUT, start_new_session=True
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_until(lambda: _answers(address), "the UI answers", seconds=120)
            yield address
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(30)
            finally:
                if server.poll() is None:
                    os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture
def page() -> Iterator["Page"]:
    assert not missing, missing
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1440, "height": 860})
        browser.close()


def _answers(address: str) -> bool:
    try:
        return bool(urlopen(f"{address}/server_info", timeout=5).read())
    except (URLError, OSError):
        return False


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


def test_materialize_everything_and_drop_a_file_in(page: "Page", url: str, root: Path) -> None:
    page.goto(f"{url}/asset-groups")
    page.get_by_role("button", name="Materialize all").click()
    page.get_by_role("button", name="Launch backfill").click()
    done = r"Backfill[\s\S]*Manually launched\s+Success"
    _wait_until(lambda: _shows(page, f"{url}/runs", done), "the backfill succeeds")
    assert "up to date" in call(root, "dvc", "status"), "DVC agrees"

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
    _wait_until(lambda: _shows(page, in_use, rf"{NEW}\s+Materialized"), "the new target has a policy in use")
    _picture(page, "new_target")
    assert page.get_by_text("it is the first one").count()
    assert _shows(page, f"{url}/assets/target_adaptation?view=partitions&partition={NEW}", "tuned_prompt_dt")
    assert load_policy(root / "data/promoted" / NEW).description.task == 57
    report = r"report_follows_results\s+Success"
    _wait_until(lambda: _shows(page, f"{url}/runs", report), "the report follows")
