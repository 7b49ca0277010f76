"""Asks the hub or a server which files `hf:…` or `https://…` names, without downloading any.

The Hugging Face hub is asked through huggingface_hub, which knows HF_TOKEN and its token file, HF_ENDPOINT,
HF_HUB_OFFLINE and proxies. Imported when first needed.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from memfit.errors import ModelError, ModelNotFoundError, UsageError, readable
from memfit.headers.impostors import HEAD_BYTES, impostor
from memfit.hub.folder_contents import PICKLES, adapter_of
from memfit.hub.http import RangeReader
from memfit.hub.name_suggestions import download_address, hub_name
from memfit.hub.remote_files import (
    RemoteFile,
    RemoteModel,
    Variant,
    choose,
    clash,
    shard_names,
    stays_inside,
    variants,
)
from memfit.hub.split_pieces import as_piece, how_to_join

__all__ = [
    "Repository",
    "endpoint",
    "find_remote",
    "how_to_access",
    "is_missing",
    "list_repository",
    "page_of",
    "repositories_of",
    "repository_of",
    "token_headers",
]

_TIMEOUT_SECONDS = 20.0
_MOST_LISTED = 100  # repositories of one owner
_NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?::([\w.-]+)|/(.+))?", re.ASCII)
_LARGEST_CONFIG_BYTES = 1_000_000
_TOKENIZER = (  # what transformers reads beside the weights
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


@dataclass(frozen=True, kw_only=True)
class Repository:
    """All files of a repository at one commit."""

    repo: str  # "org/name"
    revision: str  # commit hash
    files: tuple[RemoteFile, ...]

    @property
    def variants(self) -> tuple[Variant, ...]:
        return variants(self.files)

    def model(self, source: str, files: Sequence[RemoteFile]) -> RemoteModel:
        """Of these files, the model that the user called `source`."""
        return RemoteModel(source=source, repo=self.repo, revision=self.revision, files=tuple(files))


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT as it is now, not as it was when huggingface_hub was imported."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def token_headers() -> dict[str, str]:
    """What the hub is sent with each request: the user's token, if there is one."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    return dict(build_hf_headers(library_name="memfit"))


def page_of(repo: str) -> str:
    """The address of the repository's page on the hub."""
    return f"{endpoint()}/{repo}"


def how_to_access(repo: str) -> str:
    """What a user does who may not read a repository's files."""
    return (
        f"accept its terms at {page_of(repo)}, then set HF_TOKEN to a token of that account, or run: "
        "hf auth login"
    )


def is_missing(repo: str) -> str:
    """What to say of a repository that the hub does not show."""
    return (
        f"there is no hf:{repo}, or it is private: see {page_of(repo)}; for a private one set HF_TOKEN, or "
        "run: hf auth login"
    )


def find_remote(model: str) -> RemoteModel:
    """The files of the model that `hf:…` or `https://…` names; asks the server.

    Raises:
        UsageError: the name is malformed, or the repository has no such quantization.
        ModelNotFoundError: there is no such repository or file.
        ModelError: no access, no network, or nothing in it that can be run.
    """
    if not model.startswith("hf:"):
        return _of_url(model)
    repo, label, file = _parse(model)
    found = list_repository(repo)
    if file is not None:
        return _of_file(model, found, file)
    chosen = choose(found.variants, label)
    if len(chosen) > 1:
        raise UsageError(clash(repo, chosen))
    if chosen:
        return found.model(model, chosen[0].files)
    if label is not None:
        labels = ", ".join(dict.fromkeys(one.label for one in found.variants)) or "no GGUF file at all"
        raise UsageError(f"{model}: hf:{repo} has no {label}; it has {labels}")
    return found.model(model, _checkpoint(found))


def list_repository(repo: str) -> Repository:
    """Errors as `find_remote`."""
    from huggingface_hub import HfApi, hf_hub_url

    with _explained(repo):
        info = HfApi(endpoint=endpoint(), library_name="memfit").model_info(
            repo, files_metadata=True, timeout=_TIMEOUT_SECONDS
        )
    revision = info.sha
    if not isinstance(revision, str) or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ModelError(f"hf:{repo}: the hub does not say which commit its files are of")
    files = []
    for one in info.siblings or ():
        name, size = one.rfilename, one.size
        if not stays_inside(name):
            raise ModelError(f"hf:{repo}: the hub lists a file with the name {name!r}")
        sha256 = one.lfs.sha256 if one.lfs else None
        etag = sha256 or one.blob_id
        if not isinstance(size, int) or size < 0 or not etag:
            continue  # no size: neither planned for nor downloaded
        url = hf_hub_url(repo, name, revision=revision, endpoint=endpoint())
        files.append(RemoteFile(name=name, url=url, size_bytes=size, etag=etag, sha256=sha256))
    return Repository(repo=repo, revision=revision, files=tuple(files))


def repository_of(model: str) -> str | None:
    """The repository that MODEL names as a whole, "org/name"; None where it names a file, or none."""
    if not model.startswith("hf:"):
        return None
    repo, label, file = _parse(model)
    return repo if label is None and file is None else None


def repositories_of(owner: str, beginning: str) -> tuple[str, ...]:
    """Repositories of one owner whose names hold a text; none where the hub does not say."""
    from huggingface_hub import HfApi

    try:
        with _explained(owner):
            found = HfApi(endpoint=endpoint(), library_name="memfit").list_models(
                author=owner, search=beginning, limit=_MOST_LISTED
            )
            return tuple(one.id for one in found)
    except ModelError:
        return ()


def _parse(model: str) -> tuple[str, str | None, str | None]:
    """Repository, quantization and file of `hf:org/repo[:QUANT]` or `hf:org/repo/file.gguf`."""
    match = _NAME.fullmatch(model)
    if not match or ".." in model:
        meant = hub_name(model)
        raise UsageError(
            f"{readable(model, kept='')}: a model on the hub is hf:org/repo, hf:org/repo:Q4_K_M or "
            "hf:org/repo/file.gguf" + (f"; this one is {meant}" if meant and meant != model else "")
        )
    return match[1], match[2], match[3]


def _of_file(model: str, found: Repository, name: str) -> RemoteModel:
    known = {file.name: file for file in found.files}
    names = shard_names(name)
    for one in (name, *names):
        if one not in known:
            meant = hub_name(model)
            near = meant if meant and meant != model else _nearest(found, one)
            raise ModelNotFoundError(
                f"{model}: hf:{found.repo} has no file {one}" + (f"; write {near}" if near else "")
            )
    if as_piece(name):
        raise ModelError(_in_parts(found))
    if not name.lower().endswith(".gguf"):
        raise ModelError(f"{model}: name a .gguf file, or the repository for its safetensors")
    return found.model(model, [known[one] for one in names])


def _nearest(found: Repository, name: str) -> str | None:
    """A file of almost that name."""
    models = {file.name.lower(): file.name for file in found.files if file.name.lower().endswith(".gguf")}
    near = difflib.get_close_matches(name.lower(), models, n=1)
    return f"hf:{found.repo}/{models[near[0]]}" if near else None


def _in_parts(found: Repository) -> str:
    joined = how_to_join(file.name for file in found.files)
    return (
        f"hf:{found.repo} holds {joined}, once they are downloaded from {page_of(found.repo)}; memfit "
        "plans and runs the whole"
    )


def _base_of(found: Repository) -> Any:
    """An adapter's configuration, as far as the hub lets it be read."""
    config = next(file for file in found.files if file.name == "adapter_config.json")
    try:
        with RangeReader(config.url, token_headers()) as reader:
            return json.loads(reader.read(0, _LARGEST_CONFIG_BYTES).data)
    except (ModelError, ValueError, RecursionError):
        return None


def _checkpoint(found: Repository) -> tuple[RemoteFile, ...]:
    """The safetensors files of a repository without GGUF, with its config.json and index."""
    known = {file.name: file for file in found.files}
    weights = sorted(name for name in known if name.endswith(".safetensors") and "/" not in name)
    beside = [name for name in ("config.json", "model.safetensors.index.json") if name in known]
    if "config.json" in known and weights:
        text = [name for name in _TOKENIZER if name in known]
        # Read by nobody who does not say --trust-remote-code.
        programs = sorted(name for name in known if name.endswith(".py") and "/" not in name)
        return tuple(known[name] for name in (*beside, *weights, *text, *programs))
    if any(as_piece(name) for name in known):
        raise ModelError(_in_parts(found))
    if "adapter_config.json" in known:
        raise ModelError(f"hf:{found.repo}: {adapter_of(_base_of(found))}")
    if "config.json" not in known and weights:
        raise ModelError(f"hf:{found.repo} holds safetensors, but no config.json, which says what they are")
    if any(name.endswith(PICKLES) for name in known):
        raise ModelError(
            f"hf:{found.repo} holds its weights as Python pickles only, which can run any program when they "
            "are read; memfit refuses them. Look for a repository with .gguf or .safetensors files"
        )
    raise ModelError(f"hf:{found.repo} holds no model: neither .gguf nor config.json with .safetensors files")


def _of_url(given: str) -> RemoteModel:
    url = download_address(given)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"{readable(given, kept='')}: {error}") from None
    name = PurePosixPath(unquote(parts.path)).name
    if not parts.hostname or not name.lower().endswith(".gguf"):
        meant = hub_name(given)
        raise UsageError(
            f"{readable(given, kept='')}: a model's address ends in a .gguf file"
            + (f"; of a repository on the hub write {meant}" if meant else "")
        )
    base = url[: url.index(parts.path) + len(parts.path.rpartition("/")[0]) + 1]
    query = f"?{parts.query}" if parts.query else ""
    files = []
    for shard in shard_names(name):
        address = url if shard == name else f"{base}{shard}{query}"
        with RangeReader(address, key=_key_of(url)) as reader:
            about = reader.read(0, HEAD_BYTES)
        if not about.data.startswith(b"GGUF") and (what := impostor(about.data)):
            raise ModelError(f"{address} is not a GGUF file but {what}")
        files.append(RemoteFile(name=shard, url=address, size_bytes=about.file_bytes, etag=about.etag))
    return RemoteModel(source=given, repo=None, revision=None, files=tuple(files))


def _key_of(url: str) -> str:
    """How a hub's file is asked for with a token, which other servers are never sent."""
    meant = hub_name(url) if "/resolve/" in url else None
    return f"{meant} is asked for with HF_TOKEN" if meant else ""


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """huggingface_hub's errors as ours, with what the user can do."""
    import httpx2
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise ModelError(f"hf:{repo} is gated: {how_to_access(repo)}") from None
    except RepositoryNotFoundError:
        raise ModelNotFoundError(is_missing(repo)) from None
    except OfflineModeIsEnabled:
        raise ModelError(
            f"hf:{repo}: HF_HUB_OFFLINE is set, and it is not among the models on this disk"
        ) from None
    except HFValidationError as error:
        raise UsageError(f"hf:{repo}: {error}") from None
    except HfHubHTTPError as error:
        raise ModelError(f"hf:{repo}: the hub at {endpoint()} answers: {_first_line(error)}") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise ModelError(f"hf:{repo}: cannot reach the hub at {endpoint()}: {_first_line(error)}") from None
    except (ValueError, KeyError, TypeError) as error:  # no JSON, or of another shape
        raise ModelError(f"hf:{repo}: the hub at {endpoint()} sent nonsense: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
