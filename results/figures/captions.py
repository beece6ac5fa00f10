"""The words of the figures: title, caption and what is said to those who cannot see them."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Kind = Literal["bits", "recovery", "pareto", "curves", "tasks", "deviations", "anchor", "search", "frontier"]


class Words(NamedTuple):
    """Templates for ``str.format``."""

    title: str
    caption: str
    alt: str


WORDS: Final[dict[Kind, Words]] = {
    "bits": Words(
        "What fewer bits cost, and what each method keeps",
        "Average {score} in percent by nominal bits, one panel per merge; bars are 95 % intervals of the "
        "test samples ({samples}). Thin lines: the experts, the merged model and the base model in full "
        "precision. Filled markers, solid lines: expert target; hollow, dashed: merged target; dotted: "
        "two-step controls; markers at “full”: full-precision controls. A triangle at the lower edge: "
        "below it, at the number beside.",
        "Average {score} of {count} methods and controls by bits. The numbers are in the comparison table.",
    ),
    "recovery": Words(
        "How much of what merging lost is won back",
        "Recovery in percent, (method − merged) / (experts − merged) of the averages: 0 is the "
        "full-precision merged model, 100 the experts. Bars are 95 % intervals of the paired difference to "
        "the merged model, the gap taken as known ({samples}). A triangle at the left edge: below it, at "
        "the number beside.",
        "Recovery of {count} methods by merge and bits. The numbers are in the comparison table.",
    ),
    "pareto": Words(
        "What accuracy costs: {bits} bits",
        "Average {score} in percent against the seconds that making the model took (merging, calibration, "
        "rounding, refinement; the mean over draws, logarithmic), at {bits} bits, with rows in full "
        "precision that methods of this kind start from; bars are 95 % intervals of the test samples "
        "({samples}). Line: the frontier, which no cheaper row reaches. Filled markers: expert target; "
        "hollow: merged target and controls. Seconds are of the machine that is told of below.",
        "Average {score} of {count} methods and controls against seconds at {bits} bits. The numbers are in "
        "the figure's CSV file.",
    ),
    "curves": Words(
        "How refinements went, on samples that no gradient saw",
        "Held-out loss by step: the squared distance of unit-norm features to those of the task's expert "
        "(images), or the divergence of the answer's tokens in nats (text), the mean over tasks, on the "
        "calibration samples that were held out; logarithmic. A marker: the state that was kept. First draw "
        "of each row.",
        "Held-out losses of {count} refinements by step. The numbers are in the figure's CSV file.",
    ),
    "tasks": Words(
        "Task by task: {merge}, {bits} bits",
        "Value on each task in percent ({score}), {merge} at {bits} bits; n is the number of test "
        "samples. Lines: the task's expert (solid) and the merged model in full precision (dashed). Filled "
        "bars: expert target; hollow: merged target; hatched: two-step controls.",
        "Bars of every method on each task, {merge} at {bits} bits. The numbers are in the table of tasks.",
    ),
    "deviations": Words(
        "Two deviations, layer by layer: {merge}, {bits} bits",
        "Mean squared deviation of each layer's outputs on the calibration samples, as a multiple of the "
        "merging deviation of the same layer and inputs (experts' against merged weights). Above: from "
        "the merged weights (quantisation); below: from the experts' weights (expert-relative). {layers} "
        "layers; {merge} at {bits} bits; logarithmic. Triangles at the upper edge: above it; the "
        "largest has its number.",
        "Quantisation and expert-relative deviation of {layers} layers for every method, {merge} at "
        "{bits} bits. The numbers are in the figure's CSV file.",
    ),
    "anchor": Words(
        "What the anchor does",
        "Average {score} in percent by anchor strength, for cells that differ in the anchor alone; bars "
        "are 95 % intervals of the test samples ({samples}). Strengths are spaced evenly.",
        "Average {score} by anchor strength. The numbers are in the comparison table.",
    ),
    "search": Words(
        "How the anchor was chosen, without a label",
        "The label-free search behind the defaults, not a result: mean squared distance of the quantised "
        "model's features to those of the task's expert, on training samples that calibration did not "
        "use; lower is better. One line per mixing, at {bits} bits; strengths are spaced evenly.",
        "Distance to the experts' features by anchor strength, one line per mixing. The numbers are in "
        "the figure's CSV file.",
    ),
    "frontier": Words(
        "Accuracy against bits per weight: {suite}, {samples} calibration samples a task",
        "Average score in percent by bits stored per quantised weight, scales and zero points included, "
        "one panel per merge, at {samples} calibration samples a task ({machine}); bars are 95 % intervals "
        "of the test samples. Filled markers and the line: the frontier, averages that nothing reaches at "
        "as few bits. A triangle at the lower edge: below it.",
        "Average score of {count} methods on {suite} by bits per weight; on the frontier: {ahead}. The "
        "numbers are in the table and in the figure's CSV file.",
    ),
}
