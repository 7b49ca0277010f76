"""Output files are there whole, or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from memfit.errors import OutputError, UsageError
from memfit.quantize.whole_file import whole_file


def test_it_has_its_name_once_it_is_whole(tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    with whole_file(output, [], 5, overwrite=False) as partial:
        partial.write_bytes(b"whole")
        assert not output.exists()
    assert output.read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_of_half_a_file(tmp_path: Path, error: type[BaseException]) -> None:
    output = tmp_path / "out.gguf"
    output.write_bytes(b"before")
    with pytest.raises(error), whole_file(output, [], 5, overwrite=True) as partial:
        partial.write_bytes(b"ha")
        raise error
    assert output.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_what_a_killed_memfit_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "out.gguf.partial").write_bytes(b"much of another file")
    with whole_file(tmp_path / "out.gguf", [], 5, overwrite=False) as partial:
        assert partial.read_bytes() == b""
        partial.write_bytes(b"whole")
    assert (tmp_path / "out.gguf").read_bytes() == b"whole"


@pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
def test_a_source_is_not_written_over(tmp_path: Path, link: str) -> None:
    source = output = tmp_path / "model.gguf"
    source.write_bytes(b"model")
    if link != "same":
        output = tmp_path / "other.gguf"
        (os.symlink if link == "symbolic" else os.link)(source, output)
    with (
        pytest.raises(UsageError, match="is read while"),
        whole_file(output, [source], 1, overwrite=True),
    ):
        pass
    assert source.read_bytes() == b"model"


def test_a_source_that_is_called_as_a_half_file_is_not_written_over(tmp_path: Path) -> None:
    """Downloads that are not done often have such names."""
    source = tmp_path / "model.gguf.partial"
    source.write_bytes(b"model")
    with (
        pytest.raises(UsageError, match=r"model\.gguf\.partial is read while"),
        whole_file(tmp_path / "model.gguf", [source], 1, overwrite=True),
    ):
        pass
    assert source.read_bytes() == b"model"


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_strangers_half_file_is_neither_followed_nor_waited_for(tmp_path: Path, kind: str) -> None:
    victim, partial = tmp_path / "victim", tmp_path / "out.partial"
    victim.write_bytes(b"victim")
    if kind == "link":
        partial.symlink_to(victim)
    else:
        os.mkfifo(partial)
    with (
        pytest.raises(OutputError, match=r"out\.partial"),
        whole_file(tmp_path / "out", [], 1, overwrite=True),
    ):
        pass
    assert victim.read_bytes() == b"victim" and not (tmp_path / "out").exists()


def test_a_file_is_replaced_only_if_that_is_asked_for(tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    output.write_bytes(b"before")
    with pytest.raises(UsageError, match="--overwrite"), whole_file(output, [], 1, overwrite=False):
        pass
    with whole_file(output, [], 1, overwrite=True) as partial:
        partial.write_bytes(b"after")
    assert output.read_bytes() == b"after"


def test_a_folder_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="folder"), whole_file(tmp_path, [], 1, overwrite=True):
        pass


def test_what_is_no_plain_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for output in (tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(UsageError, match="no plain file"), whole_file(output, [], 1, overwrite=True):
            pass
    assert (tmp_path / "fifo").is_fifo()


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link.gguf"
    link.symlink_to("folder/real.gguf")
    with whole_file(link, [], 5, overwrite=False) as partial:
        assert partial.parent.name == "folder"
        partial.write_bytes(b"whole")
    assert link.is_symlink() and (tmp_path / "folder" / "real.gguf").read_bytes() == b"whole"
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    with (
        pytest.raises(OutputError, match="leads to itself"),
        whole_file(tmp_path / "loop.gguf", [], 5, overwrite=False),
    ):
        pass


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="there is no folder"),
        whole_file(tmp_path / "no" / "out.gguf", [], 1, overwrite=False),
    ):
        pass


def test_a_disk_without_room_is_found_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with (
        pytest.raises(OutputError, match="short 1 B"),
        whole_file(tmp_path / "out.gguf", [], 101, overwrite=False),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == []


def test_two_do_not_write_the_same(tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    with whole_file(output, [], 5, overwrite=False) as partial:
        partial.write_bytes(b"whole")
        with (
            pytest.raises(OutputError, match="another memfit"),
            whole_file(output, [], 5, overwrite=False),
        ):
            pass
        assert partial.read_bytes() == b"whole"
    assert output.read_bytes() == b"whole"
