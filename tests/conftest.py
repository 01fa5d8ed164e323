"""A browser for the tests that open pages; they are skipped where there is none."""
from pathlib import Path

import pytest

# Files of half a minute and more, the longest first, so that two workers, who take one file each, end together.
LONGEST = [
    "test_reference", "test_verdict", "test_warm", "test_sync", "test_evaluation_tfma", "test_serving_deploy_commands",
    "test_serving_rollout_statistics", "test_serving_rollout", "test_pages", "test_training_models", "test_faults", "test_serving_live",
    "test_fingerprint", "test_run", "test_serving_deploy", "test_repository", "test_explain", "test_serving_execution", "test_data_strange",
    "test_grid", "test_serving_predict",
]


def pytest_collection_modifyitems(items):
    """In that order; those of one file stay in theirs."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


CHROMIUM = next((p for p in ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome") if Path(p).exists()), None)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed, so no page is opened in a browser")
    with api.sync_playwright() as playwright:
        try: one = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        except api.Error as e: pytest.skip(f"no Chromium: {e}".splitlines()[0])
        yield one
        one.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Open a page; whatever it complains about or asks the network for fails the test."""
    trouble, opened = [], []

    def go(text: str, address: str = "", **options):
        (tmp_path/"page.html").write_text(text, encoding="utf-8", errors="surrogatepass")
        tab = browser.new_page(**({"viewport": {"width": 1280, "height": 900}} | options))
        tab.on("pageerror", lambda e: trouble.append(str(e)))
        tab.on("console", lambda m: trouble.append(m.text) if m.type == "error" and "Content Security Policy" not in m.text else None)
        tab.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:", "about:")) else trouble.append(r.url))
        tab.goto((tmp_path/"page.html").as_uri() + address)
        opened.append(tab)
        return tab
    yield go
    for tab in opened: tab.close()
    assert trouble == []
