"""The browser of chains in a headless Chromium: filters, keyboard, links, formulas, and texts that stay texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from data.hashing import question_id
from evaluate.page.chains import chains
from evaluate.page.inline import FOLDER, asset, policy
from evaluate.page.write import CHAIN_SCRIPTS
from tests.chain_run import chain, of_question, response, write_run

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (make setup EXTRA=browser)")
CHROMIUM = which("chromium") or which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

HOSTILE = (
    "</script><script>document.title = 'run'; alert(1)</script><img src=x onerror=alert(2)>"
    "<b>bold</b> &lt;i&gt; <!-- \u202egnol\u202c \u200f \x1b[31mred\x1b[0m\x07 \u2028 ${alert(3)} "
)
GOLD = {"1+1?": "2", "2+2?": "4", "3+3?": "6", HOSTILE: "1", r"Find $\frac{1}{2}+x^2$ for $5 and $7.": "1"}
WRONG, LOW, MATHS = (question_id(list(GOLD)[place]) for place in (1, 2, 4))


def page_of(name: str) -> Path:
    """The browser of a run's chains alone, under the page's style sheet and policy."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    inside = environment.get_template("chains.html.j2").render(chains=chains(name))
    scripts = [asset(script) for script in CHAIN_SCRIPTS]
    html = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>chains</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(scripts)}">'
        f'<meta name="viewport" content="width=device-width"><style>{asset("page.css")}{asset("chains.css")}</style>'
        f'</head><body><main><h1>run</h1><section id="chains"><h2>Chains</h2>{inside}</section></main>'
        + "".join(f"<script>{script}</script>" for script in scripts)
        + "</body></html>"
    )
    path = Path("runs", name, "chains.html").resolve()
    path.write_text(html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Pages of a run of two rounds with gold answers, and of one without."""
    long = HOSTILE + "x" * 100_000
    first = [
        chain("1+1?", ["3", "2", "2"]), chain("2+2?", ["4", "4", "5"], 1.5), chain("3+3?", ["7", "7", "7"], 0.5),
        chain(list(GOLD)[4], ["1", "1", r"\frac{1}{1}"]),
        of_question(HOSTILE, [response("ada", long, long, position=1), response("ben", HOSTILE, None, position=2)], []),
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("pages")
        patch.chdir(path)
        write_run("gold", {1: first, 2: [chain(question, ["2", "2", "2"]) for question in list(GOLD)[:3]]}, GOLD)
        write_run("none", {1: first})
        for name in ("gold", "none"):
            page_of(name)
        yield path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for all tests."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """An open page; `wrong` collects what must not happen."""

    def __init__(self, chromium: Any, path: Path, fragment: str = "", **given: Any) -> None:
        self.wrong: list[str] = []
        self.page = chromium.new_context(**{"viewport": {"width": 1200, "height": 800}} | given).new_page()
        self.page.set_default_timeout(10_000)
        self.page.on("console", lambda message: self.wrong.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", self.asks)
        self.page.on("request", lambda request: self.asked(request.url))
        self.page.goto(path.as_uri() + fragment)
        self.page.wait_for_selector("#chain-browser[data-ready]")

    def asks(self, dialog: Any) -> None:
        """A dialog, which no page opens but one that runs what a model wrote."""
        self.wrong.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def asked(self, url: str) -> None:
        """A request: of the file itself alone is right."""
        if not url.startswith(("file:", "blob:")):
            self.wrong.append(f"request {url}")

    @property
    def count(self) -> str:
        """What the page says of what it has found."""
        return str(self.page.inner_text("#chain-count"))

    @property
    def one(self) -> str:
        """The text of the chain that is shown."""
        return str(self.page.inner_text("#chain-one"))

    def shows(self, round_: int, id_: str) -> None:
        """Wait until a chain is shown."""
        self.page.wait_for_selector(f'#chain-browser[data-shown="{round_}/{id_}"]')

    def says(self, count: str) -> None:
        """Wait until so many are found."""
        self.page.wait_for_function(
            "text => document.getElementById('chain-count').textContent.startsWith(text)", arg=count
        )


@pytest.fixture
def gold(chromium: Any, folder: Path) -> Iterator[Opened]:
    """The page with gold answers, at its first round."""
    opened = Opened(chromium, folder / "runs/gold/chains.html", f"#round=1&id={question_id('1+1?')}")
    yield opened
    opened.page.context.close()
    assert opened.wrong == []


def test_a_filter_by_click_and_the_order_by_weight(gold: Opened) -> None:
    assert gold.count.startswith("5 of 5 chains")
    gold.page.check("text=label wrong")
    gold.says("2 of 5 chains")
    gold.page.select_option("#chain-order", "weight")
    assert [row.get_attribute("href") for row in gold.page.query_selector_all("#chain-list a")] == [
        f"#round=1&id={WRONG}", f"#round=1&id={LOW}",
    ]  # fmt: skip
    gold.page.click(f'#chain-list a[href$="{LOW}"]')
    gold.shows(1, LOW)
    assert "✗ wrong" in gold.one and "Gold answer: 6" in gold.one and "it wrote the aggregate itself" in gold.one
    gold.page.keyboard.press("k")  # a checkbox that has the focus takes no letters
    gold.shows(1, WRONG)
    gold.page.check("text=answers differ")
    gold.says("1 of 5 chains, number 1 shown")
    gold.shows(1, WRONG)
    gold.page.check("text=cut off")
    gold.says("0 of 5 chains")
    assert "No chain matches." in gold.one


def test_the_keyboard_steps_and_searches_but_not_while_typing(gold: Opened) -> None:
    order = [row.get_attribute("href") for row in gold.page.query_selector_all("#chain-list a")]
    start = order.index(f"#round=1&id={question_id('1+1?')}")
    there = [("j", 1), ("k", 0)] if start < len(order) - 1 else [("k", -1), ("j", 0)]
    for key, by in there:
        gold.page.keyboard.press(key)
        gold.page.wait_for_function("hash => location.hash === hash", arg=order[start + by])
        gold.shows(1, order[start + by].split("=")[-1])
    gold.page.keyboard.press("/")
    gold.page.keyboard.type("3+3")
    gold.says("1 of 5 chains")
    gold.shows(1, LOW)
    assert gold.page.input_value("#chain-search") == "3+3"
    gold.page.keyboard.type("jk")
    gold.says("0 of 5 chains")
    gold.page.keyboard.press("Escape")
    gold.says("5 of 5 chains")
    assert gold.page.evaluate("document.activeElement.id") != "chain-search"


def test_search_looks_into_responses_and_ids(gold: Opened) -> None:
    for sought, id_ in (("say 5", WRONG), (LOW, LOW), (r"\frac{1}{2}", MATHS)):
        gold.page.fill("#chain-search", sought)
        gold.says("1 of 5 chains")
        gold.shows(1, id_)


def test_a_peer_and_a_round_can_be_chosen(gold: Opened) -> None:
    gold.page.select_option("#chain-peer", label="cat")
    gold.says("4 of 5 chains")  # the hostile question has no scores
    gold.page.check("text=trains nobody")
    gold.says("4 of 5 chains")  # cat wrote all aggregates
    gold.page.uncheck("text=trains nobody")
    gold.page.select_option("#chain-round", "2")
    gold.shows(2, question_id("1+1?"))
    gold.says("3 of 3 chains")


def test_a_link_leads_to_its_chain(chromium: Any, folder: Path) -> None:
    opened = Opened(chromium, folder / "runs/gold/chains.html", f"#round=1&id={WRONG}")
    opened.shows(1, WRONG)
    assert "2+2?" in opened.one and opened.page.evaluate("scrollY") > 0
    opened.page.evaluate(f"location.hash = '#round=2&id={LOW}'")
    opened.shows(2, LOW)
    assert opened.page.input_value("#chain-round") == "2"
    opened.page.evaluate("location.hash = '#round=9&id=zz'")
    opened.page.wait_for_selector("#chain-trouble:visible")
    assert "zz" in opened.page.inner_text("#chain-trouble") and opened.wrong == []
    opened.page.context.close()


def test_what_a_model_wrote_stays_text(gold: Opened) -> None:
    gold.page.evaluate(f"location.hash = '#round=1&id={question_id(HOSTILE)}'")
    gold.shows(1, question_id(HOSTILE))
    assert gold.page.evaluate("document.querySelectorAll('#chain-one :is(script, img, b, i)').length") == 0
    assert "</script><script>document.title = 'run'; alert(1)</script><img src=x onerror=alert(2)>" in gold.one
    assert "&lt;i&gt;" in gold.one and gold.page.title() == "chains"
    text = gold.page.text_content("#chain-one .chain-response:nth-child(2)")
    assert not {"\x1b", "\u202e", "\u202c", "\u200f", "\u2028", "\x07"} & set(text)
    assert "ESC[31mred" in text and "U+202Egnol" in text
    assert gold.page.evaluate("getComputedStyle(document.querySelector('.chain-text')).unicodeBidi") == "isolate"
    first = gold.page.locator("#chain-one .chain-response:first-child .chain-text")
    assert len(first.text_content()) < 6_000
    first.locator("button").click()
    assert len(first.text_content()) > 100_000
    assert first.evaluate("text => text.scrollWidth <= text.clientWidth")
    assert gold.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_formulas_are_drawn_and_can_be_read_as_written(gold: Opened) -> None:
    gold.page.evaluate(f"location.hash = '#round=1&id={MATHS}'")
    gold.shows(1, MATHS)
    space = gold.page.evaluate("document.querySelector('.chain-question mfrac').namespaceURI")
    assert space == "http://www.w3.org/1998/Math/MathML" and "for $5 and $7." in gold.one
    gold.page.uncheck("#chain-maths")
    gold.page.wait_for_function("!document.querySelector('#chain-one math')")
    assert r"Find $\frac{1}{2}+x^2$ for $5 and $7." in gold.one


def test_without_gold_there_is_no_verdict_and_no_filter_for_one(chromium: Any, folder: Path) -> None:
    opened = Opened(chromium, folder / "runs/none/chains.html")
    assert "No gold answers" in opened.page.inner_text("#chains") and opened.wrong == []
    assert opened.page.locator("fieldset input").count() == 3
    assert "✓" not in opened.page.inner_text("#chains") and "✗" not in opened.page.inner_text("#chains")
    opened.page.context.close()


@pytest.mark.parametrize("given", [{"color_scheme": "dark"}, {"viewport": {"width": 390, "height": 800}}])
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_page(
    chromium: Any, folder: Path, given: dict[str, Any]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    opened = Opened(chromium, folder / "runs/gold/chains.html", f"#round=1&id={WRONG}", bypass_csp=True, **given)
    found = axe.Axe().run(opened.page).response["violations"]
    serious = [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found
               if each["impact"] in ("serious", "critical")]  # fmt: skip
    assert serious == [] and opened.wrong == []
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    opened.page.context.close()


def test_a_damaged_page_says_so(chromium: Any, folder: Path) -> None:
    whole = (folder / "runs/none/chains.html").read_text(encoding="utf-8")
    broken = folder / "broken.html"
    broken.write_text(whole.replace('id="chain-index">H', 'id="chain-index">X'), encoding="utf-8")
    page = chromium.new_page()
    page.goto(broken.as_uri())
    page.wait_for_selector("#chain-trouble:visible")
    assert "make report" in page.inner_text("#chain-trouble")
    page.close()


@pytest.mark.slow
def test_two_thousand_questions_are_there_nearly_as_soon_as_two_hundred(
    chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    times: dict[int, list[float]] = {}
    for n in (200, 2000):
        questions = {f"What is {i} + {i % 7}, {'said at length, ' * 20}in all?": str(i + i % 7) for i in range(n)}
        told = [chain(q, [f"{a} {'and so on ' * 60}", a, a]) for q, a in questions.items()]
        write_run(f"n{n}", {1: told, 2: told, 3: told}, questions)
        path = page_of(f"n{n}")
        assert path.stat().st_size < 8_000_000
        for _ in range(5):
            opened = Opened(chromium, path)
            mark = "performance.getEntriesByName('chains-ready')[0].startTime"
            times.setdefault(n, []).append(opened.page.evaluate(mark))
            opened.page.context.close()
    assert min(times[2000]) < 3 * min(times[200]), times
