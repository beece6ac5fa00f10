"""The tokenizer of ``micro-glue-8``: frequent words are whole, rare ones come in parts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

PIECES = 8192
SENTINELS = 16
WHOLE, RARE = -1.0, 10.0  # a whole word's score; what a part of a word costs, so that whole words win


def build_tokenizer(
    corpus: list[str], pieces: int = PIECES, scores: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A tokenizer with T5's special tokens: ``<pad>`` 0, ``</s>`` 1, ``<unk>`` 2, sentinels last.

    A quarter of the pieces is a unigram model's, for rare words; the others are the most frequent words, each
    of which is one piece. ``scores`` are pieces of their own, so that one is answered at once.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=pieces // 4, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    parts = {piece: (score if piece in special else score - RARE) for piece, score in unigram(tokenizer)}
    words = Counter(
        word
        for text in corpus
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
    )
    room = pieces - SENTINELS - len(scores)
    for word, _ in sorted(words.items(), key=lambda found: (-found[1], found[0])):
        if len(parts) < room or word in parts:
            parts[word] = WHOLE
    tokenizer.model = models.Unigram(list(parts.items()), unk_id=2)
    tokenizer.add_tokens([AddedToken(score, single_word=True, normalized=False) for score in scores])
    tokenizer.add_special_tokens([*special, *(f"<extra_id_{i}>" for i in range(SENTINELS))])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def unigram(tokenizer: Any) -> list[tuple[str, float]]:
    """Pieces of a unigram tokenizer and their scores, in their order."""
    return [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
