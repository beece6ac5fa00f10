"""Small made-up pictures that belong to classes, in the formats and pixel modes of the data sets."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

Mode = Literal["RGB", "L", "P", "RGBA", "CMYK"]
Format = Literal["PNG", "JPEG"]
SHADES = 4  # a class is known by 4 x 4 patches of colour
NOISE = 24.0  # standard deviation of what differs between samples of a class, in grey levels
TRUNCATED_EXIF = (
    b"Exif\0\0II*\0\x08\0\0\0\x05\0"  # announces five entries and has none; Pillow warns and goes on
)
ROTATED_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6


@dataclass(frozen=True)
class Picture:
    """An encoded image file."""

    data: bytes
    suffix: str


def generator(*names: object) -> np.random.Generator:
    """A source of randomness of its own for whatever the names name."""
    digest = hashlib.sha256(" ".join(map(str, names)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest[:16], dtype=np.uint32))


def draw(task: str, label: int, sample: str, size: tuple[int, int]) -> Image.Image:
    """An RGB image of a class, of ``size`` (width, height): the class's shades with noise over them."""
    shades = generator(task, label).integers(0, 256, (SHADES, SHADES, 3)).astype(np.uint8)
    large = np.asarray(Image.fromarray(shades).resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
    noisy = large + NOISE * generator(task, label, sample).standard_normal(large.shape)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def encode(image: Image.Image, mode: Mode, form: Format, exif: bytes = b"") -> Picture:
    """The file of an image in a pixel mode; JPEG has no palette and no alpha, PNG no CMYK."""
    form = {"CMYK": "JPEG", "P": "PNG", "RGBA": "PNG"}.get(mode, form)  # type: ignore[assignment]
    converted = image.quantize(64) if mode == "P" else image.convert(mode)
    buffer = io.BytesIO()
    converted.save(buffer, form, **({"exif": exif} if exif else {}))
    return Picture(buffer.getvalue(), {"PNG": "png", "JPEG": "jpg"}[form])
