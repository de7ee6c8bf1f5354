"""Write the page of a run: runs/<run>/report.html."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from data import shards
from data.run import RUNS
from evaluate.page.inline import FOLDER, asset, json_text, policy, vega


def write_page(run: str) -> Path:
    """Write runs/<run>/report.html, one self-contained file; returns its path."""
    path = RUNS / run / "report.html"
    with shards.writing(path) as temporary:
        temporary.write_text(render(context_of(run)), encoding="utf-8")
    return path


def context_of(run: str) -> dict[str, Any]:
    """What the template is given."""
    sections: list[dict[str, Any]] = [{"id": "overview", "title": "Results", "parts": []}]
    chains = chains_of(run)
    if chains is not None:
        sections.append({"id": "chains", "title": "Chains", "parts": []})
    return {
        "run": run, "subtitle": "", "notices": [], "verdict": [], "tiles": [], "warnings": [], "sections": sections,
        "chains": chains, "specs": {}, "footer": "",
    }  # fmt: skip


def chains_of(run: str) -> Any | None:
    """What the browser of chains shows; None where there are no chains."""
    if find_spec("evaluate.page.chains") is None:
        return None
    return import_module("evaluate.page.chains").chains(run)


def render(context: dict[str, Any]) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals |= {"asset": asset, "json_text": json_text}
    scripts = [vega(), asset("page.js"), *([asset("chains.js")] if context["chains"] else [])]
    given = context | {"specs": json_text(context["specs"]), "scripts": scripts, "policy": policy(scripts)}
    return environment.get_template("page.html.j2").render(given)
