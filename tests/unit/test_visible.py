"""Texts from outside, as they are shown."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from rich.text import Text

from data import visible
from data.console import _Console
from data.visible import HIDDEN, JOINERS, MAX_ERROR, mask_controls, one_line


def test_every_hidden_character_is_shown() -> None:
    for code in range(0x110000):
        shown = visible.visible(chr(code))
        hidden = unicodedata.category(chr(code)) in HIDDEN and chr(code) not in f"\n{JOINERS}"
        assert (shown != chr(code)) == hidden, hex(code)


def test_an_error_is_one_line_of_bounded_length() -> None:
    assert one_line("a\nb\x1b[2J\u202ec") == "a␊b␛[2J<U+202E>c"
    assert len(one_line("x" * 10**6)) < MAX_ERROR + 50


def test_the_console_prints_no_order(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+", encoding="utf-8") as file:
        console = _Console(file=file, force_terminal=False, width=80)
        console.print("a\x1b[2Jb\u202ec", Text("d\x9be"), markup=False)
        assert (tmp_path / "out").read_text(encoding="utf-8") == "a␛[2Jb<U+202E>c d<U+009B>e\n"


def test_a_log_is_tamed_in_its_place(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    text = "a\x1b[2J\u202eb\x9b\t\rc é ü 漢\n" + "x" * (visible.BLOCK_BYTES - 30) + "\u202e\u2066\x07"
    log.write_bytes(text.encode())
    size = log.stat().st_size
    mask_controls(log)
    assert log.stat().st_size == size
    found = log.read_bytes().decode()
    assert found.startswith("a?[2J\ufffdb??\t\rc é ü 漢\n")
    assert found.endswith("x\ufffd\ufffd?")
