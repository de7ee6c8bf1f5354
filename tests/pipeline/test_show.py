"""`python -m pipeline show`: one chain in the terminal, and the list of commands."""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from data import shards
from data.errors import UserError
from data.hashing import question_id
from data.run import Run, load_frozen
from data.schema import CHAINS
from data.visible import visible
from evaluate.page.chains import one_chain
from pipeline import __main__
from pipeline.show import chosen_chains, last_round, view
from tests import fixed_run
from tests.conftest import questions

HOSTILE = (
    "[bold]x[/bold] \x1b[31mred\x1b]8;;http://a.b\x07\r\x9b2J \u202eabc\u2066 </script> tab\there \x00\x7f\u2028end"
)


def opened(name: str = "demo") -> Run:
    return Run(name, load_frozen(name))


def text_of(id_: str, round_: int = 1, width: int = 100, name: str = "demo", terminal: bool = False) -> str:
    file = StringIO()
    console = Console(file=file, width=width, highlight=False, force_terminal=terminal, color_system=None)
    for part in view(one_chain(opened(name), round_, id_), name):
        console.print(part)
    return file.getvalue()


def id_of(i: int) -> str:
    return question_id(questions(i, 1)[0]["question"])


def with_chains(folder: Path, change: Any) -> None:
    """Write the chains anew with other rows."""
    rows = shards.read_rows(folder / "chains" / "part-00000.parquet", CHAINS)
    for row in rows:
        change(row)
    shutil.rmtree(folder / "chains")
    fixed_run.close(folder / "chains", "generate", 1, {"part-00000.parquet": (rows, CHAINS)})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return fixed_run.make(tmp_path)


def test_a_chain_is_told_from_question_to_weight(run: Path) -> None:
    text = text_of(id_of(9), round_=2)
    for line in (
        f"run demo, round 2, question {id_of(9)}",
        "    Tom has 9 pens and buys 3. How many?",
        "gold answer: 12",
        "[2] cyd, position 2: 12 (right); 6 tokens",
        "[3] ada, position 3: 14 (wrong); 6 tokens; the aggregate",
        "label: 14 (wrong): the answer of the aggregate",
        "text to train on, of ada [3]:",
        "cyd: weight 1.65; does not agree with the label",
        "    PMI -1.55 nats, -0.221 for each of 7 tokens: log p is -4.55 after its own response [2] and -3.00 without "
        "it",
        "ada: not trained on, since it wrote the aggregate itself; agrees with the label",
    ):
        assert line in text_of(id_of(9), round_=2, width=120).splitlines(), line
    assert max(map(len, text.splitlines())) <= 100


def test_an_unfinished_response_and_why_nothing_is_trained_on(run: Path) -> None:
    text = text_of(id_of(5), width=160)
    assert "no answer; 16 tokens; cut off at the token limit" in text
    assert "ben: not trained on, since its own response was cut off" in text


def test_narrow_terminals_wrap_and_nothing_is_lost(run: Path) -> None:
    wide, narrow = text_of(id_of(0)), text_of(id_of(0), width=30)
    assert max(map(len, narrow.splitlines())) <= 30
    assert "".join(narrow.split()) == "".join(wide.split())


def test_what_models_write_is_text(run: Path) -> None:
    def hostile(row: Any) -> None:
        row["response"], row["answer"] = HOSTILE, HOSTILE
        row["question"] = HOSTILE

    with_chains(run / "round=1", hostile)
    text = text_of(id_of(0), terminal=True)
    assert not [c for c in text.replace("\n", "") if ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066\u2028"]
    flat = " ".join(text.split())
    assert "[bold]x[/bold] ␛[31mred␛]8;;http://a.b␇␍<U+009B>2J <U+202E>abc<U+2066> </script> tab here ␀␡" in flat
    assert flat.count("[bold]x[/bold]") == 7  # the question, three responses, their answers


def test_a_line_of_100_kb_is_shown_whole(run: Path) -> None:
    with_chains(run / "round=1", lambda row: row.update(response="x" * 100_000))
    text = text_of(id_of(0))
    assert text.count("x") >= 300_000 and max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("text", "shown"), [("a\r\nb", "a\nb"), ("می\u200cخواهم", "می\u200cخواهم"), ("a\tb", "a    b")]
)
def test_ordinary_text_stays(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_round_that_is_only_generated(run: Path) -> None:
    shutil.rmtree(run / "round=1" / "scores")
    text = text_of(id_of(0))
    assert text.splitlines()[-1] == "round 1 is not scored yet: no label, no PMI, no weight"
    assert "(right)" in text or "(wrong)" in text


def test_without_gold_nothing_is_right_or_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fixed_run.make(tmp_path, gold=False)
    text = text_of(id_of(9))
    assert "gold" not in text and "right" not in text and "wrong" not in text and "label: 14: the answer" in text
    assert chosen_chains(opened(), 1, None, False, False, 2, None) == chosen_chains(
        opened(), 1, None, False, True, 2, None
    )
    with pytest.raises(UserError, match=r"evaluate\.gold_column"):
        chosen_chains(opened(), 1, None, True, False, 1, None)


def test_samples_and_responses_to_the_question_alone(run: Path) -> None:
    def alone(row: Any) -> None:
        row["role"] = "sample" if row["position"] > 1 else "solo"
        row["sample"] = row["position"] - 1 if row["position"] > 1 else None
        row["position"], row["is_aggregate"] = None, False

    with_chains(run / "round=1", alone)
    text = text_of(id_of(0))
    assert "[1] ben, asked alone: " in text and "[3] ada, sample 2: " in text and "; the aggregate\n" not in text


def test_the_worst_come_first_and_random_ones_by_their_seed(run: Path) -> None:
    worst = [chain["id"] for chain in chosen_chains(opened(), 1, None, True, False, 2, None)]
    assert (
        worst == [chain["id"] for chain in chosen_chains(opened(), 1, None, False, False, 2, None)] and len(worst) == 2
    )
    first, second = (max(row["weight"] or 0 for row in one_chain(opened(), 1, id_)["training"]) for id_ in worst)
    assert first >= second and all("(wrong): the answer of the aggregate" in text_of(id_) for id_ in worst)
    drawn = [[chain["id"] for chain in chosen_chains(opened(), 1, None, False, True, 5, seed)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_wrong_choices_are_one_line(run: Path) -> None:
    with pytest.raises(UserError, match="--prompt, --worst and --random each choose the questions"):
        chosen_chains(opened(), 1, "ab", True, False, 1, None)
    some = f"{id_of(0)}, {id_of(1)}"
    with pytest.raises(UserError, match=rf"prompt 'zz': no question has this id .* some ids are {some}"):
        one_chain(opened(), 1, "zz")
    with pytest.raises(UserError, match=r"round=9/chains is not finished: run `make generate RUN=demo ROUND=9` first"):
        one_chain(opened(), 9, "zz")
    assert one_chain(opened(), 1, id_of(3)[:10])["id"] == id_of(3)


def test_the_last_round_is_the_default(run: Path) -> None:
    assert last_round(opened()) == 2
    for round_ in (1, 2):
        shutil.rmtree(run / f"round={round_}" / "chains")
    with pytest.raises(UserError, match="has no chains yet: run `make generate RUN=demo ROUND=1` first"):
        last_round(opened())


def test_the_command_shows_so_many(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    __main__.main(["show", "demo", "--random", "3", "--round", "1"])
    assert capsys.readouterr().out.count("run demo, round 1, question ") == 3
    with pytest.raises(SystemExit):
        __main__.main(["show", "other"])
    assert capsys.readouterr().err.startswith("error: there is no run 'other'")


def test_every_command_of_the_list_is_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pipeline"])
    __main__.main([])
    listed = capsys.readouterr().out
    for name, (module, summary) in __main__.COMMANDS.items():
        assert f"\n  {name} " in listed and summary.split()[0] in listed
        app = import_module(module).app
        commands = app.registered_commands
        names = [each.name or each.callback.__name__ for each in commands]
        assert len(commands) == 1 or name in names, name


def test_an_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pipeline", "shwo"])
    with pytest.raises(SystemExit) as ended:
        __main__.main(["shwo"])
    assert ended.value.code == 2 and "No such command 'shwo'" in capsys.readouterr().err


def test_a_control_in_which_each_peer_has_its_own_aggregate(run: Path) -> None:
    with_chains(run / "round=1", lambda row: row.update(role="solo", position=None, is_aggregate=True))
    text = text_of(id_of(0))
    assert text.count("asked alone: ") == text.count("; the aggregate\n") == 3
