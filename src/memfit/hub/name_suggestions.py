"""What to type instead of a MODEL that names nothing on this disk.

People bring names from elsewhere: the address of a hub's page, other programs' names, paths of a shell or of
Windows. Looks at the names beside a path; asks no network.
"""

from __future__ import annotations

import difflib
import os
import re
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

from memfit.hub.split_pieces import as_piece

__all__ = ["download_address", "hub_name", "what_was_meant"]

_QUOTES = (
    "\"'`\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}\N{LEFT SINGLE QUOTATION MARK}"
    "\N{RIGHT SINGLE QUOTATION MARK}\N{LEFT-POINTING DOUBLE ANGLE QUOTATION MARK}"
    "\N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK}"
)
_MOST_LISTED = 10_000  # names of a folder that are looked through
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_OTHER_LIBRARY = re.compile(r"ollama(?::(?://)?|/)(.*)", re.IGNORECASE | re.DOTALL)
_TAGGED = re.compile(r"[\w.-]+:[\w.-]+", re.ASCII)  # "llama3.2:1b", as other programs call their models
_WINDOWS = re.compile(r"([A-Za-z]):[\\/](.*)", re.DOTALL)
_HOST = re.compile(r"(?:[\w-]+\.)+[A-Za-z]{2,}(?::\d+)?/", re.ASCII)
_PAGE_OF_FILE = re.compile(
    r"(https?://[^/?#]+/[^/?#]+/[^/?#]+)/blob/([^/?#]+/[^?#]+\.gguf(?:[?#].*)?)", re.IGNORECASE | re.DOTALL
)
_REPOSITORY = re.compile(
    r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*?)"
    r"(?::(?P<label>[\w.-]+)|/(?:(?:blob|resolve|raw|tree)/[^/]+/?)?(?P<file>.+)?)?",
    re.ASCII | re.DOTALL,
)


def hub_name(text: str) -> str | None:
    """An address, a page's path or a name without `hf:` as `hf:org/repo[:TAG][/file.gguf]`; else None."""
    text = text.strip().strip(_QUOTES).strip()
    text = re.sub(r"(?i)^(?:hf|huggingface):(?://)?", "", text)
    host = _SCHEME.match(text)
    text = text[host.end() :] if host else text
    if found := _HOST.match(text):
        text = re.split(r"[?#]", text[found.end() :])[0]
    elif host:
        text = text.partition("/")[2]
    match = _REPOSITORY.fullmatch(unquote(text).rstrip("/"))
    if not match or ".." in match[0] or match["repo"].lower().endswith(".gguf"):
        return None  # or a path
    file = match["file"] or ""
    if file and not file.lower().endswith(".gguf"):
        file = ""  # a page's folder
    return f"hf:{match['repo']}" + (f":{match['label']}" if match["label"] else f"/{file}" if file else "")


def download_address(model: str) -> str:
    """The address of a file, from the address of the hub's page about it
    (`https://host/org/repo/blob/main/x.gguf`); any other MODEL stays as it is."""
    match = _PAGE_OF_FILE.fullmatch(model)
    return f"{match[1]}/resolve/{match[2]}" if match else model


def what_was_meant(model: str) -> str:
    """For a MODEL that names no file here: the rest of the sentence "no such file: MODEL; …"."""
    if not model.strip():
        return "MODEL is empty; it is a path to a .gguf file, hf:org/repo, or demo"
    plain = model.strip().strip(_QUOTES).strip()
    if plain != model and plain:
        return f"without quotes and spaces around it: {plain}"
    return (
        _of_elsewhere(model)
        or _of_a_path(model)
        or _of_the_hub(model)
        or _beside(Path(model))
        or "a model is a path to a .gguf file, hf:org/repo, or demo"
    )


def _of_elsewhere(model: str) -> str | None:
    """Other programs' names and addresses."""
    if found := _OTHER_LIBRARY.fullmatch(model):
        named = (_HOST.match(found[1]) and hub_name(found[1])) or "hf:org/repo:Q4_K_M"
        return f"Ollama's library is not read; on the Hugging Face hub a model is {named}"
    if re.match(r"(?i)(hf|huggingface):", model) and (meant := hub_name(model)):
        return f"on the Hugging Face hub it is {meant}"
    scheme = _SCHEME.match(model)
    if scheme is None:
        if _TAGGED.fullmatch(model):
            return "on the Hugging Face hub a model is hf:org/repo:Q4_K_M"
        return None
    name = scheme[1].lower()
    if name == "file":
        return f"write the path itself: {unquote(urlsplit(model).path)}"
    if name in ("https", "http"):
        return f"write {name}:// in small letters"
    return (
        f"{name}:// is not read; download the file and give its path, or name it by https:// or hf:org/repo"
    )


def _of_a_path(model: str) -> str | None:
    """Paths that a shell or another system would have understood."""
    if model.startswith("~"):
        return f"~ is the shell's, which does not see it inside quotes; write {_home(model)}"
    if windows := _WINDOWS.fullmatch(model):
        inside = windows[2].replace("\\", "/")
        return f"this is a path of Windows; in WSL it is /mnt/{windows[1].lower()}/{inside}"
    if "\\" in model:
        return f"with slashes: {model.replace(chr(92), '/')}"
    return None


def _home(model: str) -> str:
    try:
        return str(Path(model).expanduser())
    except RuntimeError:  # nobody of that name
        return "the whole path"


def _of_the_hub(model: str) -> str | None:
    """`org/repo`, unless its first part is a folder here."""
    first, slash, _ = model.partition("/")
    if not slash or first in ("", ".", "..") or Path(first).is_dir():
        return None
    named = hub_name(model)
    return f"on the Hugging Face hub it is {named}" if named else None


def _beside(path: Path) -> str | None:
    """What lies where the file should be."""
    try:
        if path.is_symlink():
            return f"it is a link to {path.readlink()}, which is not there"
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, _MOST_LISTED)]
    except (OSError, ValueError):
        parents = [parent for parent in path.parents if str(parent) != "."]
        missing = [parent for parent in parents if not os.path.lexists(parent)]
        return f"there is no folder {missing[-1]}" if missing else None
    parts = sorted(name for name in names if (piece := as_piece(name)) and piece.whole == path.name)
    if parts:
        return f"its parts are there: {', '.join(parts)}; memfit plan {path.parent} says how to join them"
    packed = [name for name in names if name.startswith(f"{path.name}.") or name == f"{path.stem}.zip"]
    split = [name for name in names if re.fullmatch(re.escape(path.stem) + r"-\d{5}-of-\d{5}\.gguf", name)]
    models = [name for name in names if name.lower().endswith(".gguf")]
    lowered = {name.lower(): name for name in models}
    near = [lowered[name] for name in difflib.get_close_matches(path.name.lower(), lowered, n=3)]
    found = sorted(split)[:1] or packed[:1] or near
    return f"there is {' and '.join(str(path.with_name(name)) for name in found)}" if found else None
