#!/usr/bin/env python3
"""Unpack llama.cpp's converter of checkpoints from the engine's sources: 2 MB of Python, and its licence.

scripts/unpack_converter.py ARCHIVE FOLDER
"""

import shutil
import sys
import tarfile
from pathlib import Path

_WANTED = (
    "convert_hf_to_gguf.py",
    "convert_lora_to_gguf.py",
    "conversion/",
    "gguf-py/gguf/",
    "LICENSE",
    "gguf-py/LICENSE",
)


def main() -> int:
    archive, folder = map(Path, sys.argv[1:])
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with tarfile.open(archive) as source:
        for member in source:
            _, _, name = member.name.partition("/vendor/llama.cpp/")
            if not member.isfile() or not name.startswith(_WANTED) or ".." in name.split("/"):
                continue
            target = unfinished / name
            target.parent.mkdir(parents=True, exist_ok=True)
            data = source.extractfile(member)
            assert data
            target.write_bytes(data.read())
    if not (unfinished / _WANTED[0]).is_file():
        print(f"{archive} has no converter", file=sys.stderr)
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
