"""The page of a run, read as a browser reads it: what it says, what it leaves out and why, and that text stays text."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from data.run import Run
from evaluate.changes import round_changes
from evaluate.clustered import Bootstrap
from evaluate.labels import accuracies, judged
from evaluate.page import charts, parts, write
from evaluate.page import frames as frames_module
from evaluate.page.frames import Frames
from evaluate.page.inline import asset, json_text
from evaluate.page.lines import point
from evaluate.page.why import why
from evaluate.page.write import write_page
from evaluate.report import write_report
from tests.page_runs import EVIL, Shape, write_run

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page: tag, attributes, text within."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[tuple[str, list[str]]] = []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        text: list[str] = []
        self.elements.append((tag, dict(attrs), text))
        if tag not in VOID:
            self.open.append((tag, text))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        for _, text in self.open:
            text.append(data)

    def all(self, tag: str, **attributes: str) -> list[str]:
        """The texts of the elements of a tag with these attributes (`class_` for class)."""
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        return [
            "".join(text)
            for name, found, text in self.elements
            if name == tag and all(value in (found.get(key) or "").split() for key, value in wanted.items())
        ]

    @property
    def text(self) -> str:
        """All that is read, in one line."""
        hidden = self.all("script") + self.all("style")
        whole = "".join(self.all("body"))
        for each in hidden:
            whole = whole.replace(each, " ")
        return re.sub(r"\s+", " ", whole)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(write, "chains", lambda run: None)  # which has tests of its own
    return tmp_path


def page_of(shape: Shape, price: float | None = None, **sections: Any) -> tuple[Run, Page]:
    """A run of some shape, and its page."""
    run = write_run("r", shape, **sections)
    return run, Page(write_page("r", price=price).read_text("utf-8"))


def check(page: Page) -> dict[str, Any]:
    """What holds of every page; returns the plots' specifications."""
    specs: dict[str, Any] = json.loads(page.all("script", id="specs")[0])
    places = [found["data-spec"] for tag, found, _ in page.elements if tag == "div" and "data-spec" in found]
    assert sorted(map(str, places)) == sorted(specs), "each plot has its place"
    assert len(page.all("figcaption")) == len(specs) and all(text.strip() for text in page.all("figcaption"))
    assert len(page.all("figure")) == len(specs)
    tables = len(page.all("table"))
    assert tables >= len(specs) and len(page.all("caption")) == tables
    ids = [found["id"] for _, found, _ in page.elements if "id" in found]
    assert len(ids) == len(set(ids)), "no id comes twice"
    for _, found, _ in page.elements:
        for name in ("src", "href", "action", "srcset", "data", "poster", "xlink:href"):
            assert (found.get(name) or "#").startswith("#"), "nothing is fetched"
    assert not any(re.search(r"@import|url\(\s*['\"]?http", style) for style in page.all("style"))
    assert not re.search(r"\bnan\b|\bNone\b|Infinity", page.text.replace("none", "")), "no number that is none"
    for _, spec in specs.items():
        rows = [row for source in _data(spec) for row in source]
        assert rows, "no frame without anything in it"
        assert len(rows) <= 5_000
    return specs


def _data(spec: dict[str, Any]) -> list[list[Any]]:
    own = [spec["data"]["values"]] if "data" in spec else []
    return own + [rows for layer in spec.get("layer", []) for rows in _data(layer)]


def test_the_page_says_what_came_out(here: Path) -> None:
    run, page = page_of(Shape(), price=2.5)
    specs = check(page)
    (mean,) = (each for each in round_changes("r", [0, 1, 2]) if each.group == ("mean", "") and each.round == 2)
    rise = f"rose by {100 * mean.em.mean:.1f} points"
    assert f"After 2 rounds exact match {rise} (95 % interval +" in page.text
    assert "on average over 2 peers and 2 benchmarks" in page.text
    assert "The GV-Gap, what a model gains" in page.text and "There is no gate" in page.text
    assert "It is chosen on the benchmarks, which flatters that number." in page.text
    assert re.search(r"Ship round [12]: it has the highest exact match", page.text)
    (tile,) = (text for text in page.all("li") if text.startswith("p") and "points of exact match" in text)
    (of_p,) = (each for each in round_changes("r", [0, 1, 2]) if each.group == ("mean", "p") and each.round == 2)
    assert f"{100 * of_p.em.mean:+.1f} points of exact match" in re.sub(r"\s+", " ", tile)
    assert [text.strip() for text in page.all("h2")] == ["Why", "Cost", "All numbers"]
    assert "evaluate.bootstrap = 100 (default 2000)" in page.text and "models/p (bfloat16)" in page.text
    for plot in ("em-a", "gv_gap-b", "labels", "pmi-2-p", "pmi-1-q", "scatter-2", "right-2", "authors-2", "agreement",
                 "loss", "responses-mean_tokens", "time"):  # fmt: skip
        assert plot in specs, plot
    assert "GV-Gap in full" in page.text and "train.lr" in page.text
    assert run.name in page.all("h1")


def test_plots_show_the_numbers_of_the_statistics(here: Path) -> None:
    """They are those of the functions that hold the statistics."""
    run, page = page_of(Shape(questions=30))
    specs = check(page)
    chains, scores = judged(run, 2)
    found = accuracies(chains, scores, Bootstrap(100, run.config.run.seed))
    shown = {row["kind"]: row["value"] for row in specs["labels"]["data"]["values"] if row["round"] == 2}
    assert shown == {
        name.removeprefix("right, ").removeprefix("right at "): round(100 * each.mean, 3)
        for name, each in found.items()
        if each
    }
    of_p = [row for row in scores if row["peer"] == "p" and row["pmi_per_token"] is not None]
    bins = specs["pmi-2-p"]["data"]["values"]
    assert sum(row["n"] for row in bins) == len(of_p)
    assert sum(row["n"] for row in bins if row["group"].startswith("agrees")) == sum(row["agrees"] for row in of_p)
    for group in {row["group"] for row in bins}:
        assert sum(row["share"] for row in bins if row["group"] == group) == pytest.approx(1, abs=1e-3)
    assert len([row for row in specs["scatter-2"]["data"]["values"] if row["peer"] == "p"]) == len(of_p)
    shares = {(row["learner"], row["peer"]): row["share"] for row in specs["authors-2"]["data"]["values"]}
    assert shares == {("p", "q"): 1.0, ("q", "p"): 1.0}
    steps = [row for row in specs["loss"]["data"]["values"] if row["peer"] == "p"]
    assert [row["raw"] for row in steps][:2] == [1.0, 0.5] and len(steps) == 40


def test_every_plot_fits_the_schema(here: Path) -> None:
    """That of the Vega-Lite whose scripts are in the page."""
    altair = pytest.importorskip("altair")
    _, page = page_of(Shape(rounds=1, samples=2, gate=True, benchmarks=("a",)))
    specs = check(page)
    for kind in ("gv_gap-a", "labels", "pmi-1-p", "scatter-1", "right-1", "authors-1", "loss", "time"):
        altair.Chart.from_dict(specs[kind])


def test_text_stays_text(here: Path) -> None:
    """Of a model's name; whatever it holds, there are no more scripts than the page's own, and only those may run."""
    peers = [{"name": "p", "model": EVIL}, {"name": "q", "model": "q"}]
    run, page = page_of(Shape(), peers=peers)
    check(page)
    scripts = [(found, "".join(text)) for tag, found, text in page.elements if tag == "script"]
    assert [found.get("type") for found, _ in scripts] == ["application/json", None, None]
    assert any(EVIL.strip() in text for text in page.all("dd"))
    (policy,) = (found["content"] for tag, found, _ in page.elements if found.get("http-equiv"))
    allowed = set(re.findall(r"'sha256-([^']+)'", str(policy)))
    assert allowed == {b64encode(sha256(text.encode()).digest()).decode() for _, text in scripts[1:]}
    assert "default-src 'none'" in str(policy) and "unsafe-eval" not in str(policy)
    assert run.config.peers[0].model == EVIL


def test_nothing_ends_an_element_early() -> None:
    for text in ("</script>", "<!--", "]]>", "\u2028", "a&amp;"):
        found = json_text({"x": text})
        assert json.loads(found) == {"x": text} and not re.search("[<>&\u2028]", found)
    with pytest.raises(ValueError):
        json_text(float("nan"))
    assert "</script" not in asset("page.js") and "</style" not in asset("page.css")


def test_without_gold_answers_the_page_shows_no_right_labels(here: Path) -> None:
    _, page = page_of(Shape(gold=False))
    specs = check(page)
    assert "Not shown: the unlabelled questions have no gold answers" in page.text
    assert "labels" not in specs and not any(name.startswith("right-") for name in specs)
    assert "scatter-2" in specs and "pmi-2-p" in specs
    assert "No reliability was estimated: this run has no samples" in page.text


def test_a_changed_or_missing_source_is_told_on_the_page(here: Path) -> None:
    write_run("r", Shape())
    Path("train.jsonl").write_text('{"question": "another", "answer": "1"}\n')
    page = Page(write_page("r").read_text("utf-8"))
    check(page)
    assert "Not shown: train.jsonl has changed since the run drew its questions." in page.text
    Path("train.jsonl").unlink()
    page = Page(write_page("r").read_text("utf-8"))
    assert "Not shown: their gold answers cannot be read now: " in page.text


def test_without_benchmarks_the_page_shows_no_accuracy(here: Path) -> None:
    _, page = page_of(Shape(benchmarks=(), gold=False))
    specs = check(page)
    assert "There are no benchmarks, so exact match and GV-Gap are not known" in page.text
    assert "Ship round 2, the last: without gate and benchmarks nothing tells the rounds apart." in page.text
    assert "Exact match and GV-Gap are not shown: this run has no benchmarks." in page.text
    assert not page.all("ul", class_="tiles") and not any(name.startswith("em-") for name in specs)
    assert "responses-tokens" in specs and "No price" in page.text


def test_with_round_0_alone_there_is_nothing_to_ship(here: Path) -> None:
    _, page = page_of(Shape(rounds=0))
    specs = check(page)
    assert "Before any training, exact match is 50.0 %" in page.text
    assert "There is nothing to ship yet" in page.text
    assert "Nothing is scored yet, so there are no labels, PMI, weights or losses to show." in page.text
    assert "em-a" in specs and "loss" not in specs
    assert "50.0 % exact match" in re.sub(r"\s+", " ", "".join(page.all("ul", class_="tiles")))


def test_the_page_says_what_the_gate_refused(here: Path) -> None:
    _, page = page_of(Shape(gate=True, refused=True))
    specs = check(page)
    assert "The gate let 2 of 4 adapters through; it refused p in round 1 and p in round 2, whose figures" in page.text
    assert "Ship round 1: p untouched and q of round 1 (mean agreement with the votes 62.5 %, by the gate" in page.text
    assert (
        "gate" in specs
        and "Best round by the gate: 1 (" in page.text
        and "Probabilities of one comparison" in page.text
    )
    assert "round 1: the gate refused p's adapter, so the figures are of its policy in use" in page.text


@pytest.mark.parametrize("alone", [False, True])
def test_the_page_names_what_a_control_run_changes(here: Path, alone: bool) -> None:
    """Peers that are trained on their own responses; and weights that ask for no PMI."""
    _, page = page_of(Shape(alone=alone, benchmarks=("a",)), score={"weighting": "uniform"})
    check(page)
    assert "score.weighting = uniform (default sigmoid)" in page.text
    assert ("generate.aggregate = self" in page.text) == alone


def test_the_page_plots_the_reliability_of_each_peers_votes(here: Path) -> None:
    _, page = page_of(Shape(samples=2))
    specs = check(page)
    rows = {(row["round"], row["peer"]): row["value"] for row in specs["reliability"]["data"]["values"]}
    assert rows == {(1, "p"): 60, (2, "p"): 60, (1, "q"): 70, (2, "q"): 70}


def test_a_fall_in_accuracy_is_warned_of_and_nothing_new_is_shipped(here: Path) -> None:
    _, page = page_of(Shape(better=-0.2, items=40), guard={"accuracy_fall": 0.3})
    check(page)
    assert "exact match fell by" in page.text and "Ship nothing new: the untouched models" in page.text
    assert page.all("p", class_="warning") and "The guard against collapse warns" in page.text


def test_many_peers_and_rounds_keep_the_axes_readable(here: Path) -> None:
    _, page = page_of(Shape(rounds=1, peers=tuple("abcdefghi"), benchmarks=("a",), questions=9, items=4, spent=False))
    check(page)
    assert "this run's version did not record it in the manifests" in page.text
    spec = charts.by_round([point(n, "a", 0.5) for n in range(30)], ["a"], "x")
    ticks = spec["layer"][0]["encoding"]["x"]["axis"]["values"]
    assert len(ticks) <= 12 and ticks[0] == 0


def test_cost_is_hours_by_devices_and_price_by_points_gained(here: Path) -> None:
    """2 rounds of 4 stages and round 0's, 10 s each, on one device."""
    _, page = page_of(Shape(), price=360.0)
    assert "0.03 device hours (a stage's time on all its devices).At 360 per device hour that is 9.00." in page.text
    (mean,) = (each for each in round_changes("r", [0, 1, 2]) if each.group == ("mean", "") and each.round == 2)
    assert f"That is {9 / (100 * mean.em.mean):.2f} per point of exact match gained." in page.text
    assert "6 s (60 %)" not in page.text and "12 s (60 %)" in page.text


def test_a_large_round_is_judged_on_a_sample(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(frames_module.MAX_JUDGED, "numbers", 10)
    run = write_run("r", Shape(rounds=1))
    frames = Frames(run)
    ids = frames.sample(1)
    assert ids is not None and len(set(ids)) == 10 and ids == Frames(run).sample(1)
    section = why(frames)
    (plot,) = (plot for plot in section.plots() if plot.id == "labels")
    assert "From a seeded sample of 10 questions." in plot.caption
    monkeypatch.setitem(frames_module.MAX_JUDGED, "numbers", 1000)
    assert Frames(run).sample(1) is None


def test_what_was_judged_is_not_judged_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is written after each stage; scores that were made anew are judged anew."""
    run = write_run("r", Shape(rounds=1))
    first = Frames(run).judged(1)
    monkeypatch.setattr(frames_module, "judged", lambda *_: pytest.fail("judged again"))
    assert Frames(run).judged(1) == first
    (run.stage_dir(1, "scores") / "_SUCCESS.json").touch()
    with pytest.raises(pytest.fail.Exception):
        Frames(run).judged(1)


def test_the_report_has_its_page(here: Path) -> None:
    write_run("r", Shape())
    tables = write_report("r", price=1.0)
    page = Page(Path("runs/r/report.html").read_text("utf-8"))
    assert len(tables) == 2 and "per device hour that is" in page.text


def test_lists_signs_durations_and_counts_read_as_english() -> None:
    assert (
        parts.join_words(["a"]) == "a"
        and parts.join_words(["a", "b", "c"]) == "a, b and c"
        and parts.join_words([]) == ""
    )
    assert parts.signed(-0.04) == "0.0" and parts.signed(-1.26) == "−1.3" and parts.signed(2) == "+2.0"
    assert (
        parts.long_duration(45) == "45 s"
        and parts.long_duration(600) == "10 min"
        and parts.long_duration(9000) == "2 h 30 min"
    )
    assert parts.plural(1, "round") == "1 round" and parts.plural(1200, "peer") == "1,200 peers"


def test_one_question_has_no_interval(here: Path) -> None:
    _, page = page_of(Shape(items=1, benchmarks=("a",), better=-0.2))
    check(page)
    assert "exact match fell by 100.0 points, from 100.0 to 0.0 %, on average over 2 peers." in page.text
    assert "no interval: one question" in page.text
