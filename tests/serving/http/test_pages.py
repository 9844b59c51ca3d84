"""The page at `/` in headless Chromium; skipped where the package `playwright` or a Chromium is not installed."""

import contextlib
import re
import shutil

import numpy as np
import pytest

import rmjax
from rmjax.core.report import render
from rmjax.core.sections import Section, Table
from rmjax.data.schema import Edge
from rmjax.evaluation.measures.preferences import calibration_figure, margin_figure
from rmjax.metrics.edges import edge_table
from rmjax.serving import Client
from tests.serving.conftest import start_with_critic

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def visit():
    """Opens the page of a server; fails on a JavaScript error or a request to another host."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    errors = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def open_page(served):
            made, url = browser.new_page(), f"http://127.0.0.1:{served.http_port}/"
            made.on("pageerror", lambda error: errors.append(str(error)))
            made.on("request", lambda request: request.url.startswith(url) or errors.append(request.url))
            made.goto(url)
            return made

        yield open_page
        browser.close()
    assert not errors


def test_two_responses_are_compared(visit, running):
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

    # One plain text; then one that is too long, with the server's error.
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


def test_standard_deviations_are_shown(visit, make_artifact):
    model = rmjax.load(make_artifact(4))
    with rmjax.serve(model) as server:
        page = visit(server)
        page.wait_for_selector("#metadata tr")
        page.select_option("#mode", "text")
        page.fill("#a", "some text")
        page.fill("#b", "another")
        page.click("#go")
        page.wait_for_selector("#result td")
        shown = [text.split(" ± ") for text in page.locator("#result td.number").all_inner_texts()]
        texts = ["some text", "another"]
        expected = [(model.score(text), model.uncertainty(text)) for text in texts]
        np.testing.assert_allclose(np.array(shown, float), expected, atol=1e-4)
        words = page.locator("#result p").inner_text()
        (first, u), (second, v) = expected
        assert ("not confident" in words) == (abs(first - second) <= u + v)


def test_a_critics_value_is_shown_for_every_token(visit, running, tmp_path):
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


def test_examples_fill_the_fields_and_several_responses_are_ordered(visit, running):
    page = visit(running)
    page.wait_for_selector("#metadata tr")
    fields, counts = page.locator("#responses textarea"), []
    names = page.locator("#example option").all_inner_texts()[1:]
    for name in names:
        page.select_option("#mode", "text")
        page.select_option("#example", name)
        assert page.input_value("#mode") == "chat"
        assert page.input_value("#prompt")
        assert all(field.input_value() for field in fields.all())
        counts.append(fields.count())
    assert counts == [2, 2, 4]

    page.fill("#prompt", "2+2?")
    for name, text in zip("abcd", ("4", "", "five", "22"), strict=True):  # one is empty: the others keep their letters
        page.fill(f"#{name}", text)
    page.click("#go")
    playwright.expect(page.locator("#result td.number")).to_have_count(3)
    shown = [float(text) for text in page.locator("#result td.number").all_inner_texts()]
    assert float(page.locator("#result td.best").inner_text()) == max(shown)
    order = ["ACD"[i] for i in sorted(range(3), key=lambda i: -shown[i])]
    assert f"to the lowest: {', '.join(order)}." in page.locator("#result p").inner_text()

    page.click("#add")
    page.fill("#e", "x" * 100)
    page.click("#go")
    playwright.expect(page.locator("#error")).to_contain_text("Response E has")
    page.select_option("#example", names[0])
    playwright.expect(page.locator("#responses label")).to_have_text(["Response A", "Response B (optional)"])


def test_the_header_links_to_what_the_server_offers(visit, running):
    page = visit(running)
    for link in page.locator("header a").all():
        address = f"http://127.0.0.1:{running.http_port}{link.get_attribute('href')}"
        assert page.request.get(address).ok, address


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("path", ["", "docs"])
def test_pages_fit_the_screen(visit, running, width, path):
    page = visit(running)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"http://127.0.0.1:{running.http_port}/{path}")
    page.wait_for_selector("#paths details" if path else "#metadata tr")
    if path:
        page.evaluate("for (const element of document.querySelectorAll('details')) element.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_empty_input_is_not_scored_and_errors_name_the_fields(visit, running):
    page = visit(running)
    page.wait_for_selector("#metadata tr")
    page.click("#go")
    playwright.expect(page.locator("#error")).to_have_text("Enter a prompt.")
    page.fill("#prompt", "2+2?")
    page.click("#go")
    playwright.expect(page.locator("#error")).to_have_text("Enter a response in field A.")
    page.fill("#a", "4" * 100)
    page.click("#go")
    playwright.expect(page.locator("#error")).to_contain_text("Response A has")


def test_the_documentation_shows_tensors_and_example_requests(visit, running):
    page = visit(running)
    page.goto(f"http://127.0.0.1:{running.http_port}/docs")
    page.wait_for_selector("#models table")
    assert ["output", "rewards", "FP32", "[·, 1]"] in [
        row.locator("td").all_inner_texts() for row in page.locator("#models tr").all()
    ]
    playwright.expect(page.locator("#paths pre").first).to_contain_text("curl http")
    assert "`" not in page.inner_text("body")
    assert "clip range 0.2" in page.inner_text("body")


@pytest.mark.parametrize("width", [390, 1200])
def test_the_report_fits_the_screen(tmp_path, width):
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    edges = edge_table([np.array([2.0, 0.0]), np.array([0.5, 1.0])], [[Edge(0, 1)], [Edge(0, 1)]])
    title = "/a/long/path/of/a/model/that/does/not/end on /a/long/path/of/data/that/does/not/end/either.jsonl"
    groups = Table("Accuracy by group", ("group", "pairs", "accuracy"), (("short", 10, 0.25), ("long", 2, 0.75)))
    figures = (margin_figure(edges), calibration_figure(edges))
    text = render(title, [("base model", "m")], [("accuracy", "0.5000")], [Section("All", "", (groups,), figures)])
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    with playwright.sync_playwright() as started:
        page = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page()
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(f"file://{tmp_path}/report.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("svg").count() == 2
        cells = lambda: page.locator("section td:first-child").all_inner_texts()
        page.locator("th", has_text="accuracy").click()
        assert cells() == ["long", "short"]
        page.locator("th", has_text="accuracy").click()
        assert cells() == ["short", "long"]
