"""A small byte-pair vocabulary in the files of CLIP's tokenizer, learnt from the suites' own prompts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Regex, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

MERGES = 300  # enough for every prompt to fit into the text tower
START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77  # tokens of a prompt, at most
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

Pair = tuple[str, str]


def learn(prompts: Iterable[str]) -> tuple[dict[str, int], list[Pair]]:
    """Vocabulary and merges, in CLIP's order: bytes, bytes that end a word, merged pairs, the two marks.

    The trainer of ``tokenizers`` breaks ties at random, and the files' hashes have to stay the same.
    """
    words = count_words(prompts)
    pieces = {word: [*word[:-1], f"{word[-1]}</w>"] for word in words}
    merges: list[Pair] = []
    for _ in range(MERGES):
        pairs: Counter[Pair] = Counter()
        for word, count in words.items():
            for pair in pairwise(pieces[word]):
                pairs[pair] += count
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        pieces = {word: merged(parts, merges[-1]) for word, parts in pieces.items()}
    alphabet = sorted(ByteLevel.alphabet())
    ends = [f"{letter}</w>" for letter in alphabet]
    tokens = [*alphabet, *ends, *(first + second for first, second in merges), START, END]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges


def count_words(prompts: Iterable[str]) -> Counter[str]:
    """How often each word is in lower-case prompts, its bytes as letters of CLIP's alphabet."""
    split = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    steps = pre_tokenizers.Sequence([split, ByteLevel(add_prefix_space=False)])
    return Counter(word for prompt in prompts for word, _ in steps.pre_tokenize_str(prompt.lower()))


def merged(parts: list[str], pair: Pair) -> list[str]:
    """A word's parts with a pair joined wherever it is."""
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def write(folder: Path, vocabulary: dict[str, int], merges: list[Pair]) -> None:
    """``vocab.json``, ``merges.txt`` and the two files of settings."""
    marks: dict[str, Any] = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {
        **marks,
        "model_max_length": LENGTH,
        "do_lower_case": True,
        "tokenizer_class": "CLIPTokenizer",
    }
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(marks), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
