"""The page at `/` in headless Chromium; skipped where the package `playwright` or a Chromium is not installed."""

import shutil

import pytest

from rmjax.serving import Client

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def page(running):
    """The page as it is first seen; in the end it must have said nothing wrong and asked nobody else."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    faults = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        made = browser.new_page()
        url = f"http://127.0.0.1:{running.http_port}/"
        made.on("pageerror", lambda error: faults.append(str(error)))
        made.on("request", lambda request: request.url.startswith(url) or faults.append(request.url))
        made.goto(url)
        yield made
        browser.close()
    assert not faults


def test_a_person_compares_two_answers(page, running):
    expect = pytest.importorskip("playwright.sync_api").expect
    assert page.locator("#model option").all_inner_texts() == ["reward_model"]
    page.wait_for_selector("#facts tr")
    assert ["max length", "64"] in [row.locator("td").all_inner_texts() for row in page.locator("#facts tr").all()]

    page.fill("#prompt", "2+2?")
    page.fill("#a", "4")
    page.fill("#b", "five")
    page.click("#go")
    page.wait_for_selector("#result td")
    shown = [float(text) for text in page.locator("#result td.number").all_inner_texts()]
    question = [{"role": "user", "content": "2+2?"}]
    with Client(f"http://127.0.0.1:{running.http_port}") as client:
        expected = client.rewards(["4", "five"], prompts=[question] * 2)
    assert shown == pytest.approx(expected, abs=1e-4)
    assert float(page.locator("#result td.best").inner_text()) == max(shown)
    assert "preferred with probability" in page.locator("#result p").inner_text()

    # One text as it is; then one that is too long, and the server's own words.
    page.select_option("#mode", "text")
    assert page.locator("#asks").is_hidden()
    page.fill("#a", "abc")
    page.fill("#b", "")
    page.click("#go")
    expect(page.locator("#result td.number")).to_have_count(1)
    page.fill("#a", "a" * 65)
    page.click("#go")
    expect(page.locator("#error")).to_contain_text("65")
    assert not page.locator("#result td").count()
