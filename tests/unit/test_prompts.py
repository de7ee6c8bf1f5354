"""Prompts, stops and the one re-encoding, on tokenizers with and without a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.config.sections import Example, PeerSection, TemplateSection
from data.errors import UserError
from peers.prompts import PeerPrompts
from peers.source import load_tokenizer
from tests.conftest import CHAT

QUESTION = "Tom has 3 pens and buys 4. How many?"
WORDING = TemplateSection(
    instruction="Solve.",
    review="Judge, then solve.",
    synthesis="Write the last word.",
    verify="Is it right?",
    verify_cot="Check it, then say Yes or No.",
    examples=(
        Example(question="1 + 1?", response="It is 2."),
        Example(question="2 + 2?", solutions=("5", "4"), response="It is 4."),
    ),
    verify_examples=(Example(question="3 + 3?", solutions=("6",), response="Yes"),),
)
TEXTS = [
    "The answer is 7.",
    "So $x^2 = \\frac{1}{2}$, and\n\n\\boxed{\\frac{1}{2}}",
    "Größe: 3 €, ½ · 7 → 你好",
    "two  blanks,\ta tab\nand a line",
    "7",
]


def peer_prompts(tokenizer: Any, wording: TemplateSection = WORDING, **peer: Any) -> PeerPrompts:
    """Prompts of a peer with this tokenizer."""
    return PeerPrompts(tokenizer, PeerSection(name="p", model="m", **peer), wording)


@pytest.fixture
def chatty(tiny_models: dict[str, Path]) -> PeerPrompts:
    return peer_prompts(load_tokenizer(tiny_models["chatty"]))


@pytest.fixture
def plain(tiny_models: dict[str, Path]) -> PeerPrompts:
    return peer_prompts(load_tokenizer(tiny_models["plain"]))


@pytest.fixture(params=["chatty", "plain"])
def either(request: pytest.FixtureRequest) -> PeerPrompts:
    found: PeerPrompts = request.getfixturevalue(request.param)
    return found


def shown(prompts: PeerPrompts, token_ids: list[int]) -> str:
    """A prompt as text, special tokens included."""
    return str(prompts.tokenizer.decode(token_ids, skip_special_tokens=False))


def with_bos(tokenizer: Any) -> Any:
    """The tokenizer as many families ship it: encoding puts BOS in front by itself."""
    from tokenizers.processors import TemplateProcessing

    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    assert tokenizer.encode("x")[0] == tokenizer.bos_token_id
    return tokenizer


def test_a_plain_prompt_by_hand(plain: PeerPrompts) -> None:
    assert shown(plain, plain.solve(QUESTION)) == (
        f"<bos>Solve.\n\nQuestion: 1 + 1?\nAnswer: It is 2.\n\nQuestion: {QUESTION}\nAnswer:"
    )
    assert shown(plain, plain.review(QUESTION, ["a", "b"])) == (
        "<bos>Judge, then solve.\n\nQuestion: 2 + 2?\nSolution 1: 5\nSolution 2: 4\nAnswer: It is 4.\n\n"
        f"Question: {QUESTION}\nSolution 1: a\nSolution 2: b\nAnswer:"
    )
    assert shown(plain, plain.verify(QUESTION, "a")) == (
        "<bos>Question: 3 + 3?\nSolution 1: 6\nIs it right?\nAnswer: Yes\n\n"
        f"Question: {QUESTION}\nSolution 1: a\nIs it right?\nAnswer:"
    )


def test_a_chat_prompt_by_hand(chatty: PeerPrompts) -> None:
    assert shown(chatty, chatty.solve(QUESTION)) == (
        "<|user|>Solve.\n\nQuestion: 1 + 1?<|end|><|assistant|>It is 2.<|end|>"
        f"<|user|>Solve.\n\nQuestion: {QUESTION}<|end|><|assistant|>"
    )
    assert shown(chatty, chatty.synthesis(QUESTION, ["a"])).endswith(
        f"<|user|>Write the last word.\n\nQuestion: {QUESTION}\nSolution 1: a<|end|><|assistant|>"
    )
    assert shown(chatty, chatty.verify(QUESTION, "a")).endswith(
        f"<|user|>Question: {QUESTION}\nSolution 1: a\nIs it right?<|end|><|assistant|>"
    )


def test_a_critique_is_asked_for_without_the_examples(plain: PeerPrompts, chatty: PeerPrompts) -> None:
    """They end with a bare Yes or No, as a verifier that copies them would write."""
    asked = f"Question: {QUESTION}\nSolution 1: a\nCheck it, then say Yes or No."
    (by_plain,), (by_chatty,) = (prompts.all_of("verify_cot", [(QUESTION, ("a",))]) for prompts in (plain, chatty))
    assert shown(plain, by_plain) == f"<bos>{asked}\nAnswer:"
    assert shown(chatty, by_chatty) == f"<|user|>{asked}<|end|><|assistant|>"


def test_a_template_with_a_date_gets_the_same_one_every_day(chatty: PeerPrompts) -> None:
    """Like Llama 3's: without a date it would use today's, so a run's rounds would differ."""
    dated = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    tokenizer: Any = chatty.tokenizer
    for today in ("{{ date_string }}", "{{ strftime_now('%d %b %Y') }}"):
        tokenizer.chat_template = dated + "<|user|>Today: " + today + CHAT
        prompts = peer_prompts(tokenizer)
        assert shown(prompts, prompts.solve(QUESTION)).startswith("<|user|>Today: 26 Jul 2024<|user|>")


def test_position_one_is_asked_as_in_scoring(either: PeerPrompts) -> None:
    assert either.review(QUESTION, []) == either.solve(QUESTION)
    assert either.review(QUESTION, ["a"]) != either.solve(QUESTION, ["a"])


def test_review_without_examples_of_its_own_shows_the_others(plain: PeerPrompts) -> None:
    bare = peer_prompts(plain.tokenizer, WORDING.model_copy(update={"examples": WORDING.examples[:1]}))
    for token_ids in (bare.review(QUESTION, ["a"]), bare.synthesis(QUESTION, ["a"])):
        assert "Question: 1 + 1?\nAnswer: It is 2." in shown(bare, token_ids)


@pytest.mark.parametrize("solution", TEXTS)
def test_plain_prompts_of_the_pmi_differ_by_the_solution_block_alone(solution: str, plain: PeerPrompts) -> None:
    alone, given = plain.solve(QUESTION), plain.solve(QUESTION, [solution])
    head = next(i for i, (a, b) in enumerate(zip(alone, given, strict=False)) if a != b)
    tail = len(alone) - head
    assert given[:head] == alone[:head]
    assert given[-tail:] == alone[-tail:]
    # the first "\n" is shared: the block stands between it and "Answer:"
    assert plain.decode(given[head:-tail]) in (f"Solution 1: {solution}\n", f"\nSolution 1: {solution}")


@pytest.mark.parametrize("solution", TEXTS)
def test_chat_prompts_of_the_pmi_differ_by_the_solution_block_alone(solution: str, chatty: PeerPrompts) -> None:
    alone, given = (shown(chatty, chatty.solve(QUESTION, y)) for y in ((), (solution,)))
    assert given.count(f"\nSolution 1: {solution}") == 1
    assert given.replace(f"\nSolution 1: {solution}", "") == alone


@pytest.mark.parametrize("processor", [False, True])
def test_plain_prompts_have_one_bos(processor: bool, plain: PeerPrompts) -> None:
    tokenizer: Any = with_bos(plain.tokenizer) if processor else plain.tokenizer
    prompts = peer_prompts(tokenizer)
    for token_ids in (prompts.solve(QUESTION), prompts.review(QUESTION, ["a"]), prompts.verify(QUESTION, "a")):
        assert token_ids[0] == tokenizer.bos_token_id
        assert token_ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.bos_token_id not in prompts.encode_response("The answer is 7.")


@pytest.mark.parametrize("processor", [False, True])
@pytest.mark.parametrize("template", [CHAT, "{{ bos_token }}" + CHAT])
def test_chat_prompts_have_the_bos_of_their_template(processor: bool, template: str, chatty: PeerPrompts) -> None:
    tokenizer: Any = with_bos(chatty.tokenizer) if processor else chatty.tokenizer
    tokenizer.chat_template = template
    prompts = peer_prompts(tokenizer)
    expected = template.count("bos_token")
    assert prompts.solve(QUESTION).count(tokenizer.bos_token_id) == expected
    assert tokenizer.bos_token_id not in prompts.encode_response("The answer is 7.")


def test_plain_without_a_bos_token(plain: PeerPrompts) -> None:
    tokenizer: Any = plain.tokenizer
    tokenizer.bos_token = None
    assert shown(plain, peer_prompts(tokenizer).solve(QUESTION)).startswith("Solve.")


@pytest.mark.parametrize("text", TEXTS)
def test_a_response_encoded_comes_back(text: str, either: PeerPrompts) -> None:
    token_ids = either.encode_response(text)
    assert either.text(token_ids) == text
    assert either.decode(token_ids) == (text if either.is_chat else f" {text}")
    ended: list[Any] = [*token_ids, either.end_id]
    assert either.cut(ended) == token_ids
    assert not set(token_ids) & set(either.tokenizer.all_special_ids)


def test_cut_at_a_stop_string(plain: PeerPrompts) -> None:
    assert plain.stop_strings == ["\nQuestion:"]
    response = plain.encode_response("The answer is 7.")
    for tail in ("\nQuestion: 1 + 1?", "\n\n\nQuestion:", " \n \nQuestion: a\nQuestion: b"):
        token_ids = plain.encode_response(f"The answer is 7.{tail}")
        assert plain.cut(token_ids) == response
        assert plain.text(token_ids) == plain.text(plain.cut(token_ids)) == "The answer is 7."
    assert plain.text(plain.cut(plain.encode_response("A Question: is none"))) == "A Question: is none"


def test_the_first_of_several_stop_strings_counts(plain: PeerPrompts) -> None:
    prompts = peer_prompts(plain.tokenizer, stop=("END", "\n\n", "\nSolution"))
    token_ids = prompts.encode_response("It is 7.\nSolution 2: 8\n\nmore END")
    assert prompts.cut(token_ids) == prompts.encode_response("It is 7.")
    assert prompts.text(token_ids) == "It is 7."
    assert peer_prompts(plain.tokenizer, stop=()).stop_strings == []


def test_a_token_that_reaches_into_the_stop_string_stays(plain: PeerPrompts) -> None:
    # "answer" is (part of) one token; with the stop string "swer" its visible head "an" belongs to the response
    prompts = peer_prompts(plain.tokenizer, stop=("swer",))
    token_ids = prompts.encode_response("The answer is 7.")
    kept = prompts.cut(token_ids)
    assert prompts.decode(kept).startswith(" The an")
    assert not prompts.decode(kept[:-1]).startswith(" The an")
    assert prompts.text(kept) == "The an"


def test_cut_at_end_tokens_and_trailing_space(either: PeerPrompts) -> None:
    response = either.encode_response("The answer is 7.")
    junk = either.encode_response("\n\nmore")
    eos = either.tokenizer.eos_token_id
    assert eos in either.stop_ids
    for end in either.stop_ids:
        assert either.cut([*response, end, *junk, end]) == response
    for space in (" ", "\n", "\n\n \t\n"):
        token_ids = either.encode_response(f"The answer is 7.{space}")
        assert either.cut(token_ids) == response
        assert either.text(token_ids) == "The answer is 7."


def test_special_tokens_are_no_text(either: PeerPrompts) -> None:
    response = either.encode_response("The answer is 7.")
    pad = either.tokenizer.pad_token_id
    assert either.text([pad, *response, pad]) == "The answer is 7."
    assert either.cut([*response, pad]) == response


def test_a_response_without_text_is_cut_to_nothing(either: PeerPrompts) -> None:
    end, seven = either.end_id, either.encode_response("7")
    nothing: list[list[Any]] = [[], [end], either.encode_response(" \n "), [end, *seven]]
    for token_ids in nothing:
        assert either.cut(token_ids) == []
    assert either.text([]) == ""


def test_cut_keeps_space_within_and_in_front(either: PeerPrompts) -> None:
    token_ids = either.encode_response("\n a  b\n\nc")
    assert either.cut(token_ids) == token_ids
    assert either.text(token_ids) == "a  b\n\nc"


def test_the_end_token_is_what_the_template_puts_after_an_answer(chatty: PeerPrompts, plain: PeerPrompts) -> None:
    tokenizer: Any = chatty.tokenizer
    end, eos = (tokenizer.convert_tokens_to_ids(token) for token in ("<|end|>", "<eos>"))
    assert chatty.is_chat
    assert (chatty.end_id, chatty.stop_ids) == (end, [end])
    assert not plain.is_chat
    assert (plain.end_id, plain.stop_ids) == (eos, [eos])
    tokenizer.add_special_tokens({"eos_token": "<eos>", "additional_special_tokens": ["<|end|>"]})
    prompts = peer_prompts(tokenizer)
    assert (prompts.end_id, prompts.stop_ids) == (end, sorted([end, eos]))
    tokenizer.chat_template = CHAT.replace("<|end|>", "<|end|>\n")
    assert peer_prompts(tokenizer).end_id == end
    tokenizer.chat_template = CHAT.replace("<|end|>", "\n")  # no token ends a turn
    assert peer_prompts(tokenizer).end_id == eos


def test_the_end_token_need_not_have_a_role(chatty: PeerPrompts) -> None:
    # as in Gemma 3 (<end_of_turn>) and Phi 3 (<|end|>): special among the added tokens, but neither EOS nor in the list
    # of additional special tokens, so `all_special_ids` does not have it
    tokenizer: Any = chatty.tokenizer
    tokenizer.eos_token = "<eos>"
    end, eos = (tokenizer.convert_tokens_to_ids(token) for token in ("<|end|>", "<eos>"))
    assert tokenizer.added_tokens_decoder[end].special
    assert end not in tokenizer.all_special_ids
    prompts = peer_prompts(tokenizer)
    assert (prompts.end_id, prompts.stop_ids) == (end, sorted([end, eos]))


def test_a_peers_template_can_be_forced_and_is_refused_where_there_is_none(
    chatty: PeerPrompts, plain: PeerPrompts
) -> None:
    forced = peer_prompts(chatty.tokenizer, template="plain")
    assert not forced.is_chat
    assert shown(forced, forced.solve(QUESTION)).endswith(f"Question: {QUESTION}\nAnswer:")
    with pytest.raises(UserError, match="peer p: template = 'chat' but its tokenizer has no chat template"):
        peer_prompts(plain.tokenizer, template="chat")


def test_tokenizers_that_cannot_be_peers(plain: PeerPrompts) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = ["<unk>", "<eos>", "▁", "\n", *map(chr, range(33, 127))]
    letters = Tokenizer(models.BPE({letter: number for number, letter in enumerate(vocab)}, []))
    letters.pre_tokenizer = pre_tokenizers.Metaspace()
    with pytest.raises(UserError, match="'Yes' and 'No' begin with the same token"):  # which is the blank, ▁
        peer_prompts(PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<unk>", eos_token="<eos>"))
    tokenizer: Any = plain.tokenizer
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no EOS token"):
        peer_prompts(tokenizer)


def test_yes_and_no_follow_the_prompt_as_tokens(either: PeerPrompts) -> None:
    assert either.yes_id != either.no_id
    for token, word in ((either.yes_id, "Yes"), (either.no_id, "No")):
        whole = either.decode(either.encode_response(word)).strip()
        assert whole.startswith(either.decode([token]).strip())


def test_many_at_once_are_what_they_are_one_by_one(either: PeerPrompts) -> None:
    asked = [(text, solutions) for text in TEXTS for solutions in ((), ("a",), ("a", "b"))]
    assert either.all_of("solve", asked) == [either.solve(*one) for one in asked]
    assert either.all_of("review", asked) == [either.review(*one) for one in asked]
    assert either.all_of("synthesis", asked) == [either.synthesis(*one) for one in asked]
    assert either.all_of("verify", [(text, ("a",)) for text in TEXTS]) == [either.verify(text, "a") for text in TEXTS]
    assert either.all_of("solve", []) == []
