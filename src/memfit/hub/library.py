"""The models on this disk, in the Hugging Face cache and from plain URLs: lists, finds and deletes them.

Asks no network. A model is complete when all its files have their full size: memfit verifies its own
downloads before they get their names, and trusts those of other programs.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from memfit.errors import ModelError, ModelNotFoundError, UsageError
from memfit.hub.cache_layout import cache_paths, hub_cache, urls_folder
from memfit.hub.download import read_facts
from memfit.hub.name_suggestions import download_address
from memfit.hub.remote_files import RemoteFile, RemoteModel, choose, clash, shard_names, variants

if TYPE_CHECKING:
    from huggingface_hub import CachedFileInfo, CachedRepoInfo, HFCacheInfo

__all__ = ["LocalModel", "find_local", "local_files", "local_models", "matching", "remove"]

_PARTIAL = ".incomplete"
_NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?::([\w.-]+))?", re.ASCII)
_Kind = Literal["gguf", "safetensors"]


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """A model on this disk, or what an interrupted download left of one."""

    name: str  # usable as MODEL
    repo: str | None  # "org/name"; None for what came from a URL
    kind: _Kind | Literal["partial"]
    paths: tuple[Path, ...]  # files, in shard order, a config.json first; the newest revision's
    size_bytes: int  # on the disk, all its revisions together
    last_used: float | None = None  # Unix time by the file system, which may be a day late
    complete: bool = False


def local_files(model: RemoteModel) -> tuple[Path, ...] | None:
    """The files of this model, in its order, if all are here in this content and with their full size."""
    paths = []
    for file in model.files:
        cached = cache_paths(model, file)
        if cached.facts and not cached.facts.is_file():
            return None
        try:
            if cached.shown.stat().st_size != file.size_bytes:
                return None
        except OSError:
            return None
        paths.append(cached.shown)
    return tuple(paths)


def local_models() -> tuple[LocalModel, ...]:
    """Every model that is here, by name."""
    found = [*_hub_models(_scan()), *_url_models()]
    return tuple(sorted(found, key=lambda one: (one.name, one.kind)))


def find_local(model: str) -> tuple[Path, ...] | None:
    """The files of the whole model that `hf:…` or a URL names, as they are here; asks no network.

    So it may be older than the network's. `hf:org/repo[:QUANT]` chooses among what is here only.
    """
    model = download_address(model)
    whole = [one for one in local_models() if one.complete]
    gguf = {one.name: one for one in whole if one.kind == "gguf"}
    chosen = model if model in gguf else _chosen(model, gguf.values())
    if chosen:
        return gguf[chosen].paths
    return next((one.paths for one in whole if one.name == model), None)


def remove(model: str) -> int:
    """Delete a model by the name that `local_models` gives it, or by `hf:org/repo[:QUANT]`. Bytes freed.

    `hf:org/repo` alone means all that is here of the repository. Content that another model also uses stays.

    Raises:
        ModelNotFoundError: no such model is here.
        UsageError: the name means several.
        ModelError: it is being downloaded now, or cannot be deleted.
    """
    return _remove_url(model) if model.startswith(("https://", "http://")) else _remove_hub(model)


def matching(model: str) -> tuple[LocalModel, ...]:
    """What `remove` would delete. Errors as `remove`."""
    models = local_models()
    model = download_address(model)
    exact = [one for one in models if model == one.name or (one.repo and model == f"hf:{one.repo}")]
    if not exact:
        label = _chosen(model, [one for one in models if one.kind == "gguf"])
        exact = [one for one in models if one.name == label]
    if not exact:
        raise ModelNotFoundError(f"{model} is not on this disk; memfit models lists what is")
    return tuple(exact)


def _chosen(model: str, models: Iterable[LocalModel]) -> str | None:
    """The name that `hf:org/repo[:QUANT]` means among GGUF models.

    Raises:
        UsageError: it means several.
    """
    match = _NAME.fullmatch(model)
    if not match:
        return None
    repo, label = match[1], match[2]
    listed = []
    for one in models:
        if one.repo == repo:
            first, *others = shard_names(one.name.removeprefix(f"hf:{repo}/"))
            for name, size in ((first, one.size_bytes), *((other, 0) for other in others)):
                listed.append(RemoteFile(name=name, size_bytes=size))
    found = choose(variants(listed), label)
    if len(found) > 1:
        raise UsageError(clash(repo, found))
    return f"hf:{repo}/{found[0].files[0].name}" if found else None


def _scan() -> HFCacheInfo | None:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return scan_cache_dir(hub_cache())
    except CacheNotFound:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read the models in {hub_cache()}: {error}") from None


def _hub_models(cache: HFCacheInfo | None) -> Iterable[LocalModel]:
    if cache is None:
        return
    for repo in cache.repos:
        if repo.repo_type == "model" and "/" in repo.repo_id:  # MODEL always names an owner
            for (name, kind), files in _grouped(repo).items():
                yield _hub_model(name, repo.repo_id, kind, files)
    partials: dict[str, list[Path]] = defaultdict(list)
    for one in cache.incomplete_files:
        partials[one.file_path.parts[-3]].append(one.file_path)
    for folder, paths in partials.items():
        name = folder.removeprefix("models--").replace("--", "/")
        if folder.startswith("models--") and "/" in name:
            yield _partial(f"hf:{name}", name, sorted(paths))


def _grouped(repo: CachedRepoInfo) -> dict[tuple[str, _Kind], list[CachedFileInfo]]:
    """The files of each model, of all revisions, the newest revision's first."""
    groups: dict[tuple[str, _Kind], list[CachedFileInfo]] = defaultdict(list)
    # By its folder: its last_modified is that of the content, which revisions may share.
    for revision in sorted(repo.revisions, key=lambda one: -one.snapshot_path.stat().st_mtime):
        # By a checkpoint's config.json it is known what it is.
        files = sorted(revision.files, key=lambda one: (one.file_name != "config.json", str(one.file_path)))
        is_checkpoint = any(one.file_name.endswith(".safetensors") for one in files)
        for one in files:
            path = one.file_path.relative_to(revision.snapshot_path).as_posix()
            if path.lower().endswith(".gguf"):
                groups[f"hf:{repo.repo_id}/{shard_names(path)[0]}", "gguf"].append(one)
            elif is_checkpoint:
                groups[f"hf:{repo.repo_id}", "safetensors"].append(one)
    return groups


def _hub_model(name: str, repo: str, kind: _Kind, files: Sequence[CachedFileInfo]) -> LocalModel:
    newest = _snapshot(files[0])
    paths = tuple(one.file_path for one in files if _snapshot(one) == newest)
    here = {path.name for path in paths}
    weights = [each for each in here if each.lower().endswith((".gguf", ".safetensors"))]
    return LocalModel(
        name=name,
        repo=repo,
        kind=kind,
        paths=paths,
        size_bytes=sum({one.blob_path: one.size_on_disk for one in files}.values()),
        last_used=max(one.blob_last_accessed for one in files),
        complete=all(shard in here for one in weights for shard in shard_names(one)),
    )


def _snapshot(file: CachedFileInfo) -> str:
    parts = file.file_path.relative_to(hub_cache().expanduser().resolve()).parts
    return parts[2]  # models--org--name, snapshots, commit


def _partial(name: str, repo: str | None, paths: Sequence[Path]) -> LocalModel:
    sizes = []
    for path in paths:
        with suppress(OSError):  # finished in the meantime
            sizes.append(path.stat().st_size)
    return LocalModel(name=name, repo=repo, kind="partial", paths=tuple(paths), size_bytes=sum(sizes))


def _url_models() -> Iterable[LocalModel]:
    for folder in sorted(urls_folder().glob("*/*/")):
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
        partials = sorted(folder.glob(f"*{_PARTIAL}"))
        facts = [read_facts(path.with_name(f"{path.name}.json")) for path in files]
        if files and all("url" in one for one in facts):
            status = [path.stat() for path in files]
            shards = shard_names(files[0].name)
            yield LocalModel(
                name=facts[0]["url"],
                repo=None,
                kind="gguf",
                paths=tuple(files),
                size_bytes=sum(one.st_size for one in status),
                last_used=max(one.st_atime for one in status),
                complete=shards == tuple(path.name for path in files),
            )
        elif partials:
            about = read_facts(folder / f"{partials[0].name.removesuffix(_PARTIAL)}.json")
            yield _partial(about.get("url", str(folder)), None, partials)


def _remove_hub(model: str) -> int:
    chosen = matching(model)
    cache = _scan()
    if cache is None:
        raise ModelNotFoundError(f"{model} is not on this disk any more")
    freed = 0
    for path in (path for one in chosen if one.kind == "partial" for path in one.paths):
        etag = path.name.partition(".")[0]
        with _unused(hub_cache() / ".locks" / path.parts[-3] / f"{etag}.lock", model), suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            freed += size
    names = {one.name for one in chosen}
    groups = [group for repo in cache.repos for key, group in _grouped(repo).items() if key[0] in names]
    strategy = cache.delete_files(*(file for group in groups for file in group))
    strategy.execute()
    left = [file for file in strategy.files | strategy.blobs if file.is_symlink() or file.exists()]
    if left:
        raise ModelError(f"cannot delete {left[0]}: see the rights of that folder")
    _remove_empty({one.repo for one in chosen})
    return freed + strategy.expected_freed_size


@contextmanager
def _unused(lock: Path, model: str) -> Iterator[None]:
    """Hold a download's lock, if nobody does."""
    from filelock import FileLock, Timeout

    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise ModelError(f"{model} is being downloaded by another program; stop that first") from None


def _remove_empty(repos: Set[str | None]) -> None:
    """Of these repositories, those that hold nothing any more."""
    cache = _scan()
    for repo in cache.repos if cache else ():
        partial = any((repo.repo_path / "blobs").glob(f"*{_PARTIAL}"))
        is_model = repo.repo_type == "model" and repo.repo_id in repos
        if is_model and not partial and not any(revision.files for revision in repo.revisions):
            shutil.rmtree(repo.repo_path, ignore_errors=True)


def _remove_url(model: str) -> int:
    chosen = matching(model)
    for folder in {one.paths[0].parent.parent for one in chosen}:  # with all that the URL ever held
        with _unused(folder / ".lock", model):
            try:
                shutil.rmtree(folder)
            except OSError as error:
                raise ModelError(f"cannot delete {error.filename}: {error.strerror}") from None
    return sum(one.size_bytes for one in chosen)
