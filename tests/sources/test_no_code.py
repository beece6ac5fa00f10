"""Nothing of anybody's files is run: no model's own code, no data set's script, no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from benchmarks.images.from_open_clip import open_base
from benchmarks.sources.lock import DatasetLock
from benchmarks.sources.weights import configured
from epmq.checkpoints.lazy import INDEX, LazyCheckpoint
from epmq.errors import UserError
from tests.fixtures.complaints import Output, refused
from tests.fixtures.tiny_suite import Described, TinySuite, first_task


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_a_model_that_names_its_own_code_is_refused(tmp_path: Path, name: str) -> None:
    code = {"model_type": "llama", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / name).write_text(json.dumps(code))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match=r"'auto_map' names code of the model's own, which is never run"):
        configured(tmp_path)
    with pytest.raises(UserError, match=r"'auto_map' names code of the model's own, which is never run"):
        open_base(tmp_path, tmp_path / "open_clip_model.safetensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("form", ["pandas", "pickle", "evil", "../evil.py", ""])
def test_a_lock_names_no_builder_that_runs_what_it_reads(form: str) -> None:
    entry: dict[str, Any] = {
        "id": "a/b",
        "revision": "0" * 40,
        "files": {},
        "config": None,
        "features": None,
        "splits": {},
    }
    assert DatasetLock.model_validate({**entry, "format": "parquet"}).format == "parquet"
    with pytest.raises(ValidationError, match="is none of parquet"):
        DatasetLock.model_validate({**entry, "format": form})


@pytest.mark.usefixtures("nothing_is_computed")
def test_a_script_of_a_data_set_is_not_run(tiny: TinySuite, tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")

    def edit(suite: Described) -> None:
        first_task(suite)["dataset"]["path"] = str(tmp_path / "evil.py")

    said = refused(capsys, tiny.variant(tmp_path / "bad.json", edit), tmp_path / "out")
    assert said.startswith("data set fruit (")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/x.safetensors", "a/../../x.safetensors"])
def test_an_index_names_files_beside_it_alone(tmp_path: Path, shard: str) -> None:
    file = tmp_path / f"model{INDEX}"
    file.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(UserError, match="which is no file beside it"):
        LazyCheckpoint(file)
