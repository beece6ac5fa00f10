"""A file that is replaced is the old one or the new one, never a part of either."""

from __future__ import annotations

from pathlib import Path

import pytest

from epmq.files import replacing


def test_what_is_written_takes_the_place_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ("first", "second"):
        with replacing(path) as temporary:
            temporary.write_text(content)
            assert path.exists() == (content == "second"), "nothing happens to the file within the block"
        assert path.read_text() == content
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def torn() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        torn()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    elsewhere, path = tmp_path / "elsewhere", tmp_path / "file"
    elsewhere.write_text("untouched")
    path.symlink_to(elsewhere)
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert (path.read_text(), path.is_symlink()) == ("new", False)
    assert elsewhere.read_text() == "untouched"


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as temporary:
        left = temporary
        temporary.write_text("first")
    left.write_text("torn")
    with replacing(path) as temporary:
        assert temporary == left
        assert not temporary.exists()
        temporary.write_text("second")
    assert path.read_text() == "second"
