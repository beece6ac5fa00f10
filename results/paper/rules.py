"""What is tested of each claim and when a test passes: what a verdict is shown with."""

from __future__ import annotations

from typing import Final

from results.paper.findings import FLOOR
from results.paper.losses import MARGIN

RULES: Final = {
    "C1": (
        "C1: E-PMQ minus GPTQ on the same merge, bits, grid, calibration seeds and test samples, in points."
        "\n\n"
        f"Passes where the paired 95 % interval is above 0; fails where it ends below {FLOOR:g} points; "
        "between, the run cannot tell. On a suite, merge and bits that the abstract gives numbers for, the "
        f"size counts: the interval must reach the paper's gain less {FLOOR:g} points, and the test fails "
        "where it does not. Where the abstract names no merge, any one merge that passes is enough."
    ),
    "C2": (
        "C2: E-PMQ minus each of its ablations, in points: without the expert target (GPTQ), without the "
        "anchor; each with the same damping of the rounding.\n\n"
        "Passes where the paired 95 % interval is above 0, so that what was left out had its share in the "
        f"gain; fails where it ends below {FLOOR:g} points; between, the run cannot tell. Counts as not run "
        "where one of the two ablations is missing."
    ),
    "C3": (
        "C3: whether rounding nearer to the experts costs more of the rounding's own deviation.\n\n"
        "With the mean squared deviations of a layer's outputs, E of the quantised weight from the "
        "calibration's targets, M of the merged weight from them, and R of the quantised weight from the "
        "centre that was rounded (the merged weight for the plain rounding, W* for E-PMQ): the move from "
        "the merged weight to W* is no part of R, so that an unrounded W* measures nothing. Each cell is on "
        "its own inputs and so relative to its own M; reading B's targets are the experts' own features, the "
        "plain rounding's are the experts' weights on its inputs. E and R trade off at a layer where E-PMQ "
        "has the lower E / M and the higher R / M of the two. Layers in sequence are no independent samples, "
        "so this is a description and no test: it passes where more than half of the layers trade off under "
        "every draw, fails where they do under none, and cannot tell where draws differ.\n\n"
        "The note gives the means over layers of E / M, of R / M and of the cosine (E - C - R) / (2 sqrt(C "
        "R)), C being the centre's deviation from the targets: 0 where rounding errors ignore the experts."
    ),
    "C4": (
        "C4: every task of E-PMQ against the same rounding without E-PMQ (the merged target).\n\n"
        f"A loss of more than {MARGIN:g} points on a task counts. Passes where the 95 % interval of the "
        "paired change rules such a loss out on every task, fails where it shows one on any task, and cannot "
        "tell otherwise: a run with too few samples supports nothing. That every task must pass makes it an "
        "intersection-union test, which keeps its level without an adjustment for their number (Berger "
        "1982). Intervals are of the hierarchical bootstrap over samples and draws, and of accuracies no "
        "narrower than Agresti and Min's (2005)."
    ),
    "C5": (
        "C5: joint calibration against two steps: E-PMQ minus its own target W* put in place in full "
        "precision and then rounded by GPTQ (two-step, of reading A two-step-weights), same reading, merge "
        "and bits, in points. The claim is ours: the abstract's thesis, not its wording.\n\n"
        f"Passes where the paired 95 % interval is above 0; fails where it ends below {FLOOR:g} points; "
        "between, the run cannot tell."
    ),
}
