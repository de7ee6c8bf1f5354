"""What goes into the page verbatim: scripts, style sheets, data. Text from a model or a config stays text.

The page's policy (a Content-Security-Policy with the scripts' hashes) lets the browser run only these scripts and fetch
nothing: text that got past the escaping would still not run.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

from markupsafe import Markup

from data import shards

FOLDER = Path(__file__).parent
# the project's, wherever the command runs: the scripts are the same for all runs
CACHE = Path(os.environ.get("PST_CACHE", FOLDER.parents[1] / ".cache")) / "page"
UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def json_text(value: Any) -> Markup:
    """JSON for a `<script type="application/json">` that nothing in the JSON can end. Raises ValueError for a NaN."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in UNSAFE.items():
        text = text.replace(character, escape)
    return Markup(text)


def asset(name: str) -> Markup:
    """A style sheet or a script of this folder."""
    return _whole((FOLDER / name).read_text(encoding="utf-8"), name)


def _whole(text: str, name: str) -> Markup:
    """A text that cannot end its element: a script's `</script` is escaped. Raises ValueError for a style sheet's
    `</style`."""
    if name.endswith(".js"):
        return Markup(text.replace("</script", "<\\/script").replace("<!--", "<\\!--"))
    if "</style" in text:
        raise ValueError(f"{name} has </style, which would end its element")
    return Markup(text)


@cache
def vega() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script. vl-convert takes seconds to join them, so the result is cached."""
    path = CACHE / f"vega-{metadata.version('vl-convert-python')}.js"
    if path.is_file():
        return _whole(path.read_text(encoding="utf-8"), path.name)
    from vl_convert import javascript_bundle

    text = javascript_bundle()  # type: ignore[call-arg]  # its stub knows no default
    own = path.with_name(f"{path.name}.{os.getpid()}")  # several processes may write it
    with suppress(OSError):  # then the next process joins them again
        with shards.writing(own) as temporary:
            temporary.write_text(text, encoding="utf-8")
        os.replace(own, path)
    return _whole(text, path.name)


def policy(scripts: list[Markup]) -> str:
    """The Content-Security-Policy of a page with these scripts inside: nothing is fetched, nothing else runs."""
    hashes = " ".join(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )
