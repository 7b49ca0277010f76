"""The other side of apart.py."""

from __future__ import annotations

import json
import sys
from typing import Any

from memfit.errors import MemfitError
from memfit.headers.remote.found import find_paths, list_choices


def _tell(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def main() -> int:
    question, name = sys.argv[1:]
    try:
        if question == "paths":
            answer: Any = [str(path) for path in find_paths(name, lambda text: _tell(say=text))]
        else:
            answer = list_choices(name)
    except MemfitError as error:
        _tell(error=type(error).__name__, text=str(error))
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    _tell(answer=answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
