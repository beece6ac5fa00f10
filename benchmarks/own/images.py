"""The workbench of CLIP models and images of one's own."""

from __future__ import annotations

from benchmarks.images.workbench import ImageWorkbench
from benchmarks.own.given import GivenSamples


class OwnImages(GivenSamples, ImageWorkbench):
    """Images without labels; the models' text towers are never read."""
