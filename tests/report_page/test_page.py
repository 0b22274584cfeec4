"""The page: the same bytes again, every figure on it, and nothing of what names and files say is
ever more than text."""

import base64
import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from run_files import START, figures, save_run, subject
from torch import nn

from model_compound_scaling.networks.quantizers import quantize_inputs
from model_scoring.counting import score
from model_scoring.report_page import charts, published_parameters, read_trials, render

pytest.importorskip("matplotlib")
EVIL = '<script>alert("$x$")</script>--> \' & <img src=x onerror=alert(1)> \udcff\x00\u202e中文'
SHOWN = '<script>alert("$x$")</script>--> \' & <img src=x onerror=alert(1)>'


class Page(HTMLParser):
    """Elements, attributes and text of a page, which must close what it opens."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = Counter(), [], [], []
        self.feed(content.decode())
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, other, value in self.attributes if other == name]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
def trials(tmp_path):
    """A grid of two runs of stage 2, and one that has just begun."""
    for name, best in (("g0.1", 80.0), ("g0.2", 77.0)):
        rows = [figures(1, 60.0), figures(2, best), figures(3, 70.0, phase="frozen")]
        save_run(tmp_path / f"net_ec2t_{name}", rows)
    save_run(tmp_path / "net_ec2t_g0.3", [])
    return read_trials([tmp_path], published_parameters)


def test_the_same_input_gives_the_same_bytes(trials):
    best = trials[0].history.best
    one, other = (render(subject(best), trials) for _ in range(2))
    assert one == other
    assert render(subject(best, seed=4), trials) != one


def test_ids_are_unique_and_all_that_is_referred_to_is_there(trials):
    page = Page(render(subject(), trials))
    ids = Counter(page.values("id"))
    assert ids and set(ids.values()) == {1}
    links = {value.removeprefix("#") for value in page.values("xlink:href")}
    clips = {re.fullmatch(r"url\(#(\w+)\)", value)[1] for value in page.values("clip-path")}
    assert links | clips <= ids.keys()


def test_it_needs_nothing_else_and_runs_one_script(trials):
    content = render(subject(), trials)
    page = Page(content)
    policy = next(v for v in page.values("content") if v.startswith("default-src 'none'"))
    script = re.search(rb"<script>(.*?)</script>", content, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and page.tags["script"] == 1
    assert page.values("href") == ["data:,"] and not page.values("src")
    assert not re.search(rb"url\((?!#)|@import|https?:", content)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_colours_and_font_are_the_page_s_own(trials):
    page = Page(render(subject(), trials))
    drawn = ";".join(v for tag, name, v in page.attributes if name == "style" and tag != "span")
    assert set(re.findall(r"(?:fill|stroke): ([^;]+)", drawn)) == {
        "none", "currentColor", *(f"var(--c{i})" for i in (1, 2, 3, 5))
    }  # fmt: skip
    assert "font-family" not in drawn


def test_answer_trials_and_commands_are_on_the_page(trials):
    page = Page(render(subject(trials[0].history.best, question="80 %: what?"), trials))
    found, result = page.text, subject().score.totals
    assert found.startswith("80 %: what?")
    for rules in ("published", "strict"):
        assert f"{result[rules].params:,.0f}" in found and f"{result[rules].score:.5f}" in found
    for words in (
        "81.25 %",
        "top-1, all images",
        "1.2 kB",
        "1,234 bytes, packed file",
        "python run_quantization.py --model-dict net.pt",
        "commit 0123456789abcdef",
        "changed no",
        "devices a GPU, a GPU",
        "seed 7",
        "seed 3",
        "in progress",
        "versions python 3.11, torch 2.14",
        "made g0.1; g0.2; g0.3",
        "made this page",
    ):
        assert words in found, words  # fmt: skip
    assert "★ g0.1" in found and found.count("★") == 2  # in the table, and what it means
    assert page.values("class").count("chosen") == 1


def test_pictures_say_their_numbers(trials):
    page = Page(render(subject(trials[0].history.best), trials))
    assert page.tags["svg"] == 6 == page.values("role").count("img")
    said = [v for tag, name, v in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert "The chosen one: 1,000, 80.00 %" in said[0] and "g0.2: 1,000, 77.00 %" in said[0]
    assert "g0.1: 1.3 in epoch 2, its best; 1.4 in epoch 3" in said[1]
    assert "g0.1: 80 in epoch 2, its best; 70 in epoch 3" in said[2]
    assert re.search(r"1 conv: \d+ ternary, 0 full precision, \d+ zeros, 0 deleted", said[3])
    assert "2 last: 0 ternary, 100 full precision, 0 zeros, 0 deleted channels" in said[3]
    count = subject().score.counts
    one, other = (f"{count[rules][0].params:,.0f}" for rules in ("published", "strict"))
    assert f"1 conv: {one} published, {other} strict" in said[4]


def test_a_network_that_is_of_no_run_has_no_star_but_a_place(trials):
    for best in ({}, {"epoch": 2, "val_top1": 79.9}):
        page = Page(render(subject(best), trials))
        assert "chosen" not in page.values("class") and page.text.count("★") == 1
        published = subject().score.totals["published"].params
        label = next(v for v in page.values("aria-label") if "networks by" in v)
        assert f"The chosen one: {published:,.0f}, 81.25 %" in label
    page = Page(render(subject(top1=None), trials))
    assert "--eval measures it" in page.text and "chosen one:" not in str(page.attributes)


def test_without_runs_there_are_neither_curves_nor_trials():
    page = Page(render(subject(), []))
    assert page.tags["svg"] == 3 and "Training" not in page.text and "trials" not in page.text


def test_names_and_files_are_only_text(tmp_path):
    start = {**START, "command": [EVIL, 3], "commit": EVIL, "changed": EVIL, "processes": None}
    start |= {"versions": {EVIL: EVIL}, "devices": [EVIL], EVIL: {EVIL: [EVIL]}, "time": EVIL}
    name = EVIL.replace("/", "|").replace("\x00", " ")
    for i in range(2):
        rows = [figures(1, 60.0, phase=EVIL), figures(2, 50.0, phase="frozen")]
        save_run(tmp_path / f"{i}{name}", rows, start=start)
    trials = read_trials([tmp_path], published_parameters)
    layer = EVIL.replace(".", "")
    known = {"question": EVIL, "model": EVIL, "images": EVIL, "start": start}
    files = {EVIL: (tmp_path / name, 5)}
    page = Page(render(subject(name=layer, files=files, **known), trials))
    plain = Page(render(subject(), trials[:1])).tags
    assert page.tags["script"] == 1 and not page.tags["img"]
    assert set(page.tags) == set(plain)
    assert not [a for a in page.attributes if a[1].startswith("on") or a[1] == "src"]
    assert page.text.count(SHOWN) > 8 and "\x00" not in page.text and "\u202e" not in page.text
    assert page.text.count(SHOWN.replace("/", "|")) > 4


@pytest.mark.parametrize("value", ["Infinity", "NaN", "1" + 400 * "0", "-1e999", "0"])
def test_any_number_can_be_drawn(tmp_path, value):
    names = ("epoch", "train_loss", "train_top1", "val_loss", "val_top1", "zeros", "scoring_params")
    for i, name in enumerate(names):
        folder = save_run(tmp_path / f"{i}", [figures(1, 60.0), figures(2, 61.0)])
        rows = [json.dumps(figures(1, 60.0)), json.dumps(figures(2, 61.0))]
        rows = [re.sub(f'"{name}": [^,]*', f'"{name}": {value}', row, count=1) for row in rows]
        (folder / "metrics.jsonl").write_text("\n".join(rows))
    trials = read_trials([tmp_path], published_parameters)
    for some in (trials[:4], trials[4:]):  # so many curves are drawn
        best = some[-1].history.best
        assert Page(render(subject(best), some)).tags["svg"] == 6


def test_a_grid_of_a_hundred_stays_readable(tmp_path):
    for i in range(100):
        rows = [figures(1, 50.0 + i / 10, scoring_params=900.0 + 9 * i)]
        save_run(tmp_path / f"g{i}", rows, start={**START, "time": f"2026-{i:03}"})
    trials = read_trials([tmp_path], published_parameters)
    page = Page(render(subject(trials[0].history.best), trials))
    assert page.text.count(" in progress") == 100  # the table has all
    said = [v for tag, name, v in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert said[0].count(" %; ") == charts.IN_WORDS and "and 88 more, see the table" in said[0]
    curves = re.findall(r"(g\d+): ", said[2])  # the chosen one, then the best
    assert curves == ["g0", "g99", "g98", "g97"]
    assert "2026-000 to 2026-099" in page.text and page.tags["pre"] == 2  # one command, and ours


def test_a_network_of_many_layers_stays_readable():
    few = subject().score
    trace = replace(few.trace, records=70 * few.records)
    counts = {rules: 70 * counted for rules, counted in few.counts.items()}
    page = Page(render(subject(score=replace(few, trace=trace, counts=counts)), []))
    assert page.tags["tr"] == 1 + 140 + 1 + 2
    label = next(v for v in page.values("aria-label") if "of 140 layers" in v)
    assert "and 128 more, see the table" in label and len(label) < 2000


def test_bits_of_weights_and_inputs_are_in_the_table_of_layers():
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    layers[0].weight.data.sign_()  # two values: one bit
    network = quantize_inputs(layers, {"2": "u4"})
    page = Page(render(subject(score=score(network, (3, 8, 8))), []))
    texts = [text.strip() for text in page.texts]
    after = [i for i, text in enumerate(texts) if text == "dense"]  # the column "format"
    assert [texts[i + 1 : i + 3] for i in after] == [["1", "16"], ["16", "4"]]


def test_ticks_of_size_are_between_the_smallest_and_the_largest(tmp_path):
    numbers = random.Random(0)
    for i in range(30):
        low = 10 ** numbers.uniform(0.5, 7)
        sizes = [low, low * 10 ** numbers.uniform(0, 4)]
        for j, size in enumerate(sizes):
            save_run(tmp_path / f"{i}" / f"{j}", [figures(1, 60.0, scoring_params=size)])
        trials = read_trials([tmp_path / f"{i}"], published_parameters)
        picture = charts.over_size(charts.labels(trials), None)
        shown = re.findall(r'middle; fill: currentColor"[^>]*>([\d.]+[kMG]?)<', picture)
        ticks = [float(tick.translate({107: "e3", 77: "e6", 71: "e9"})) for tick in shown]
        assert 2 <= len(ticks) <= 9, (sizes, ticks)
        assert sizes[0] / 1.6 <= min(ticks) and max(ticks) <= sizes[1] * 1.6


def test_short_names_tell_runs_apart(tmp_path):
    for folder in ("one/x_a", "one/x_a_b", "two/x_a", "two/_"):
        save_run(tmp_path / folder, [figures(1, 60.0)])
    one, two = (read_trials([tmp_path / name], published_parameters) for name in ("one", "two"))
    assert [*charts.labels(one).values()] == ["a", "a_b"]
    assert [*charts.labels(two).values()] == ["_", "x_a"]
    assert [*charts.labels(one[:1]).values()] == ["x_a"]
    both = charts.labels(one + two)
    assert [*both.values()] == ["one/x_a", "one/x_a_b", "two/_", "two/x_a"]
