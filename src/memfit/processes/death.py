"""How a helper process died, in words. Knows exit codes and logs, not what the process was for."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping

from memfit.errors import readable

__all__ = ["cause_of_death", "last_words"]

_CAUSES: Mapping[int, str] = {
    signal.SIGKILL: "was killed; most often by the kernel when memory ran out",
    signal.SIGILL: "met an instruction that this CPU lacks: the engine was built for another CPU, for which "
    "memfit doctor gives the command that mends it, or GCC spoilt its AMX kernels (README, Your own engine "
    "build)",
    signal.SIGBUS: "found that a file it had mapped became shorter, or that its disk failed",
}
_LINES = 3  # of a log's end
# The end of a traceback says what failed, on one line or several; what comes before is code, which tells a
# user nothing. An end that is cut off below its last frame is recognised by the exception's name.
_FRAME = re.compile(r' +File ".*", line \d+|Traceback \(most recent call last\):')
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Warning|Interrupt)\b")


def cause_of_death(code: int, more: Mapping[int, str] | None = None) -> str:
    """The end of a sentence, from an exit code as Python gives it; `more` are one process's own causes, by
    signal."""
    if code >= 0:
        return f"exited with code {code}"
    causes = {**_CAUSES, **(more or {})}
    if -code in causes:
        return causes[-code]
    try:
        return f"died of {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"died of signal {-code}"


def last_words(log: bytes) -> str:
    """What a process said last, on one line; nothing if it said nothing."""
    lines = [line for line in log.decode(errors="replace").splitlines() if line.strip()]
    frames = [index for index, line in enumerate(lines) if _FRAME.match(line)]
    told = [line for line in lines[frames[-1] + 1 :] if not line.startswith(" ")] if frames else []
    if told:
        lines = [told[0], *told[1:][1 - _LINES :]]  # the exception's type, and what came last
    elif lines and _EXCEPTION.match(lines[-1]):
        lines = lines[-1:]
    return readable(" / ".join(line.strip() for line in lines[-_LINES:]))
