"""Tiny language models with a tokenizer of their own, and rows for the GLUE task files."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from benchmarks.lm_task import LmTask, read

SPECIAL = ["<pad>", "</s>", "<unk>"]
NOUNS = ["film", "plot", "cast", "score", "script", "city", "river", "garden"]
WORDS = ["good", "bad", "fine", "dull", "warm", "cold", "and", "the"]
NUMBERS = [f"{tenths / 10:.1f}" for tenths in range(0, 51, 5)]
Tasks = dict[str, tuple[LmTask, Dataset]]


def sentences(count: int, g: torch.Generator) -> list[str]:
    """Sentences of 3 to 14 words."""

    def draw(words: list[str]) -> str:
        return words[int(torch.randint(len(words), (1,), generator=g))]

    lengths = torch.randint(3, 15, (count,), generator=g).tolist()
    return [" ".join(draw(WORDS + NOUNS) for _ in range(length)) for length in lengths]


def glue(count: int, seed: int) -> Tasks:
    """Rows for four of the files in ``prompts/glue8``; labels follow from the words, within the range."""
    g = torch.Generator().manual_seed(seed)
    one, two = sentences(count, g), sentences(count, g)
    shared = [len({*a.split()} & {*b.split()}) for a, b in zip(one, two, strict=True)]
    pairs = {"sentence1": one, "sentence2": two}
    data = {
        "cola": {"sentence": one, "label": [int("the" in text.split()) for text in one]},
        "mrpc": {**pairs, "label": [int(number > 1) for number in shared]},
        "sst2": {"sentence": two, "label": [int("good" in text.split()) for text in two]},
        "stsb": {**pairs, "label": [min(5.0, number / 2 + 0.04) for number in shared]},
    }
    return {name: (read(f"glue8/{name}.yaml"), Dataset.from_dict(rows)) for name, rows in data.items()}


def tokenizer(*, eos: bool = True) -> PreTrainedTokenizerFast:
    """One id for each word of prompts, labels and rows; with or without ``</s>`` at the end."""
    tasks = glue(1, 0).values()
    prompts = [text for task, data in tasks for text in (task.prompt(data[0]), *(task.choices or ()))]
    split = pre_tokenizers.Whitespace()
    words = [word for text in prompts for word, _ in split.pre_tokenize_str(text)] + WORDS + NOUNS
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *NUMBERS, *words]))}
    found = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    found.pre_tokenizer = split
    if eos:
        found.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=found, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def t5(words: PreTrainedTokenizerFast, steps: int) -> Any:
    """An encoder-decoder with a head of its own, after some training: right at times, wrong at others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2}
        options = {"feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "tie_word_embeddings": False}
        special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
        model = T5ForConditionalGeneration(T5Config(vocab_size=len(words), **sizes, **options, **special))
        model.lm_head.weight = torch.nn.Parameter(torch.randn(len(words), 32) * 32**-0.5)
    rows = [(t.prompt(row), t.target(row)) for t, data in glue(64, 1).values() for row in data]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(2)).split(32)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for part in islice((part for _ in range(steps) for part in order), steps):
        prompts, targets = zip(*(rows[int(i)] for i in part), strict=True)
        inputs = words(list(prompts), padding=True, return_tensors="pt")
        wanted = word_ids(words, targets)
        loss = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, labels=wanted).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def word_ids(words: PreTrainedTokenizerFast, targets: tuple[str, ...]) -> torch.Tensor:
    """Labels ``(n, longest)``, padded with -100."""
    rows = [torch.tensor([words.convert_tokens_to_ids(target), 1]) for target in targets]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)


def llama(words: PreTrainedTokenizerFast) -> Any:
    """A random causal model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes, **heads, **special))
        model.lm_head.weight = torch.nn.Parameter(torch.randn(len(words), 32))
    return model.eval()
