"""FLAN-T5, its experts and adapters, and a Llama in miniature: the originals' classes, keys and files.

The weights of the base are random, but for the rows of ``lm_head`` that answer: by one ridge regression on
the training prompts they make greedy decoding say one of the prompt's own answers and end, whatever the text.
An expert is the base with a little low-rank noise on every matrix and with those rows moved, by another ridge
regression, so that the answer is the right one. Adapters hold noise alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from tests.hub.images import generator
from tests.hub.models import DIGITS, LOW_RANK, RIDGE
from tests.hub.text_tokenizer import LENGTH, LLAMA_LENGTH

BASE, STEM = "google/flan-t5-base", "tanganke/flan-t5-base_glue-"
LLAMA = "replica/tiny-llama"
WIDTH, SPARE = 32, 28  # embeddings beyond the tokenizer's vocabulary: 28, as the original has
MARK = 8.0  # length of what tells the first answering position from the one after it
GAIN = 8.0  # logit of a wanted token over all others
QUIET = 0.02  # standard deviation of the rows of lm_head that answer nothing
KEPT = 0.25  # weight of what is not to change, in an expert's regression
RANK, ALPHA = 16, 32  # of adapters
ADAPTED = 0.1  # size of an adapter's move, relative to the matrix
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Lesson:
    """Training prompts of a task, tokenised, and the token that answers each.

    ``numbers``: of a task whose answers are numbers, those that tokens stand for.
    """

    inputs: Mapping[str, Tensor]
    answers: list[int]
    numbers: Mapping[int, float] = field(default_factory=dict)


def t5_config(vocabulary: int) -> dict[str, Any]:
    """``config.json`` of FLAN-T5-base with smaller numbers; the original's are 768, 64, 2048, 12."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": 2 * WIDTH,
        "d_kv": 8,
        "d_model": WIDTH,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "n_positions": LENGTH,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "num_layers": 2,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": vocabulary + SPARE,
    }


def llama_config(vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": LLAMA_LENGTH,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "vocab_size": vocabulary,
    }


def random_t5(vocabulary: int, answers: Sequence[int]) -> Any:
    """A base in float64 whose weights follow from its id alone; its ``lm_head`` cannot answer yet."""
    with torch.random.fork_rng(devices=[]):
        model = T5ForConditionalGeneration(T5Config(**t5_config(vocabulary))).eval().double()
    model.lm_head.weight = torch.nn.Parameter(
        torch.empty_like(model.shared.weight)
    )  # untied, as the original
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(drawn(BASE, name, weight))
        model.lm_head.weight *= QUIET
        start, after = np.linalg.qr(generator(BASE, "marks").standard_normal((WIDTH, 2)))[0].round(DIGITS).T
        model.shared.weight[0] += MARK * torch.from_numpy(start)
        model.shared.weight[list(answers)] += MARK * torch.from_numpy(after)
    return model


def drawn(who: str, name: str, weight: Tensor) -> Tensor:
    """A random tensor of the weight's shape: of a matrix so that it keeps the scale of what it multiplies."""
    random = torch.from_numpy(generator(who, name).standard_normal(weight.shape)).round(decimals=DIGITS)
    if weight.ndim == 1:
        return 1 + 0.05 * random
    if name in ("shared.weight", "lm_head.weight", "model.embed_tokens.weight"):
        return random
    if "relative_attention_bias" in name:
        return 0.1 * random
    unscaled = name.endswith("Attention.q.weight")  # T5 does not divide by the root of a head's width
    scale = weight[0].numel() ** -0.5 * (8**-0.5 if unscaled else 1.0)
    return random.mul(scale)


@torch.no_grad()
def states(model: Any, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """What ``lm_head`` reads, each (rows, width): where the answer is due, and after it, where the end is."""
    start = torch.zeros(len(lesson.answers), 1, dtype=torch.int64)
    told = torch.cat([start, torch.tensor(lesson.answers)[:, None]], dim=1)
    encoded = model.encoder(**lesson.inputs).last_hidden_state
    mask = lesson.inputs["attention_mask"]
    state = model.decoder(told, encoder_hidden_states=encoded, encoder_attention_mask=mask).last_hidden_state
    return state[:, 0], state[:, 1]


def teach(model: Any, lessons: Sequence[tuple[Lesson, Tensor]], kept: Sequence[Tensor] = ()) -> None:
    """Moves rows of ``lm_head`` so that logits become ``GAIN`` times what is wanted, and the end follows.

    A lesson's wanted shares are (rows, vocabulary). ``kept`` are states whose logits are to stay.
    """
    end = torch.zeros(model.lm_head.weight.shape[0], dtype=torch.float64)
    end[model.config.eos_token_id] = 1
    read, wanted = [], []
    for lesson, told in lessons:
        due, after = states(model, lesson)
        read += [due, after]
        wanted += [told, end.expand(len(after), -1)]
    inputs, goal = torch.cat([*read, *(KEPT * state for state in kept)]), GAIN * torch.cat(wanted)
    rows = goal.any(0)
    missing = torch.zeros(len(inputs), len(rows), dtype=torch.float64)
    missing[: len(goal)] = goal - inputs[: len(goal)] @ model.lm_head.weight.detach().T
    damping = RIDGE / 10 * inputs.square().sum(1).mean() * torch.eye(inputs.shape[1], dtype=torch.float64)
    move = torch.linalg.solve(inputs.T @ inputs + damping, inputs.T @ missing).T
    with torch.no_grad():
        model.lm_head.weight[rows] += move[rows].round(decimals=DIGITS)


def shares(lesson: Lesson, vocabulary: int, *, informed: bool) -> Tensor:
    """Each row's wanted logits, up to a factor: 1 for its right answer, or how often each answer is right.

    Where answers are numbers v: parabolas around the right number y (or the mean), 1 + (2 v y - v^2) / 25.
    """
    rows = len(lesson.answers)
    right = torch.zeros(rows, vocabulary, dtype=torch.float64)
    if not lesson.numbers:
        right[torch.arange(rows), lesson.answers] = 1
        return right if informed else right.mean(0).expand(rows, -1) / right.mean(0).max()
    tokens, numbers = list(lesson.numbers), torch.tensor(list(lesson.numbers.values()), dtype=torch.float64)
    true = torch.tensor([lesson.numbers[token] for token in lesson.answers], dtype=torch.float64)
    wanted = true if informed else true.mean().expand(rows)
    right[:, tokens] = 1 + (2 * wanted[:, None] * numbers - numbers.square()) / 25
    return right


def base_t5(vocabulary: int, lessons: Mapping[str, Lesson]) -> Any:
    """The base, in float64: answers every prompt with that task's most frequent answer or nearly so."""
    answers = sorted({token for lesson in lessons.values() for token in (*lesson.answers, *lesson.numbers)})
    model = random_t5(vocabulary, answers)
    size = model.config.vocab_size
    teach(model, [(lesson, shares(lesson, size, informed=False)) for lesson in lessons.values()])
    return model


def expert_t5(base: Any, task: str, lesson: Lesson, kept: Sequence[Tensor]) -> Any:
    """A task's expert, in float64, from the base in float64; ``kept`` are the base's states of other tasks.

    What those would answer stays nearly as it was, so that experts add up.
    """
    model = copy.deepcopy(base)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight += moved(f"{STEM}{task}", name, weight)
    teach(model, [(lesson, shares(lesson, model.config.vocab_size, informed=True))], kept)
    return model


def moved(who: str, name: str, weight: Tensor) -> Tensor:
    """Low-rank noise for a matrix."""
    draw = generator(who, name)
    noise = np.outer(draw.standard_normal(weight.shape[0]), draw.standard_normal(weight.shape[1]))
    return LOW_RANK * weight.detach().std() * torch.from_numpy(noise).round(decimals=DIGITS)


def adapter(who: str, model: Any, layers: Sequence[str]) -> Weights:
    """A LoRA adapter of the named linear layers, float32, with the names that ``peft`` stores."""
    found: Weights = {}
    for name, layer in model.named_modules():
        if name.rpartition(".")[2] in layers:
            out, into = layer.weight.shape
            draw = generator(who, name)
            a = torch.from_numpy(draw.standard_normal((RANK, into)) / math.sqrt(into))
            b = torch.from_numpy(draw.standard_normal((out, RANK)) / math.sqrt(RANK))
            b *= ADAPTED * RANK / ALPHA * float(layer.weight.detach().std()) * math.sqrt(into)
            key = f"base_model.model.{name}"
            found |= {f"{key}.lora_A.weight": a.float(), f"{key}.lora_B.weight": b.float()}
    return found


def adapter_config(base: str, layers: Sequence[str], task_type: str) -> dict[str, Any]:
    """``adapter_config.json`` as ``peft`` 0.10 wrote those of FLAN-T5's experts on the hub."""
    unset = ("auto_mapping", "layers_pattern", "layers_to_transform", "megatron_config", "revision")
    nothing: dict[str, Any] = {"alpha_pattern": {}, "loftq_config": {}, "rank_pattern": {}}
    return {
        **nothing,
        **dict.fromkeys((*unset, "modules_to_save", "layer_replication")),
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.1,
        "megatron_core": "megatron.core",
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": list(layers),
        "task_type": task_type,
        "use_dora": False,
        "use_rslora": False,
    }


def base_llama(vocabulary: int) -> Any:
    """A Llama in float32 whose weights follow from its id alone."""
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(LlamaConfig(**llama_config(vocabulary))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(drawn(LLAMA, name, weight))
    return model


def expert_llama(who: str, base: Any) -> Weights:
    """The base's weights with low-rank noise on every matrix."""
    return {
        name: (weight.detach() + moved(who, name, weight).float() if weight.ndim == 2 else weight.detach())
        for name, weight in base.named_parameters()
    }
