"""Thoughts: where they end, what is shown, scored and trained of a response that has one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from data.answers.thoughts import hidden, without_thoughts
from data.config.load import differences, parse_config
from data.config.sections import PeerSection, TemplateSection
from data.errors import UserError
from evaluate.verifier import verdict_score
from peers.engines.protocol import Completion
from peers.prompts import PeerPrompts, token_identity
from tests.unit.test_controls import TEMPLATES, tokenizer_json


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("", ""),
        ("It is 7.", "It is 7."),
        ("<think>\n3 + 4\n</think>\n\nIt is 7.", "It is 7."),
        ("3 + 4\n</think>\n\nIt is 7.", "It is 7."),  # opened by the prompt, as other programs store it
        ("<think></think>It is 7.", "It is 7."),
        ("<think>a</think> No. <think>b</think> It is 7.", "No.  It is 7."),
        ("It is 7. <think>Is it?", "It is 7."),
        ("<thinking>3 + 4</thinking> It is 7.", "It is 7."),
        ("<think>\n3 + 4 is", ""),  # cut off
        ("\n <think>3 + 4 is", ""),
        ("<think>7</think>", ""),
    ],
)
def test_what_a_response_says_beside_its_thoughts(text: str, rest: str) -> None:
    assert without_thoughts(text) == rest
    assert len(hidden(text)) == len(text) and hidden(text).strip().split() == rest.split()


THOUGHT = "<think>\n3 + 4 is 7.\n</think>\n\nIt is 7."
EMPTY = {  # template: (its prompt's end, what makes an empty thought of that)
    "r1": ("<think>\n", "\n</think>\n\n"),
    "qwen3thinking": ("<think>\n", "\n</think>\n\n"),
    "qwen3": ("assistant\n", "<think>\n\n</think>\n\n"),
    "smollm3": ("assistant\n", "<think>\n\n</think>\n"),
    "chatml": ("assistant\n", ""),
}


def peer_of(template: str, special: bool = False, plain: bool = False, **keys: Any) -> PeerPrompts:
    """Prompts of a peer with a template, whose tokenizer may call the marks of thoughts special."""
    keys |= {"template": "plain"} if plain else {}
    about = json.loads(tokenizer_json("bytes"))
    for token in about["added_tokens"]:
        token["special"] = token["special"] or special
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(about)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    named = "{" not in template
    text = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8") if named else template
    tokenizer.chat_template = text.strip()
    return PeerPrompts(tokenizer, PeerSection(name="p", model="m", **keys), TemplateSection(instruction="Solve."))


def spelt(prompts: PeerPrompts, ids: list[int]) -> str:
    """Tokens as text, special ones too."""
    return str(prompts.tokenizer.decode(ids, skip_special_tokens=False))


def ids_of(prompts: PeerPrompts, *names: str) -> list[Any]:
    """Ids of added tokens."""
    tokenizer: Any = prompts.tokenizer
    return [tokenizer.convert_tokens_to_ids(name) for name in names]


@pytest.mark.parametrize("template", EMPTY)
def test_a_verifier_answers_after_an_empty_thought(template: str) -> None:
    prompts, (end, closing) = peer_of(template), EMPTY[template]
    assert spelt(prompts, prompts.solve("1 + 1?")).endswith(end)
    assert spelt(prompts, prompts.verify("1 + 1?", "2")).endswith(end + closing)
    assert (prompts.yes_id, prompts.no_id) == tuple(prompts.encode_response(word)[0] for word in ("Yes", "No"))
    (critique,) = prompts.all_of("verify_cot", [("1 + 1?", ("2",))])
    assert spelt(prompts, critique).endswith(end)  # there it may think


def test_a_critique_is_read_after_its_thought() -> None:
    for text, score in (("<think>Yes?</think>No", -1.0), ("<think>\nIt is right, yes", 0.0), ("So: Yes", 1.0)):
        assert verdict_score(Completion([1], text, 0.0, "stop")) == score


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("template", ["r1", "qwen3thinking", "qwen3"])
def test_a_response_is_stored_with_its_whole_thought(template: str, special: bool) -> None:
    prompts = peer_of(template, special, train_thoughts=True)
    (ids,) = prompts.encode_responses([("3 + 4?", THOUGHT)])
    assert ids is not None and prompts.text(ids) == THOUGHT
    opens, closes = ids_of(prompts, "<think>", "</think>")
    assert (ids.count(opens), ids.count(closes)) == (0 if prompts.turn.opening else 1, 1)
    cut = prompts.text(ids[: ids.index(closes)])
    assert cut == "<think>\n3 + 4 is 7." and without_thoughts(cut) == ""
    assert prompts.text([]) == ""


def test_what_is_shown_has_no_thought_unless_that_is_asked_for() -> None:
    quiet, open_ = peer_of("r1"), peer_of("r1", show_thoughts=True)
    for kind in ("review", "synthesis", "solve", "verify", "verify_cot"):
        (found,), (bare,) = (quiet.all_of(kind, [("Q", (text,))]) for text in (THOUGHT, "It is 7."))
        assert found == bare
        (whole,) = open_.all_of(kind, [("Q", (THOUGHT,))])
        assert "3 + 4 is 7." in spelt(open_, whole)
        # shown, it is text: the prompt's own thought is not closed by it
        mark = ids_of(open_, "</think>")[0]
        assert whole.count(mark) == (1 if kind == "verify" else 0)


@pytest.mark.parametrize("template", EMPTY)
def test_scoring_and_training_follow_what_is_trained(template: str) -> None:
    """Without its thought an answer stands after an empty one; with it, after the prompt as it is when generating."""
    end, closing = EMPTY[template]
    quiet, whole = peer_of(template), peer_of(template, train_thoughts=True)
    assert (quiet.learnt(THOUGHT), whole.learnt(THOUGHT)) == ("It is 7.", THOUGHT)
    for prompts in (quiet, whole):
        text = prompts.learnt(THOUGHT)
        (prompt,) = prompts.all_of("solve", [("Q", ())], [text])
        (target,) = prompts.encode_responses([("Q", text)])
        assert target is not None
        said = spelt(prompts, [*prompt, *target])
        assert said.endswith(f"{end}{closing}It is 7." if prompts is quiet else end.removesuffix("<think>\n") + THOUGHT)
        if prompts is whole:
            assert prompt == prompts.solve("Q")


def test_a_thought_begun_otherwise_by_another_peer_is_taken_as_it_is() -> None:
    prompts = peer_of("r1", train_thoughts=True)
    found = prompts.encode_responses([("Q", "<think>3 + 4</think>It is 7."), ("Q", "<think>\n3 + 4</think>It is 7.")])
    assert found[0] == found[1]


def test_token_ids_are_not_exchanged_between_peers_that_begin_responses_differently() -> None:
    assert token_identity(peer_of("qwen3")) != token_identity(peer_of("qwen3thinking"))


# --- what the template is told --------------------------------------------------------------------------------


def test_arguments_reach_the_template() -> None:
    quiet = peer_of("qwen3", template_arguments={"enable_thinking": False})
    assert spelt(quiet, quiet.solve("Q")).endswith("assistant\n<think>\n\n</think>\n\n")
    assert (quiet.turn.opening, quiet.turn.closing) == ("", "")
    assert quiet.verify("Q", "2") == peer_of("qwen3").verify("Q", "2")


@pytest.mark.parametrize(
    ("template", "arguments", "told"),
    [
        ("qwen3", {"enable_thinkin": False}, "'enable_thinkin', which its chat template does not use"),
        ("chatml", {"enable_thinking": False}, "'enable_thinking', which its chat template does not use"),
        ("chatml", {"messages": "x"}, "'messages', which PST sets itself"),
        ("chatml", {"add_generation_prompt": False}, "which PST sets itself"),
    ],
)
def test_arguments_that_change_nothing_are_refused(template: str, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as stop:
        peer_of(template, template_arguments=arguments)
    assert "\n" not in str(stop.value) and str(stop.value).startswith("peer p: ")
    with pytest.raises(UserError, match="has no chat template"):
        peer_of(CHATML + ENDS, plain=True, template_arguments=arguments)


def test_arguments_in_a_config(tmp_path: Path) -> None:
    peer = {"name": "a", "model": "m", "template_arguments": {"enable_thinking": False}}
    raw = {"prompts": {"source": "a.jsonl"}, "peers": [peer, {"name": "b", "model": "m"}]}
    config = parse_config(raw, "x")
    assert config.peers[0].template_arguments == (("enable_thinking", False),)
    dumped = config.model_dump(mode="json")["peers"]
    assert dumped[0]["template_arguments"] == {"enable_thinking": False}
    assert not {"template_arguments", "show_thoughts", "train_thoughts"} & dumped[1].keys()  # of older runs
    assert parse_config(config.model_dump(mode="json"), "x") == config
    assert differences(config, parse_config(raw, "x", ["peers.0.template_arguments.enable_thinking=true"]))
    for wrong in ("x", ["a"], {"a": [1]}, {"a": None}):
        with pytest.raises(UserError, match=r"peers.0.template_arguments must be a table"):
            parse_config({**raw, "peers": [{**peer, "template_arguments": wrong}]}, "x")


CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
ENDS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def test_a_template_that_demands_a_system_turn_gets_an_empty_one() -> None:
    demand = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('a system turn comes first') }}{% endif %}"
    prompts = peer_of(demand + CHATML + ENDS)
    assert spelt(prompts, prompts.solve("Q")) == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nSolve.\n\nQuestion: Q<|im_end|>\n<|im_start|>assistant\n"
    )
    asks_more = demand.replace("%}{{ raise", "or not messages[0]['content'] %}{{ raise")
    with pytest.raises(UserError, match=r"cannot be applied to a question and its answer \(a system turn comes first"):
        peer_of(asks_more + CHATML + ENDS)


def test_a_template_that_refuses_a_system_turn_gets_none() -> None:
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    prompts = peer_of(refuse + CHATML + ENDS)
    assert prompts.solve("Q") == peer_of(CHATML + ENDS).solve("Q")
