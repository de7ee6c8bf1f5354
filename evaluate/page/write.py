"""Write the page of a run: runs/<run>/report.html."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from data import shards
from data.fork import fork_notice
from data.quarantine import lines_of
from data.run import RUNS
from evaluate.page import verdict
from evaluate.page.chains import chains
from evaluate.page.cost import cost
from evaluate.page.frames import Frames
from evaluate.page.inline import FOLDER, asset, json_text, policy, vega
from evaluate.page.overview import overview
from evaluate.page.parts import Numbers, PagePart, PageSection
from evaluate.page.why import why
from evaluate.results import Results, results_of
from evaluate.tables import oracle_notice, unscored_notice

FOOTER = "Made by Peer-Predictive Self-Training from the files of the run; this page fetches nothing."
CHAIN_SCRIPTS = ("chain-view.js", "chains.js")


def write_page(run: str, results: Results | None = None, price: float | None = None) -> Path:
    """Write runs/<run>/report.html, one self-contained file; returns its path.

    `results` are those of the run, if they are known already; `price` is that of a device hour.
    """
    path = RUNS / run / "report.html"
    html = render(context_of(results or results_of(run), price))
    with shards.writing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def context_of(results: Results, price: float | None = None) -> dict[str, Any]:
    """The template's context."""
    run, frames = results.run.name, Frames(results.run)
    browser = chains(run)
    sections = [PageSection("overview", "Results", parts=overview(results, frames)), why(frames)]
    sections += [PageSection("chains", "Chains")] if browser is not None else []
    sections += [cost(results, frames, price), all_numbers(results)]
    notices = [fork_notice(run), oracle_notice(run), *(unscored_notice(run, n) for n in results.rounds)]
    notices += [f"\n{escape(line)}" for line in lines_of(RUNS / run)]
    lead, more = verdict.sentences(results, frames)
    return {
        "run": run,
        "subtitle": verdict.subtitle(results, frames),
        "facts": verdict.facts(results, frames),
        "notices": verdict.notices(results, Text.from_markup("".join(notices)).plain.splitlines()),
        "verdict": lead,
        "details": " ".join(more),
        "tiles": verdict.tiles(results, frames),
        "warnings": results.warnings,
        "sections": sections,
        "chains": browser,
        "specs": {plot.id: plot.spec for section in sections for plot in section.plots()},
        "footer": FOOTER,
    }


def all_numbers(results: Results) -> PageSection:
    """The tables of the terminal and further ones, each behind a click."""
    tables = [table for table in (*results.tables, *results.more) if isinstance(table, Table)]
    found = [numbers_of(table) for table in tables]
    more = [(each.title, PagePart(f"table-{i}", each.title, tables=[each])) for i, each in enumerate(found)]
    lead = "The tables that the terminal prints, and further ones."
    return PageSection("numbers", "All numbers", lead, [PagePart("tables", "Tables", more=more)])


def numbers_of(table: Table) -> Numbers:
    """A table of the terminal as one of the page; blank cells that repeat the row above are filled in."""
    title, _, more = Text.from_markup(str(table.title or "")).plain.partition("\n")
    columns = [Text.from_markup(str(column.header)).plain for column in table.columns]
    cells = [[Text.from_markup(str(cell)).plain for cell in column.cells] for column in table.columns]
    rows: list[list[str]] = []
    for row in map(list, zip(*cells, strict=True)):
        blank = next((i for i, cell in enumerate(row) if cell), 0)
        rows.append([*rows[-1][:blank], *row[blank:]] if rows else row)
    right = [i for i, column in enumerate(table.columns) if column.justify == "right"]
    return Numbers(title[:1].upper() + title[1:], columns, rows, right, more)


def render(context: dict[str, Any]) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals |= {"asset": asset, "json_text": json_text}
    scripts = [vega(), asset("page.js"), *(map(asset, CHAIN_SCRIPTS) if context["chains"] else [])]
    given = context | {"specs": json_text(context["specs"]), "scripts": scripts, "policy": policy(scripts)}
    return environment.get_template("page.html.j2").render(given)
