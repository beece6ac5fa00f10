"""Small vocabularies in the files of FLAN-T5's tokenizer (unigram) and of Llama 3's (bytes)."""

from __future__ import annotations

import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from tests.hub.checkpoints import write_json

SPACE = "▁"  # begins a word
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"  # ids 0, 1 and 2
SENTINELS = 100  # of T5's denoising: the vocabulary's last, counted backwards
LENGTH = 512
WORD_SCORE, LETTER_SCORE = -6.0, -12.0  # log-likelihoods: one word is likelier than its letters
BEGIN_TEXT, END_TEXT = "<|begin_of_text|>", "<|end_of_text|>"
LLAMA_LENGTH = 1024


def pieces(words: Iterable[str]) -> list[tuple[str, float]]:
    """T5's vocabulary: marks, words at the beginning of a word and within one, printable ASCII, sentinels."""
    marks = [(mark, 0.0) for mark in (PAD, END, UNKNOWN)]
    known = [(f"{start}{word}", WORD_SCORE) for word in sorted(set(words)) for start in (SPACE, "")]
    letters = [(letter, LETTER_SCORE) for letter in (SPACE, *string.printable.strip())]
    listed = dict([*letters, *(piece for piece in known if len(piece[0]) > 1)])
    return [*marks, *listed.items(), *((mark, 0.0) for mark in reversed(sentinels()))]


def sentinels() -> list[str]:
    return [f"<extra_id_{i}>" for i in range(SENTINELS)]


def write_t5(folder: Path, vocabulary: list[tuple[str, float]]) -> None:
    """``tokenizer.json`` and the two files of settings, as FLAN-T5's repository has them."""
    ids = {piece: i for i, (piece, _) in enumerate(vocabulary)}
    space = {"type": "Metaspace", "replacement": SPACE, "add_prefix_space": True}
    ending = {"SpecialToken": {"id": END, "type_id": 0}}
    text = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    content = {
        **head([PAD, END, UNKNOWN, *reversed(sentinels())], ids),
        "normalizer": None,  # the original has SentencePiece's table of characters here
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [text[0], ending],
            "pair": [text[0], ending, text[1], ending],
            "special_tokens": {END: {"id": END, "ids": [1], "tokens": [END]}},
        },
        "decoder": space,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": [[*piece] for piece in vocabulary]},
    }
    marks = {"eos_token": END, "pad_token": PAD, "unk_token": UNKNOWN}
    named: dict[str, Any] = {"additional_special_tokens": sentinels(), **marks}
    more = {"extra_ids": SENTINELS, "model_max_length": LENGTH, "sp_model_kwargs": {}}
    write_json(folder / "tokenizer.json", content)
    write_json(folder / "special_tokens_map.json", named)
    write_json(folder / "tokenizer_config.json", {**named, **more, "tokenizer_class": "T5Tokenizer"})


def write_llama(folder: Path) -> int:
    """``tokenizer.json`` and settings of a vocabulary of bytes; returns its size."""
    ids = {token: i for i, token in enumerate([*sorted(ByteLevel.alphabet()), BEGIN_TEXT, END_TEXT])}
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    begin = {"SpecialToken": {"id": BEGIN_TEXT, "type_id": 0}}
    text = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    content = {
        **head([BEGIN_TEXT, END_TEXT], ids),
        "normalizer": None,
        "pre_tokenizer": bytewise,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text[0]],
            "pair": [begin, text[0], begin, text[1]],
            "special_tokens": {
                BEGIN_TEXT: {"id": BEGIN_TEXT, "ids": [ids[BEGIN_TEXT]], "tokens": [BEGIN_TEXT]}
            },
        },
        "decoder": bytewise,
        "model": {"type": "BPE", "vocab": ids, "merges": []},
    }
    marks = {"bos_token": BEGIN_TEXT, "eos_token": END_TEXT}
    write_json(folder / "tokenizer.json", content)
    write_json(folder / "special_tokens_map.json", marks)
    more = {"model_max_length": LLAMA_LENGTH, "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", {**marks, **more})
    return len(ids)


def head(special: list[str], ids: dict[str, int]) -> dict[str, Any]:
    """How a ``tokenizer.json`` begins: the tokens that no text is split into."""
    settings = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": ids[token], "content": token, **settings, "special": True} for token in special]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
