"""Loads what ``made.py`` wrote by plain ``from_pretrained``, without epmq.

``python probe.py DIR FILE`` writes versions and, of every case, the greatest difference of its output to the
dense folder's, or why it does not load, as JSON.
"""

import importlib.metadata
import importlib.util
import json
import pathlib
import sys
from typing import Any

import torch
import transformers


def output(model: Any, case: dict[str, Any]) -> Any:
    """What a model makes of random inputs, the same for every model of a case."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        if case["architecture"] == "CLIPModel":
            found = model.get_image_features(pixel_values=torch.randn(4, 3, 16, 16, generator=g))
            return getattr(found, "pooler_output", found)
        if case["architecture"] == "CLIPVisionModelWithProjection":
            return model(pixel_values=torch.randn(4, 3, 16, 16, generator=g)).image_embeds
        ids = torch.randint(3, 30, (4, 9), generator=g)
        more = {"decoder_input_ids": ids} if "T5" in case["architecture"] else {}
        return model(input_ids=ids, **more).logits


def held(model: Any) -> int:
    """Bytes of parameters and buffers."""
    return sum(x.nbytes for x in [*model.parameters(), *model.buffers()])


def tried(folder: pathlib.Path, case: dict[str, Any]) -> dict[str, Any]:
    """The outcome of one case."""
    kind = getattr(transformers, case["architecture"])
    dense = kind.from_pretrained(f"{folder}.dense", dtype=torch.float32).eval()
    expected = output(dense, case)
    try:
        model = kind.from_pretrained(folder, dtype=torch.float32).eval()
        found = output(model, case)
    except Exception as error:  # whatever goes wrong is the answer
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
    return {"difference": float((found - expected).abs().max()), "memory": held(model) / held(dense)}


def main(folder: str, file: str) -> None:
    """Entry point."""
    if importlib.util.find_spec("epmq") is not None:
        sys.exit("epmq is installed here, so this would not show that it is not needed")
    transformers.logging.set_verbosity_error()
    packages = ("transformers", "compressed-tensors", "torch")
    cases: list[dict[str, Any]] = []
    for told in sorted(pathlib.Path(folder).glob("*.json")):
        case = json.loads(told.read_text())
        cases.append({**case, **tried(told.with_suffix(""), case)})
    found = {"versions": {name: importlib.metadata.version(name) for name in packages}, "cases": cases}
    pathlib.Path(file).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
