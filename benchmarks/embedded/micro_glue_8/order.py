"""The lessons of ``acceptability``: sentences whose neighbouring words are swapped anew at every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.embedded.micro_glue_8.answers import Pairs, Row, answer_loss, encoded, held_out, padded
from benchmarks.embedded.training import batches_alike, step_generator
from benchmarks.suites.prompt import TaskFile

WORD = "x"  # stands for a sentence, to find where it begins and ends in the prompt


class Swaps:
    """Prompts over sentences in order, as token ids, of which every second has two words swapped when asked.

    The encoder is taught where: at each piece of the sentence its state is read as the decoder's is, and is
    to say ``unacceptable`` at swapped words and ``acceptable`` at others. No parameter is added.
    """

    def __init__(self, tokenizer: Any, task: TaskFile, sentences: list[str], steps: int, batch: int) -> None:
        rows: list[Row] = [{"sentence": s, "label": 1} for s in sentences]
        self.asked = encoded(tokenizer, task, rows)
        begin, end = task.prompt({"sentence": WORD, "label": 1}).split(WORD)
        self.before = len(tokenizer(begin.strip(), add_special_tokens=False).input_ids)
        self.after = 1 + len(tokenizer(end.strip(), add_special_tokens=False).input_ids)
        pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        self.starts = torch.tensor([piece.startswith("\u2581") for piece in pieces])
        order = batches_alike(list(map(len, self.asked.sources)), batch, "swaps")
        self.drawn = [index for _, index in zip(range(steps), order, strict=False)]

    def words(self, source: list[int]) -> list[list[int]]:
        """The pieces of each word of the sentence in a prompt."""
        found: list[list[int]] = []
        for piece in source[self.before : len(source) - self.after]:
            if self.starts[piece] or not found:
                found.append([])
            found[-1].append(piece)
        return found

    def swapped(self, source: list[int], g: torch.Generator) -> tuple[list[int], list[int]]:
        """The prompt with two different neighbours swapped, and the positions of their pieces."""
        words = self.words(source)
        places = [i for i in range(len(words) - 1) if words[i] != words[i + 1]]
        if not places:
            return source, []
        at = places[int(torch.randint(len(places), (), generator=g))]
        words[at], words[at + 1] = words[at + 1], words[at]
        first = self.before + sum(map(len, words[:at]))
        moved = range(first, first + len(words[at]) + len(words[at + 1]))
        body = [piece for word in words for piece in word]
        return [*source[: self.before], *body, *source[len(source) - self.after :]], list(moved)

    def at(self, step: int) -> tuple[Pairs, Tensor]:
        """A batch, and what to say at each piece: 0 or 1 as the task's labels, -100 outside of sentences."""
        g, part = step_generator("swaps", step), self.asked.subset(self.drawn[step])
        taught = [[-100] * self.before + [1] * (len(s) - self.before - self.after) for s in part.sources]
        for i in range(0, len(part), 2):
            part.sources[i], moved = self.swapped(part.sources[i], g)
            if moved:
                part.taught[i] = part.taught[i].flip(0)
            for position in moved:
                taught[i][position] = 0
        return part, padded([t + [-100] * self.after for t in taught], -100)

    def loss(self, model: Any, step: int) -> Tensor:
        """Of the answers and of what is said at each piece."""
        part, taught = self.at(step)
        x = padded(part.sources, 0)
        states = model.encoder(input_ids=x, attention_mask=(x != 0).long()).last_hidden_state
        rows = model.shared.weight.detach()[part.ids]
        said = states * states.shape[-1] ** -0.5 @ rows.T
        located = torch.nn.functional.cross_entropy(said.flatten(0, 1), taught.flatten())
        return answer_loss(model, part, states=states) + located


def in_order(data: dict[str, list[Row]]) -> list[str]:
    """Acceptable sentences of ``acceptability`` and captions of ``snli``, of rows that are not held out."""
    train = {t: [data[t][int(i)] for i in held_out(len(data[t]), t)[0]] for t in ("acceptability", "snli")}
    own = {row["sentence"] for row in train["acceptability"] if row["label"] == 1}
    captions = {row[column] for row in train["snli"] for column in ("premise", "hypothesis")}
    held = [data["acceptability"][int(i)] for i in held_out(len(data["acceptability"]), "acceptability")[1]]
    return sorted((own | captions) - {row["sentence"] for row in held})
