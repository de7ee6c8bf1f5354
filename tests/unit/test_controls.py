"""Text is data, and responses are encoded in context: chat templates of six families over four kinds of tokenizers."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config.sections import Example, PeerSection, TemplateSection
from data.errors import UserError
from peers.policy import Policy
from peers.prompts import PeerPrompts, PromptKind, token_identity

TEMPLATES = Path(__file__).parents[1] / "templates"
NANO = Path(__file__).parents[2] / "peers" / "llama" / "chat_template.jinja"
CONTROLS = ["<unk>", "<s>", "</s>", "<|end|>", "<|start|>", "<|user|>", "<|assistant|>", "<|system|>", "<|im_start|>",
            "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
            "<end_of_turn>"]  # fmt: skip
LOOSE = ["<think>", "</think>"]  # added tokens that are not special, as in Qwen 3
FAMILIES = {  # template: (the token that begins a turn, the one that ends it)
    "nano": ("<|user|>", "<|end|>"), "chatml": ("<|im_start|>", "<|im_end|>"), "qwen3": ("<|im_start|>", "<|im_end|>"),
    "llama32": ("<|start_header_id|>", "<|eot_id|>"), "gemma2": ("<start_of_turn>", "<end_of_turn>"),
    "llama2": ("<s>", "</s>"),
}  # fmt: skip
KINDS = ["bytes", "word-start", "blanks", "unigram"]
WORDING = TemplateSection(
    instruction="Solve </s> it.",
    review="Judge <|im_end|> them.",
    verify="Is it right <end_of_turn>?",
    examples=(Example(question="1 <|eot_id|> 1?", response="It is <|end|> 2."),),
    verify_examples=(Example(question="3?", solutions=("6 <|im_start|>",), response="Yes"),),
)
CORPUS = ["Question: Tom has 3 pens and buys 4. How many? Solution 1: The answer is 7. Yes No Answer: Solve it.",
          "user assistant model system right or wrong; it is so, and we add two to it."] * 3  # fmt: skip


def bytes_fallback() -> list[str]:
    """The pieces that stand for single bytes."""
    return [f"<0x{byte:02X}>" for byte in range(256)]


@lru_cache
def tokenizer_json(kind: str) -> str:
    """A small tokenizer of one kind, with all control tokens: `bytes` (GPT-2's, Llama 3's, Qwen's), `word-start` (Llama
    2's, with the mark of a beginning), `blanks` (Gemma's), `unigram` (whose model has the control tokens, too)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if kind == "bytes":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        core.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    elif kind == "unigram":
        pieces = sorted({character for text in CORPUS for character in text if character != " "})
        vocab = [("<unk>", 0.0), *((piece, -1.0) for piece in [*CONTROLS[1:], *LOOSE]), ("▁", -3.0)]
        vocab += [(piece, -5.0) for piece in [*pieces, *"<|>/_[]", "▁Yes", "▁No", "▁The", "Yes", "No"]]
        vocab = list({piece: (piece, score) for piece, score in vocab}.values())
        vocab += [(piece, -9.0) for piece in bytes_fallback()]
        core = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    else:
        words = Tokenizer(models.BPE())
        words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        words.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300))
        about = json.loads(words.to_str())["model"]
        tokens = [*CONTROLS, *LOOSE, *bytes_fallback(), *about["vocab"]]
        vocab_ = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
        merges = [tuple(merge) for merge in about["merges"]]
        core = Tokenizer(models.BPE(vocab_, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        if kind == "word-start":
            core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            core.normalizer = normalizers.Replace(" ", "▁")
    if kind != "bytes":
        start: list[Any] = [decoders.Strip(" ", 1, 0)] if kind != "blanks" else []
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *start])
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROLS])
    core.add_tokens([AddedToken(name, special=False, normalized=False) for name in LOOSE])
    return str(core.to_str())


@lru_cache
def prompts_of(kind: str, family: str) -> PeerPrompts:
    """A peer with a tokenizer of a kind and the template of a family; `plain` has none."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json(kind)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    if family != "plain":
        path = NANO if family == "nano" else TEMPLATES / f"{family}.jinja"
        tokenizer.chat_template = path.read_text(encoding="utf-8").strip()
    return PeerPrompts(tokenizer, PeerSection(name="p", model="m"), WORDING)


def turns(prompts: PeerPrompts, ids: list[int]) -> list[int]:
    """The control tokens of a prompt, in order."""
    tokenizer: Any = prompts.tokenizer
    known = set(tokenizer.convert_tokens_to_ids(CONTROLS))
    return [token for token in ids if token in known]


def quoted() -> st.SearchStrategy[str]:
    """Texts with control tokens in them, whole, cut, nested and next to each other."""
    piece = st.sampled_from([*CONTROLS[1:], *LOOSE, "[INST]", "[/INST]", "<|im_", "end|>", "<", "<<|end|>|end|>"])
    word = st.sampled_from(["Tom", " has 3 pens.", "\n", " ", "é", "你", "\ufdd0", "\ue000", "answer", "7"])
    return st.lists(piece | word | st.text(st.characters(codec="utf-8"), max_size=3), max_size=8).map("".join)


@pytest.mark.parametrize("family", [*FAMILIES, "plain"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(question=quoted(), solution=quoted())
def test_no_text_makes_a_turn(kind: str, family: str, question: str, solution: str) -> None:
    prompts = prompts_of(kind, family)
    for kind_ in get_args(PromptKind):
        plain, quoting = prompts.all_of(kind_, [("Q", ("S",)), (question, (solution,))])
        assert turns(prompts, quoting) == turns(prompts, plain)


@pytest.mark.parametrize("family", [*FAMILIES, "plain"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(text=quoted())
def test_decoding_gives_the_text_back(kind: str, family: str, text: str) -> None:
    prompts = prompts_of(kind, family)
    text = text.strip()
    (found,) = prompts.encode_responses([("Tom has 3 pens.", text)])
    if found is None:  # the end of the prompt and the beginning of the response are one token
        return
    assert not turns(prompts, found)
    if kind != "unigram" and "▁" not in text:  # its normal form differs
        if kind == "word-start":  # Llama 2's way: decoding drops a blank behind an added token
            text = re.sub(f"({'|'.join(map(re.escape, LOOSE))}) ", r"\1", text)
        assert prompts.text(found) == text
        whole = prompts.solve(text)
        assert text in prompts.tokenizer.decode(whole, skip_special_tokens=False)


@pytest.mark.parametrize("family", [*FAMILIES, "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_response_is_what_follows_the_prompt(kind: str, family: str) -> None:
    """Prompt and response make the tokens that the template makes of the whole conversation, up to the end token."""
    prompts, question, answer = prompts_of(kind, family), "Tom has 3 pens.", "The answer is 7."
    tokenizer: Any = prompts.tokenizer
    (found,) = prompts.encode_responses([(question, answer)])
    assert found is not None
    if family == "plain":
        rendered = tokenizer.decode(prompts.solve(question), skip_special_tokens=False)
        assert rendered.endswith(f"Question: {question}\nAnswer:")
        word_start = {"bytes": "ĠThe"}.get(kind, "▁The")
    else:
        word_start = "▁The" if family == "llama2" and kind != "bytes" else "ĠThe" if family == "llama2" else "The"
        ends = FAMILIES[family][1]
        assert prompts.end_id == tokenizer.convert_tokens_to_ids(ends)
        assert prompts.end_id in prompts.stop_ids
    first = str(tokenizer.convert_ids_to_tokens(found)[0])
    assert word_start.startswith(first) and first.startswith(word_start[:1])
    yes, no = tokenizer.convert_ids_to_tokens([prompts.yes_id, prompts.no_id])
    blank = {"bytes": "Ġ"}.get(kind, "▁") if family in ("plain", "llama2") else ""
    assert f"{blank}Yes".startswith(yes) and f"{blank}No".startswith(no)


def test_a_turn_may_end_with_a_token_that_is_not_special() -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    prompts, about = prompts_of("bytes", "chatml"), json.loads(tokenizer_json("bytes"))
    for token in about["added_tokens"]:
        token["special"] = token["special"] and not token["content"].startswith("<|im_")
    loose = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(about)), bos_token="<s>", eos_token="</s>"
    )
    loose.chat_template = prompts.tokenizer.chat_template
    found = PeerPrompts(loose, PeerSection(name="p", model="m"), WORDING)
    assert found.end_id == prompts.end_id
    assert found.solve("a <|im_end|> b") == prompts.solve("a <|im_end|> b")


def test_the_beginning_of_a_response_is_part_of_what_token_ids_mean() -> None:
    """Llama 2's template puts a blank before a response and ChatML none: the same ids would be other texts."""
    assert token_identity(prompts_of("bytes", "llama2")) != token_identity(prompts_of("bytes", "chatml"))
    assert token_identity(prompts_of("bytes", "qwen3")) == token_identity(prompts_of("bytes", "chatml"))


def test_a_template_whose_end_joins_the_response_is_refused() -> None:
    """`Assistant: ` and `The` are encoded as `▁The`, so that no token begins with the response."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json("word-start")), bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(UserError, match="joins the end of the prompt and the beginning of a response"):
        PeerPrompts(tokenizer, PeerSection(name="p", model="m"), WORDING)


def test_a_template_that_drops_the_response_is_refused() -> None:
    tokenizer: Any = prompts_of("bytes", "chatml").tokenizer
    before = tokenizer.chat_template
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    try:
        with pytest.raises(UserError, match="leaves out what an assistant says"):
            PeerPrompts(tokenizer, PeerSection(name="p", model="m"), WORDING)
    finally:
        tokenizer.chat_template = before


def test_the_words_of_the_config_make_no_turns_either() -> None:
    """Examples and requests are text, too: WORDING quotes control tokens, and the same words without them make as many
    turns."""
    quoting = prompts_of("bytes", "chatml")
    bare = TemplateSection.model_validate_json(re.sub(r" ?<[^>]*>", "", WORDING.model_dump_json()))
    plain = PeerPrompts(quoting.tokenizer, quoting.peer, bare)
    for kind in get_args(PromptKind):
        one, other = (prompts.all_of(kind, [("Q", ("S",))])[0] for prompts in (quoting, plain))
        assert turns(quoting, one) == turns(plain, other)


def test_a_response_whose_beginning_joins_the_prompt_has_no_clean_cut() -> None:
    """ChatML's prompt ends in a line break; with a token for two of them, a response cannot begin with one."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    about = json.loads(tokenizer_json("bytes"))
    about["model"]["vocab"]["ĊĊ"] = 10_000
    about["model"]["merges"].append(["Ċ", "Ċ"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(about)), bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = prompts_of("bytes", "chatml").tokenizer.chat_template
    prompts = PeerPrompts(tokenizer, PeerSection(name="p", model="m"), WORDING)
    found = prompts.encode_responses([("Q", "\n\nIt is 7."), ("Q", "It is 7.\n\n")])
    assert found[0] is None and found[1] is not None
    with pytest.raises(ValueError, match="a token spans the end of the prompt"):
        prompts.encode_response("\n\nIt is 7.")


def chatml_with(template: str, kind: str = "bytes", change: Any = lambda about: None) -> PeerPrompts:
    """Prompts of a peer with a template of its own, and with a changed tokenizer."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    about = json.loads(tokenizer_json(kind))
    change(about)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(about)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    return PeerPrompts(tokenizer, PeerSection(name="p", model="m"), WORDING)


def test_a_turn_may_end_only_where_another_follows() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        "{% if not loop.last %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_end|>\n<|im_start|>assistant\n' }}{% endif %}"
    )
    prompts = chatml_with(template)
    assert prompts.end_id == prompts.tokenizer.convert_tokens_to_ids("<|im_end|>")
    unmarked = chatml_with(template.replace("<|im_end|>", ""))
    assert unmarked.end_id == unmarked.tokenizer.eos_token_id  # and not <|im_start|>


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("'hello'", "leaves out or changes 'What is 1 [+] 1"),
        ("m['content'][:30]", "leaves out or changes"),
        ("m['content'].replace('<', '(')", "leaves out or changes"),
        ("m['content'] + (range(10000) | random | string)", "writes a different prompt at each call"),
        ("raise_exception('tools only')", "cannot be applied .*tools only"),
        ("m['content'].text.x", "cannot be applied"),
    ],
)
def test_a_template_that_changes_what_it_is_given_is_refused(content: str, told: str) -> None:
    whole = (TEMPLATES / "chatml.jinja").read_text(encoding="utf-8").strip()
    whole = whole.replace("for message in", "for m in").replace("message['", "m['")
    assert "m['content'] +" in whole
    with pytest.raises(UserError, match=told) as stop:
        chatml_with(whole.replace("m['content'] +", f"(m['content'] if m['role'] != 'user' else {content}) +"))
    assert "\n" not in str(stop.value) and str(stop.value).startswith("peer p: its chat template ")


@pytest.mark.parametrize("kind", KINDS)
def test_no_normal_form_makes_a_turn(kind: str) -> None:
    """Added tokens with `normalized` are looked for in the normal form of a text."""

    def loosen(about: dict[str, Any]) -> None:
        first = [{"type": "NFKC"}, {"type": "Lowercase"}]
        own = [about["normalizer"]] if about["normalizer"] else []
        about["normalizer"] = {"type": "Sequence", "normalizers": first + own}
        for token in about["added_tokens"]:
            token["normalized"] = True

    template = (TEMPLATES / "chatml.jinja").read_text(encoding="utf-8").strip()
    prompts = chatml_with(template, kind, loosen)
    plain = turns(prompts, prompts.solve("a b"))
    assert plain
    for text in ("a ＜|im_end|＞ b", "a <|IM_END|> b", "a <|im_end|> b"):
        assert turns(prompts, prompts.solve(text)) == plain
        (found,) = prompts.encode_responses([("Q", text)])
        assert found is None or not turns(prompts, found)


def test_prompts_are_made_once_for_a_policy(tiny_models: dict[str, Path]) -> None:
    """Their copy of the tokenizer may take seconds."""
    peer, wording = PeerSection(name="p", model="m"), TemplateSection()
    policy, other = (
        Policy(peer, wording, round_, tiny_models["chatty"], None, None, 1, "auto", "x") for round_ in (0, 1)
    )
    assert policy.prompts is policy.prompts is other.prompts
