"""The page in headless Chromium: it fits, says nothing to the console, requests nothing, sorts."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser
from run_files import figures, save_run, subject

from model_scoring.report_page import published_parameters, read_trials, render

pytest.importorskip("matplotlib")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
TEXTS = """[...document.querySelectorAll("svg text")].map(text => {
  const svg = text.closest("svg"), one = text.getBoundingClientRect();
  const all = svg.getBoundingClientRect(), style = getComputedStyle(text);
  return {said: text.textContent, ink: style.fill,
    size: parseFloat(style.fontSize) * all.width / svg.viewBox.baseVal.width,
    inside: one.left > all.left - 2 && one.right < all.right + 2 && one.top > all.top - 2};
})"""
TABLE = '[...document.querySelectorAll("table")].at(-1)'
ORDER = f"[...{TABLE}.tBodies[0].rows].map(row => row.cells[0].textContent)"
HEADS = f"[...{TABLE}.tHead.rows[0].cells].map(head => head.ariaSort)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(CHROMIUM, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A page about the third of five networks, with names as long as they get."""
    folder, long = tmp_path_factory.mktemp("page"), "efficientnet_ImageNet" * 5
    for name, top1, zeros in (("b", 70, 5), ("a", 60, 80), ("c", 75, 40), ("d", 9, 6)):
        more = {"zeros": float(zeros), "scoring_params": 1000.0 * zeros}
        rows = [figures(1, 5.0), figures(2, float(top1), phase="frozen", **more)]
        save_run(folder / "runs" / f"{long}_{name}{long}", rows)
    save_run(folder / "runs" / f"{long}_e{long}", [])
    trials = read_trials([folder / "runs"], published_parameters)
    known = {"question": "How small?" * 20, "model": long, "name": long}
    content = render(subject(trials[2].history.best, **known), trials)
    (folder / "page.html").write_bytes(content)
    return folder / "page.html"


@pytest.mark.parametrize("width", [320, 400, 1000, 1600])
def test_it_fits_and_is_readable(browser, page, width):
    browser.open(page, width)
    root = "document.documentElement"
    found = browser.evaluate(f"[innerWidth, {root}.scrollWidth - {root}.clientWidth]")
    assert found == [width, 0]  # else there is a horizontal scroll bar
    texts = browser.evaluate(TEXTS)
    assert len(texts) > 50
    for text in texts:
        assert text["inside"] and text["size"] > (8 if width >= 400 else 6), text


def test_nothing_is_said_to_the_console_and_nothing_requested(browser, page):
    browser.open(page, 400)
    assert (browser.said(), browser.requested()) == ([], [page.as_uri()])
    broken = page.with_name("broken.html")  # that there would be something to hear
    image = '<img src="https://example.org/x.png"><script>console.log(1)</script>'
    broken.write_text(page.read_text().replace("</main>", f"{image}</main>"))
    browser.open(broken, 400)
    assert sum("Content Security Policy" in words for words in browser.said()) == 2
    broken.write_text("<script>console.log(1)</script>")
    browser.open(broken, 400)
    assert len(browser.said()) == 1


def test_tables_sort_by_key_and_click_and_what_is_unknown_stays_last(browser, page):
    browser.open(page, 1600)
    assert browser.evaluate(HEADS)[4] == "ascending"
    steps = [
        (2, "Enter", "ascending", "dabce"),  # accuracy
        (2, " ", "descending", "cbade"),
        (3, "click", "ascending", "bdcae"),  # zeros
        (4, "Enter", "ascending", "bdcae"),  # parameters
        (4, "click", "descending", "acdbe"),
        (0, "Enter", "ascending", "cabde"),  # names; the star comes first
    ]
    for column, key, order, expected in steps:
        button = f'{TABLE}.querySelectorAll("th button")[{column}]'
        browser.evaluate(f"{button}.{'click' if key == 'click' else 'focus'}()")
        if key != "click":
            browser.press(key, 13 if key == "Enter" else 32)
        assert browser.evaluate(HEADS) == [order if i == column else None for i in range(8)]
        names = (name.removeprefix("★ ")[0] for name in browser.evaluate(ORDER))
        assert "".join(names) == expected


def test_light_and_dark_follow_the_reader(browser, page):
    seen = []
    for dark in (False, True):
        browser.open(page, 400, dark=dark)
        paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        inks = {text["ink"] for text in browser.evaluate(TEXTS)}
        levels = [sum(map(int, colour[4:-1].split(","))) for colour in (paper, *inks)]
        seen.append([level > 3 * 128 for level in levels])  # bright ones
    assert seen == [[True, False], [False, True]]
