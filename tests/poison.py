"""Poisoned files, names and texts, made here: what someone might send to a machine that trains on it.

Each case is a command line as a user would give it, in a folder that `make` has spoilt. What comes of it is judged in
tests/pipeline/test_poison.py: one line and status 2, or an ordinary end; never a traceback, a hang, or a
file outside the run.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.sums import SUMS
from pipeline.share.files import PACKED

ESC, CLEAR, TITLE = "\x1b", "\x1b[2J\x1b[H", "\x1b]0;owned\x07"
LINK = "\x1b]8;;http://evil.example\x07click\x1b]8;;\x07"
BIDI, WIDTHLESS = "\u202egnp.exe\u2066\u2069\u200f", "pay\u200bpal\u2060\ufeff\u00ad"
MARKUP = "[/bold][link=http://evil.example]x[/link] [red"
HTML = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"

# what models and data files write; each goes through every command that shows a text
TEXTS = {
    "html": HTML, "svg": "<svg onload=alert(1)>", "entity": "&lt;script&gt;&#x3c;script>",
        "template": "{{7*7}}{% raw %}",
    "formula": r"$\href{javascript:alert(1)}{x}$ \unicode{x3c}", "css": "</style><style>*{display:none}",
    "comment": "<!--", "json": '"}]}</script>', "clear": CLEAR, "title": TITLE, "link": LINK, "c1": "\x9b2J\x90q\x9c",
    "bell": "\x07\x08\x08\x08", "return": "harmless\rerror: all is lost", "delete": "\x7f\x7f", "bidi": BIDI,
    "bidi spread": "\u202d\u2067\u061c" + "a\u202e" * 50, "widthless": WIDTHLESS,
        "lines": "a\u2028b\u2029c\x85d\x0be\x0cf",
    "tags": "\U000e0041\U000e0042", "marks": "e" + "\u0301" * 500, "markup": MARKUP, "csv": '=cmd|" /C calc"!A0,"\n',
    "table": "| a | b |\n|---|---|", "latex": r"\input{/etc/passwd}\write18{id}", "percent": "%s%n%x{0}{1.__class__}",
    "nothing": "\u200b\u2060\u200e", "long": "word " * 20_000,
        "wide": "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 40,
    "deep": "(" * 3000 + ")" * 3000, "interlinear": "\ufff9a\ufffab\ufffb", "private": "\ue000\U0010fffd\ufdd0",
}  # fmt: skip

# what models state as an answer, for the grader
ANSWERS = {
    "tower": "10**10**10", "tower in LaTeX": "10^{10^{10}}", "nines": "9^{9^{9^{9}}}", "factorial": "100000000!",
    "factorials": "((10!)!)!", "factorial of a power": "(10^9)!", "power of two": "2^{10^{11}}",
    "binomial": r"\binom{10^9}{5\cdot 10^8}", "sum": r"\sum_{n=1}^{10^{12}} n^n", "product": r"\prod_{n=1}^{10^9} n",
    "integral": r"\int_0^1 e^{\sin(x^x)} \tan(x^{x^x}) dx", "limit": r"\lim_{x\to 0} x^{x^{x^{x}}}",
    "roots": "x^{97}+x^{89}-x^{13}+x^2-3=0", "nested roots": r"\sqrt{" * 80 + "2" + "}" * 80,
    "brackets": "(" * 240 + "1" + ")" * 240, "fractions": r"\frac{1}{" * 50 + "2" + "}" * 50,
    "many powers": "^".join(["9"] * 60), "many terms": "+".join(f"x_{{{i}}}^{i}" for i in range(60)),
    "matrix": r"\begin{pmatrix}" + r"\\".join("&".join(["x^{99}"] * 7) for _ in range(7)) + r"\end{pmatrix}",
    "call": "__import__('os').system('touch owned')", "lambda": "(lambda: exit())()", "evaluated": "exec('1')",
    "digits": "9" * 450, "logarithms": r"\log " * 60 + "2", "product of powers": "(1+x)^{9999}(1-y)^{9999}",
    "modulus": r"7^{7^{7^{7}}} \mod 10", "equation": "x = " * 60 + "1", "set": r"\{" + ",".join(map(str,
        range(150))) + r"\}",
    "megabyte": "1+" * 500_000 + "1", "megabyte of roots": r"\sqrt{" * 150_000, "control": f"4{CLEAR}2",
}  # fmt: skip

NAMES = (
    "..", "../out", "../../etc/cron.d/x", "/tmp/out", "a/../../b", "a\\..\\b", ".hidden", "-rf", "a b", "~root",
        "$(id)",
    "a\nb", f"a{CLEAR}", f"a{BIDI}", "con.", "n" * 300, "", "a\0b".replace("\0", "\u2400"), "round=1/x",
        "\uff0e\uff0e/x",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A command line, the folder that it is given in, and a word of the one line that it must end with; "" where it
    may end well."""

    name: str
    arguments: tuple[str, ...]  # module, and what it is given
    make: Callable[[Path], object]  # spoils the working folder
    word: str


def nothing(root: Path) -> None:
    """Leave the folder as it is."""


GENERATE = ("generate", "--run", "p", "--round", "1", "--config", "tiny.toml")


# --- files of questions ----------------------------------------------------------------------------------------------


def data_file(name: str, content: bytes | Callable[[Path], object], word: str, *, end: str = "train.jsonl") -> Case:
    """A file of questions that is refused before a model is loaded."""

    def make(root: Path) -> None:
        path = root / end
        path.write_bytes(content) if isinstance(content, bytes) else content(path)

    return Case(f"questions: {name}", (*GENERATE, "--set", f"prompts.source={json.dumps(end)}"), make, word)


def long_line(path: Path) -> None:
    """One line of 1 GiB, of which the disk holds a few bytes."""
    with path.open("wb") as file:
        file.write(b'{"question": "')
        file.truncate(2**30)


def bomb(path: Path) -> None:
    """A line of 256 MiB in 256 KiB."""
    with gzip.open(path, "wb") as file:
        for _ in range(256):
            file.write(b"a" * 2**20)


def rows_bomb(path: Path) -> None:
    """A value of 2 MB that stands in 100,000 rows: 200 GB in some KB."""
    numbers = pa.array([0] * 100_000, pa.int32())
    pq.write_table(pa.table({"question": pa.DictionaryArray.from_arrays(numbers, ["x" * 2_000_000])}), path)


def plain_rows_bomb(path: Path) -> None:
    """The same without Arrow's note that it is one value."""
    schema = pa.schema([("question", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd", store_schema=False) as writer:
        for _ in range(12):
            writer.write_table(pa.table({"question": ["x" * 1_000_000] * 100}))


def counted_bomb(path: Path) -> None:
    """A row group of 50 million numbers."""
    pq.write_table(pa.table({"question": pa.repeat(pa.scalar(0, pa.int8()), 50_000_000)}), path, compression="zstd")


def damaged(size: int, at: int, byte: int) -> Callable[[Path], object]:
    """A Parquet file of so many bytes of its beginning (0: all), one of them changed."""

    def make(path: Path) -> None:
        pq.write_table(pa.table({"question": [f"q{i}" for i in range(1000)]}), path)
        content = bytearray(path.read_bytes())
        content[at] ^= byte
        path.write_bytes(content[: size or len(content)])

    return make


def in_place_of(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Something else where the file was."""

    def change(path: Path) -> None:
        path.unlink(missing_ok=True)
        make(path)

    return change


def folder_with(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """A folder with something in it."""

    def change(path: Path) -> None:
        path.mkdir()
        make(path)

    return change


DEEP = 100_000
DATA = [
    data_file("nested lists", b'{"question": ' + b"[" * DEEP + b"]" * DEEP + b"}\n", "line 1"),
    data_file("nested objects", b'{"question": "q", "x": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}\n", "line 1"),
    data_file("an open bracket", b"[" * DEEP, "line 1"),
    data_file("a line of 1 GiB", long_line, "longer than 16 MiB"),
    data_file("a line of 1 GiB, CSV", long_line, "longer than 16 MiB", end="train.csv"),
    data_file("an open quote", b'question\n"' + b"abc\n" * 5_000_000, "a row is longer than 16 MiB; check the quotes",
        end="train.csv"),
    data_file("200,000 columns", b",".join(b"c%d" % i for i in range(200_000)) + b"\n1\n", "more", end="train.csv"),
    data_file("200,000 cells", b"question\n" + b"," * 200_000, "cells", end="train.csv"),
    data_file("200,000 keys, one twice", json.dumps({f"k{i}": 1 for i in range(200_000)}).encode()[:-1] + b',"k7":1}',
        "k7"),
    data_file("a gzip bomb", bomb, "longer than 16 MiB", end="train.jsonl.gz"),
    data_file("half a gzip", gzip.compress(b'{"question": "q"}\n' * 1000)[:60], "cannot be read", end="train.jsonl.gz"),
    data_file("no gzip", b"\x1f\x8bnonsense", "cannot be read", end="train.jsonl.gz"),
    data_file("no zstd", b"\x28\xb5\x2f\xfdnonsense", "cannot be read", end="train.jsonl.zst"),
    data_file("NUL", b'{"question": "a\0b"}\n', "NUL"),
    data_file("an escaped NUL", b'{"question": "a\\u0000b"}\n', "NUL"),
    data_file("half a character", b'{"question": "\\ud800"}\n', "surrogate"),
    data_file("UTF-16", '{"question": "q"}\n'.encode("utf-16"), "UTF-16"),
    data_file("bytes", bytes(range(128, 256)), "UTF-8"),
    data_file("an endless number", b'{"question": {"a": 1' + b"0" * 100_000 + b"}}", "expected text"),
    data_file("escapes for a column", f'{{"{CLEAR}{TITLE}{BIDI}": 1}}'.replace(ESC, "\\u001b").replace("\x07",
        "\\u0007").encode(),
              "no column"),
    data_file("escapes for CSV columns", f"{CLEAR},{BIDI},{MARKUP}\n1,2,3\n".encode(), "no column", end="train.csv"),
    data_file("empty", b"", "empty"),
    data_file("a dictionary bomb", rows_bomb, "GiB", end="train.parquet"),
    data_file("a bomb of values", plain_rows_bomb, "GiB", end="train.parquet"),
    data_file("a bomb of rows", counted_bomb, "GiB", end="train.parquet"),
    data_file("half a Parquet file", damaged(600, 0, 0), "cannot be read", end="train.parquet"),
    data_file("a changed footer", damaged(0, -20, 255), "", end="train.parquet"),
    data_file("a changed length", damaged(0, -6, 127), "cannot be read", end="train.parquet"),
    data_file("a Parquet of letters", b"PAR1" + b"a" * 100 + b"PAR1", "cannot be read", end="train.parquet"),
    data_file("a fifo", in_place_of(os.mkfifo), "ordinary file"),
    data_file("a link to nothing", in_place_of(lambda path: path.symlink_to("gone")), "link to nothing"),
    data_file("a folder in itself", folder_with(lambda path: (path / "a").symlink_to(".")), "no files", end="d"),
    data_file("a name with escapes", folder_with(lambda path: (path / f"a{CLEAR}{BIDI}.jsonl").touch()), "printed",
        end="d"),
    data_file("a name with markup", folder_with(lambda path: (path / "[bold].jsonl").touch()), "empty", end="d"),
]  # fmt: skip


# --- names and configs -----------------------------------------------------------------------------------------------


def config(name: str, word: str, *settings: str) -> Case:
    """A key that is set to what it must not be."""
    return Case(f"config: {name}", (*GENERATE, *(each for s in settings for each in ("--set", s))), nothing, word)


def toml(name: str, content: bytes, word: str) -> Case:
    """A config file."""
    return Case(f"config: {name}", GENERATE, lambda root: (root / "tiny.toml").write_bytes(content), word)


CONFIGS = [
    config("a peer outside", "peers.0.name", 'peers.0.name="../../out"'),
    config("a peer with an escape", "peers.0.name", 'peers.0.name="a\\u001b[2J"'),
    config("a peer that turns", "peers.0.name", 'peers.0.name="a\\u202Eb"'),
    config("a benchmark outside", "benchmarks.0.name", 'benchmarks.0.name="/etc/x"'),
    config("a benchmark of dots", "benchmarks.0.name", 'benchmarks.0.name=".."'),
    config("a key with an escape", "unknown key", f"run.{CLEAR}=1"),
    config("a function outside", "answers", 'prompts.answers="../../os:system"'),
    config("a function of Python's", "answers", 'prompts.answers="os:system"'),
    config("a model with an escape", "does not exist", f"peers.0.model={json.dumps('./a' + CLEAR + MARKUP)}"),
    config("a source with markup", "cannot be read", f"prompts.source={json.dumps('./' + MARKUP + '.jsonl')}"),
    config("a source that is no URL", "cannot be read", 'prompts.source="nonsense://x/y.jsonl"'),
    config("a folder of the system", "", 'prompts.source="/proc/self/fd/*.jsonl"'),
    toml("deep", b"a = " + b"[" * DEEP, "not valid TOML"),
    toml("deep keys", b"a." * 5000 + b"b = 1", "too deep"),
    toml("an endless number", b"a = 1" + b"0" * 100_000, ""),
    toml("bytes", bytes(range(256)), "not valid TOML"),
    toml("escapes", f'"{CLEAR}{BIDI}" = 1'.replace(ESC, "\\u001b").encode(), "unknown key"),
]
COMMANDS = (  # a command that takes the name of a run, and what else it needs
    ("generate", "--run", "{}", "--round", "1", "--config", "tiny.toml"), ("evaluate.report", "--run", "{}"),
    ("pipeline.status", "--run", "{}"), ("pipeline.show", "--", "{}"), ("pipeline.table", "--", "{}"),
    ("pipeline.labels", "--run", "{}"), ("pipeline.share", "verify", "--run", "{}"),
    ("pipeline.share", "pack", "--run", "{}"), ("pipeline.share", "export", "--run", "{}"),
    ("pipeline.fork", "--run", "demo", "--round", "1", "--new", "{}"),
    ("pipeline.fork", "--run", "{}", "--round", "1", "--new", "x"), ("evaluate.compare", "--runs", "{}"),
)  # fmt: skip


def names() -> list[Case]:
    """Each name with a command, in turns; the worst with all."""
    found = []
    for number, name in enumerate(NAMES):
        chosen = COMMANDS if name in ("../out", f"a{CLEAR}") else (COMMANDS[number % len(COMMANDS)],)
        for command in chosen:
            given = tuple(part.replace("{}", name) for part in command)
            found.append(Case(f"name {name[:20]!r} for {' '.join(command)}", given, nothing, " "))
    return found


# --- the folder of a run ---------------------------------------------------------------------------------------------


def spoilt(name: str, make: Callable[[Path], object], word: str, *commands: tuple[str, ...]) -> list[Case]:
    """A finished run (tests/fixed_run.py) that someone has changed, and commands that look at it."""
    chosen = commands or (("pipeline.share", "verify", "--run", "demo"),)
    return [Case(f"run: {name}: {' '.join(c[:2])}", c, lambda root: make(root / "runs" / "demo"), word) for c in chosen]


def to_outside(path: str) -> Callable[[Path], object]:
    """Put a link to the folder outside, or to a file there, in the place of what is there."""

    def make(run: Path) -> None:
        link, outside = run / path, run.parent.parent.parent / "outside"
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_dir():
            link.rename(link.with_name("moved"))
        link.unlink(missing_ok=True)
        link.symlink_to(outside if "." not in link.name else outside / "secret.txt")

    return make


def write(path: str, content: str | bytes) -> Callable[[Path], object]:
    """Write a file of the run anew."""

    def make(run: Path) -> None:
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


READERS = (
    ("pipeline.show", "demo"), ("evaluate.report", "--run", "demo"), ("pipeline.share", "pack", "--run", "demo"),
    ("pipeline.labels", "--run", "demo"), ("generate", "--run", "demo", "--round", "3"),
)  # fmt: skip
STATUS = ("pipeline.status", "--run", "demo")
DEEP_JSON = "[" * DEEP + "]" * DEEP
RUN = [
    *spoilt("a round that leads out", to_outside("round=3"), "is a link to", *READERS),
    *spoilt("chains that lead out", to_outside("round=1/chains"), "is a link to", *READERS[:2], STATUS),
    *spoilt("a page that leads out", to_outside("report.html"), "is a link to", READERS[1], READERS[2]),
    *spoilt("a lock that leads out", to_outside(".lock"), "is a link to", READERS[4], ("pipeline.share", "verify",
        "--run", "demo")),
    *spoilt("an export that leads out", to_outside("export"), "is a link to", ("pipeline.share", "export", "--run",
        "demo")),
    *spoilt("checkpoints that lead out", to_outside(".checkpoints"), "is a link to", READERS[4]),
    *spoilt("logs that lead out", to_outside("round=3/logs/generate.log"), "is a link to", READERS[4]),
    *spoilt("metrics that lead out", to_outside("round=1/metrics.parquet"), "is a link to", ("pipeline.table", "demo")),
    *spoilt("a config that leads out", to_outside("config.json"), "is a link to", STATUS),
    *spoilt("a shard that leads out", to_outside("round=2/scores/part-00000.parquet"), "is a link to"),
    *spoilt("a pipe", lambda run: os.mkfifo(run / "round=1" / "cross.parquet"), "is a pipe", READERS[1], STATUS),
    *spoilt("a round of words", lambda run: (run / "round=x").mkdir(), "is none", READERS[0], STATUS),
    *spoilt("a round of digits", lambda run: (run / f"round={'9' * 30}").mkdir(), "is none", READERS[1], STATUS),
    *spoilt("a deep config", write("config.json", DEEP_JSON), "cannot be read", READERS[0], STATUS),
    *spoilt("a deep manifest", write("round=1/chains/_SUCCESS.json", DEEP_JSON), "", READERS[0], STATUS),
    *spoilt("a manifest of outside", write("round=1/chains/_SUCCESS.json",
        '{"files": {"../../../../../outside/secret.txt": ""}}'), ""),
    *spoilt("a deep record", write("round=3/logs/generate.json", DEEP_JSON), "", STATUS),
    *spoilt("a record of words", write("round=3/logs/generate.json",
        '{"state": "running", "progress": 5, "last_round": "x"}'), "", STATUS),
    *spoilt("a record of escapes", write("round=3/logs/generate.json", json.dumps({"state": "failed",
        "reason": CLEAR + BIDI})), "", STATUS),
    *spoilt("a record of a far round", write("round=3/logs/generate.json",
        '{"state": "failed", "last_round": 999999999999}'), "", STATUS),
    *spoilt("deep sums", write("sums.json", DEEP_JSON), ""),
    *spoilt("sums of outside", write(SUMS, '{"../../../outside/secret.txt": "0"}'), ""),
    *spoilt("a shard of letters", write("round=1/chains/part-00000.parquet", b"PAR1" + b"x" * 99 + b"PAR1"), "",
        READERS[0]),
    *spoilt("no shard", lambda run: (run / "round=1/chains/part-00000.parquet").unlink(), "", READERS[0]),
    *spoilt("a shard of a folder", lambda run: (run / "round=1/scores/part-00001.parquet").mkdir(), "", READERS[0]),
]  # fmt: skip


# --- archives --------------------------------------------------------------------------------------------------------


def member(
    name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    """A member of an archive."""
    header = tarfile.TarInfo(name)
    header.type, header.linkname, header.size = kind, link, len(content)
    return header, content


def listed(*names: str, content: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    """A list that knows these files."""
    files = {name: sha256(content).hexdigest() for name in names}
    return member("t/" + PACKED, json.dumps({"run": "t", "format": 1, "files": files}).encode())


def archive(name: str, word: str, *members: tuple[tarfile.TarInfo, bytes], raw: bytes | None = None) -> list[Case]:
    """An archive; it is verified and unpacked."""

    def make(root: Path) -> None:
        if raw is not None:
            (root / "a.tar.gz").write_bytes(raw)
            return
        with tarfile.open(root / "a.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as tar:
            for header, content in members:
                tar.addfile(header, io.BytesIO(content))

    commands = (("pipeline.share", "unpack", "--file", "a.tar.gz"), ("pipeline.share", "verify", "--file", "a.tar.gz"))
    return [Case(f"archive: {name}: {c[1]}", c, make, word) for c in commands]


def _zeros(size: int) -> bytes:
    """A tar whose one member has so many bytes, of which few come."""
    header = tarfile.TarInfo("t/report.html")
    header.size = size
    return gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(2**21))


def _long_header() -> bytes:
    """A tar that begins with a header of 1 GiB, which tarfile would read at once."""
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 2**30
    return gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) + bytes(2**20))


ARCHIVES = [
    *archive("a file above", "no plain file", member("../out"), listed("out")),
    *archive("a file above, within", "no plain file", member("t/../../out"), listed("../out")),
    *archive("an absolute name", "no plain file", member("/tmp/out"), listed("out")),
    *archive("a symbolic link", "no plain file", member("t/a", b"", tarfile.SYMTYPE, "/etc/passwd"), listed("a")),
    *archive("a link up", "no plain file", member("t/a", b"", tarfile.SYMTYPE, "../.."), member("t/a/out"),
        listed("a/out")),
    *archive("a hard link", "no plain file", member("t/a", b"", tarfile.LNKTYPE, "../../../outside/secret.txt"),
        listed("a")),
    *archive("a device", "no plain file", member("t/a", b"", tarfile.CHRTYPE), listed("a")),
    *archive("a pipe", "no plain file", member("t/a", b"", tarfile.FIFOTYPE), listed("a")),
    *archive("a folder", "no plain file", member("t/a", b"", tarfile.DIRTYPE), listed("a")),
    *archive("a checkpoint", "no plain file", member("t/.checkpoints/round=1/a/x.bin"),
        listed(".checkpoints/round=1/a/x.bin")),
    *archive("a name of escapes", "no archive", member(f"t/{CLEAR}{BIDI}")),
    *archive("no list", "no archive of a run", member("t/config.json")),
    *archive("two runs", "no archive of a run", listed("a"), member("t/a"), member("u/b")),
    *archive("a file twice", "twice", listed("a"), member("t/a"), member("t/a")),
    *archive("another content", "not as they were written", listed("a"), member("t/a", b"y")),
    *archive("a deep list", "not as they were written", member("t/" + PACKED, DEEP_JSON.encode())),
    *archive("a list of outside", "not as they were written", listed("../../out"), member("t/a")),
    *archive("a huge list", "list", member("t/" + PACKED, bytes(2**26 + 1))),
    *archive("a bomb", "100 times", raw=_zeros(2**33)),
    *archive("a bomb of a header", "100 times", raw=_long_header()),
    *archive("half of it", "cannot be read", raw=gzip.compress(os.urandom(4096))[:2000]),
    *archive("letters", "cannot be read", raw=b"nonsense"),
    *archive("nothing", "cannot be read", raw=b""),
]  # fmt: skip
ARCHIVES += [
    Case(f"archive: for {name!r}", ("pipeline.share", "unpack", "--file", "a.tar.gz", "--run", name), ok.make, "--run")
    for name in ("../out", "/tmp/out", f"a{CLEAR}") for ok in archive("sound", "", listed("a"), member("t/a"))[:1]
]  # fmt: skip


# --- models ----------------------------------------------------------------------------------------------------------

PLANT = "raise SystemExit(open('owned', 'w').write('x'))\n"  # what no file of a model may run


def model(name: str, make: Callable[[Path], object], word: str) -> Case:
    """A model directory, models/chatty, that someone has changed."""
    arguments = (*GENERATE, "--set", 'peers.0.model="./models/chatty"')
    return Case(f"model: {name}", arguments, lambda root: make(root / "models" / "chatty"), word)


def edited(file: str, **changes: object) -> Callable[[Path], object]:
    """With other values in a file of JSON."""

    def make(folder: Path) -> None:
        path = folder / file
        found = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**found, **changes}))

    return make


def instead(file: str, content: bytes, *gone: str) -> Callable[[Path], object]:
    """With a file more, or another one, and others gone."""

    def make(folder: Path) -> None:
        for name in gone:
            (folder / name).unlink()
        (folder / file).write_bytes(content)

    return make


def header(content: bytes, length: int | None = None) -> bytes:
    """A safetensors file of this header."""
    return struct.pack("<Q", len(content) if length is None else length) + content + bytes(64)


def code(folder: Path) -> None:
    """A model of an unknown kind that brings its code."""
    edited(
        "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    )(folder)
    edited("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})(folder)
    (folder / "evil.py").write_text(PLANT)


def template(name: str, text: str, word: str = "chat template") -> Case:
    """A chat template."""
    return model(f"a template that {name}", instead("chat_template.jinja", text.encode()), word)


def gguf(name: str, content: bytes) -> Case:
    """A GGUF file."""
    make = lambda root: (root / "m.gguf").write_bytes(content)  # noqa: E731
    return Case(f"model: GGUF, {name}", (*GENERATE, "--set", 'peers.0.model="m.gguf"'), make, "GGUF")


SAFE, PICKLE = "model.safetensors", b"\x80\x04cos\nsystem\n(S'touch owned'\ntR."
MODELS = [
    model("pickled, .bin", instead("pytorch_model.bin", PICKLE, SAFE), "only pickled weights (pytorch_model.bin)"),
    model("pickled, .pt", instead("model.pt", PICKLE, SAFE), "only pickled weights (model.pt)"),
    model("pickled, .ckpt", instead("last.ckpt", PICKLE, SAFE), "only pickled weights (last.ckpt)"),
    model("a pickle called safetensors", instead(SAFE, PICKLE), "damaged"),
    model("a header of 2^60 bytes", instead(SAFE, header(b"{}", 2**60)), "damaged"),
    model("a deep header", instead(SAFE, header(DEEP_JSON.encode())), "damaged"),
    model("offsets beyond", instead(SAFE,
        header(b'{"a":{"dtype":"F32","shape":[99999999],"data_offsets":[0,399999996]}}')), "damaged"),
    model("a shape beyond", instead(SAFE,
        header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,16],"data_offsets":[0,64]}}')), "damaged"),
    model("an index that leads out", instead("model.safetensors.index.json",
        b'{"weight_map": {"a": "../../../outside/secret.txt"}}'), "index"),
    model("a deep config", instead("config.json", DEEP_JSON.encode()), "cannot be read"),
    model("a config of bytes", instead("config.json", bytes(range(256))), "cannot be read"),
    model("10^9 layers", edited("config.json", num_hidden_layers=10**9), "at most 2000"),
    model("10^9 experts", edited("config.json", num_experts=10**9), "at most 2000"),
    model("an endless context", edited("config.json", max_position_embeddings="1" * 50), "max_position_embeddings"),
    model("code of its own", code, "never run"),
    model("an architecture of escapes", edited("config.json", architectures=[CLEAR + BIDI]), "expected a"),
    model("a tokenizer of bytes", instead("tokenizer.json", bytes(range(256))), "cannot be read"),
    model("a deep tokenizer", instead("tokenizer.json", DEEP_JSON.encode()), "cannot be read"),
    model("an adapter of pickles", lambda f: (f / "adapter_config.json").write_text("{}"), "is an adapter"),
    template("does not end",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
        "{% endfor %}{% endfor %}{% endfor %}"),
    template("calls itself", "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}"),
    template("fills the memory", "{{ 'a' * 10**11 }}"),
    template("doubles",
        "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"),
    template("leaves the sandbox", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    template("reads a file", "{% include '/etc/passwd' %}"),
    template("is none", "{% for %}{{"),
    template("raises escapes", "{{ raise_exception('" + CLEAR + BIDI + "') }}"),
    gguf("no header", b"GGUF"),
    gguf("2^60 tensors", b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0)),
    gguf("2^60 keys", b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60)),
    gguf("a string of 2^60 bytes", b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**60) + b"a"),
    gguf("nested lists", b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9)
         + struct.pack("<IQ", 9, 1) * 5000),
    gguf("a list of 2^60 strings", b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q",
        1) + b"a" + struct.pack("<I", 9)
         + struct.pack("<IQ", 8, 2**60)),
    Case("model: outside a package", (*GENERATE, "--set", 'peers.0.model="package:os/../../x.gguf"'), nothing,
        "package"),
]  # fmt: skip

CASES = [*DATA, *CONFIGS, *names(), *RUN, *ARCHIVES, *MODELS]
