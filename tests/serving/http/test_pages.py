"""The page at `/` in headless Chromium; skipped where the package `playwright` or a Chromium is not installed."""

import contextlib
import re
import shutil

import pytest

from rmjax.serving import Client
from tests.serving.conftest import start_with_critic

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def visit():
    """Opens the page of a server; in the end it must have said nothing wrong and asked nobody else."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    faults = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def open_page(served):
            made, url = browser.new_page(), f"http://127.0.0.1:{served.http_port}/"
            made.on("pageerror", lambda error: faults.append(str(error)))
            made.on("request", lambda request: request.url.startswith(url) or faults.append(request.url))
            made.goto(url)
            return made

        yield open_page
        browser.close()
    assert not faults


def test_a_person_compares_two_answers(visit, running):
    page = visit(running)
    playwright.expect(page.locator("#model option")).to_have_text(["reward_model"])
    page.wait_for_selector("#metadata tr")
    assert ["max length", "64"] in [row.locator("td").all_inner_texts() for row in page.locator("#metadata tr").all()]

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
    playwright.expect(page.locator("#result td.number")).to_have_count(1)
    page.fill("#a", "a" * 65)
    page.click("#go")
    playwright.expect(page.locator("#error")).to_contain_text("65")
    assert not page.locator("#result td").count()


def test_a_critic_shows_its_value_at_every_token(visit, running, tmp_path):
    with contextlib.ExitStack() as stack:
        served = start_with_critic(stack, running, tmp_path)
        page = visit(served)
        playwright.expect(page.locator("#model option")).to_have_text(["reward_model", "critic_infer"])
        page.select_option("#model", "critic_infer")
        page.select_option("#mode", "text")
        page.fill("#a", "2+2=4")
        page.click("#go")
        playwright.expect(page.locator("#result .tokens span")).to_have_text(list("2+2=4"))
        titles = [span.get_attribute("title") for span in page.locator("#result .tokens span").all()]
        shown = [float(re.fullmatch(r"token \d: (-?\d+\.\d{4})", title)[1]) for title in titles]
        data = {"name": "sentences", "datatype": "BYTES", "shape": [1, 1], "data": ["2+2=4"]}
        answer = served.http.post("/v2/models/critic_infer/infer", json={"inputs": [data]}).json()
        assert shown == pytest.approx(answer["outputs"][0]["data"], abs=1e-4)
