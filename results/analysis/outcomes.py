"""What a cell did on every test sample, in the form that the statistics take."""

from __future__ import annotations

import numpy as np

from results.analysis.stats import Outcome, Ranked
from results.store.folder import RunFolder
from results.store.samples import PREDICTION, REFERENCE


def outcomes(folder: RunFolder, key: str) -> dict[str, Outcome]:
    """Return the outcome of every task of the cell `key`: right or wrong, or `Ranked` for Spearman's rho.

    Raises
    ------
    ResultError
        where the folder has no such record, or its file of samples can't be used.
    """
    found: dict[str, Outcome] = dict(folder.correct(key))
    predictions = folder.predictions(key)
    for name in predictions:
        task = name.removesuffix(REFERENCE)
        if task != name:
            pair = (predictions[task + end].astype(np.float64) for end in (PREDICTION, REFERENCE))
            found[task] = Ranked(*pair)
    return found
