"""The page of a plan: its structure, that a stranger's text stays text, and how --html and --png end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fakes import make_plan_value, make_spec, make_tier
from gguf_files import tiny_model

from memfit import api, saved_plan
from memfit.cli import plan_picture
from memfit.cli.main import main
from memfit.cli.plan_page import plan_page
from memfit.errors import readable
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.server import page_paths
from memfit.units import GIB, MIB

_VOID = {"meta", "rect", "line"}  # the last two are closed where they begin
_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "footer", "section", "div", "h1", "h2", "h3"),
    *("p", "strong", "small", "span", "bdi", "ul", "li", "dl", "dt", "dd", "svg", "rect", "line"),
}


class _Seen(HTMLParser):
    """Every element in its order, and the text of all that is no style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _VOID
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += f" {data} "

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == tag]


def _seen(plan: LlamaPlan) -> _Seen:
    return _Seen(plan_page(plan))


_GPU = make_tier(256 * MIB, 0, 64 * MIB, 640 * MIB, GIB, name="gpu0")


def test_a_plan_by_hand() -> None:
    """217 MiB of 1,024 in RAM, 960 on the card: parts begin and end at hundredths of the budget."""
    seen = _seen(make_plan_value(devices=(_GPU,)))
    for text in (
        "Toy llama · 0 M parameters · Q8_0 · 100.00 MiB",
        "context 4096 · 1 sequence · KV f16 · ubatch 512 · 6 threads · repack off · mmap Fits the budget.",
        "RAM 217.00 MiB of 1.00 GiB Weights 100.00 MiB KV cache 64.00 MiB Compute buffers 31.00 MiB "
        "Overhead 22.00 MiB Free in the budget 807.00 MiB",
        "gpu0 960.00 MiB of 1.00 GiB more than 90 % of the budget Weights 256.00 MiB Compute buffers "
        "64.00 MiB Overhead 640.00 MiB Free in the budget 64.00 MiB",
        "Prompt 200 tok/s 140 tok/s to 260 tok/s Generation 40.0 tok/s 28.0 tok/s to 52.0 tok/s",
        "Why this plan because",
    ):
        assert text in seen.words
    parts = [
        (one["class"], float(one["x"] or 0), float(one["width"] or 0))
        for one in seen.attributes("rect")
        if "x" in one
    ]
    assert parts == [
        ("weights", 0, 9.766),
        ("kv_cache", 9.766, 6.25),
        ("compute", 16.016, 3.027),
        ("overhead", 19.043, 2.148),
        ("weights", 0, 25),
        ("compute", 25, 6.25),
        ("overhead", 31.25, 62.5),
    ]


def test_it_runs_and_fetches_nothing() -> None:
    seen = _seen(make_plan_value(devices=(_GPU,)))
    assert {tag for tag, _ in seen.elements} <= _TAGS
    names = {name for _, attributes in seen.elements for name in attributes}
    assert not [name for name in names if name.startswith("on") or name in ("href", "src", "style", "action")]
    (policy,) = [one["content"] for one in seen.attributes("meta") if "http-equiv" in one]
    assert policy and policy.startswith("default-src 'none'; style-src 'unsafe-inline';")
    assert not re.search(r"url\(|@import|//", plan_page(make_plan_value()))


@pytest.mark.parametrize(
    ("filled", "level"),
    [(799, ""), (800, "amber"), (899, "amber"), (900, "red"), (1000, "red"), (1001, "over")],
)
def test_a_bar_warns_from_four_fifths_on(filled: int, level: str) -> None:
    seen = _seen(make_plan_value(tier=make_tier(filled, 0, 0, 0, 1000)))
    assert [one["class"] for one in seen.attributes("section")] == [f"tier {level}".strip()]


def test_what_does_not_fit_is_drawn_with_what_is_missing_and_what_would_do() -> None:
    """1.5 GiB of 1: the budget ends at two thirds of the bar."""
    plan = make_plan_value(tier=make_tier(GIB, 0, 0, 512 * MIB, GIB))
    seen = _seen(replace(plan, suggestions=("--ctx 1024", "--kv-type q8_0")))
    said = "Does not fit in RAM : needs 1.50 GiB, budget 1.00 GiB, short 512.00 MiB. What to try:"
    assert f"{said} --ctx 1024 --kv-type q8_0 Memory" in seen.words
    assert "Budget 1.00 GiB Missing 512.00 MiB" in seen.words and "Fits" not in seen.words
    assert [one["x1"] for one in seen.attributes("line")] == ["66.667"]


def test_a_limit_below_the_budget_is_said() -> None:
    """The budget has room, and the machine has not."""
    seen = _seen(make_plan_value(tier=make_tier(800, 0, 0, 0, 1000, limit=700)))
    assert "Does not fit in RAM : needs 800 B, budget 700 B, short 100 B." in seen.words
    assert "Free in the budget 200 B Free on the machine 700 B" in seen.words


_HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</title></style><script>",
    "<!-- ",
    "&lt;b&gt; &amp;",
    "{{ plan }} {% raw %}",
    "a\u202egnirts\u2066\x00\x1b[31m\nb",
    "نموذج",
    "x" * 5000,
)


@pytest.mark.parametrize("text", _HOSTILE, ids=range(len(_HOSTILE)))
def test_a_strangers_text_is_text(text: str) -> None:
    def plan(said: str) -> LlamaPlan:
        spec = make_spec(name=said, architecture=said)
        full = make_tier(GIB, 0, 0, 0, MIB, name=said)
        return replace(make_plan_value(spec, devices=(full,)), why=(said,), suggestions=(said,))

    seen = _seen(plan(text))
    assert [tag for tag, _ in seen.elements] == [tag for tag, _ in _seen(plan("x")).elements]
    shown = " ".join(readable(text, kept="").split())
    assert (
        seen.words.count(shown) >= 6
    )  # the title and the heading, the facts, the tier, the reason, the advice
    assert all(letter.isprintable() or letter == "\n" for letter in plan_page(plan(text)))


def test_its_colours_are_the_servers_pages() -> None:
    style = (Path(page_paths.__file__).parent / "page" / "style.css").read_text(encoding="utf-8")
    colours = re.findall(r"--\w+: #\w+", plan_page(make_plan_value()))
    assert len(colours) > 20
    assert [one for one in colours if one not in style] == []


# --- the command ---


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[LlamaPlan]:
    """What planning gives; taken from the list, so that a test sees whether anything was planned."""
    plans = [make_plan_value()]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "plan", lambda *_, **__: plans.pop())
    monkeypatch.setattr(saved_plan, "read_plan", lambda *_, **__: plans.pop())
    tiny_model().write(tmp_path / "tiny.gguf")
    return plans


def _call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["plan", *arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_the_page_goes_beside_the_output(
    planned: list[LlamaPlan], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("plan.html").write_text("an older one")
    assert _call("tiny.gguf", "--html", "plan.html", "--json") == 0
    assert json.loads(capsys.readouterr().out)["fits"] is True
    assert Path("plan.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in Path().iterdir()) == ["plan.html", "tiny.gguf"]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_what_does_not_fit_ends_with_its_code(planned: list[LlamaPlan], options: list[str]) -> None:
    planned[:] = [make_plan_value(tier=make_tier(GIB, 0, 0, 0, MIB))]
    assert _call("tiny.gguf", "--html", "plan.html", *options) == 3
    assert "Does not fit" in Path("plan.html").read_text(encoding="utf-8")


def test_a_saved_plan_is_drawn(planned: list[LlamaPlan], capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("--plan", "saved.json", "--html", "plan.html") == 0
    assert "Fits the budget" in Path("plan.html").read_text(encoding="utf-8")
    assert _call("--plan", "saved.json", "--machine", "pi-8gb") == 2
    assert "--machine cannot be given beside --plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--html", "none/plan.html"], 6, "there is no folder"),
        (["--html", "x" * 300], 2, "too long"),
        (["--html", "."], 2, "is a folder"),
        (["--html", "-"], 2, "name a file"),
        (["--html", "/dev/null"], 2, "no plain file"),
        (["--html", "tiny.gguf"], 2, "is read while"),
        (["--plan", "tiny.gguf", "--png", "tiny.gguf"], 2, "is read while"),
        (["--html", "a", "--png", "./a"], 2, "both name"),
    ],
)
def test_what_cannot_be_written_is_said_before_planning(
    options: list[str], code: int, said: str, planned: list[LlamaPlan], capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("tiny.gguf").read_bytes()
    assert _call("tiny.gguf", *options) == code
    assert said in capsys.readouterr().err
    assert len(planned) == 1 and Path("tiny.gguf").read_bytes() == before


def test_a_table_of_precisions_is_no_page(
    planned: list[LlamaPlan], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("config.json").write_text('{"model_type": "llama"}')
    assert _call(".", "--html", "plan.html") == 2
    assert "--load-in" in capsys.readouterr().err


# --- the picture ---


@pytest.fixture
def browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in the browser's place; nothing else is on the PATH but a shell's tools."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def write(script: str) -> None:
        file = folder / "chromium"
        file.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        file.chmod(0o755)

    monkeypatch.setenv("PATH", str(folder))
    return write


_MEASURES = 'case "$*" in *--dump-dom*) echo \'<i id="height"><script></script>1234</i>\' ;; esac'
_DRAWS = 'for one; do case $one in --screenshot=*) echo "$@" > "${one#*=}" ;; esac; done'


@pytest.mark.parametrize("user", [0, 1000])
def test_the_picture_is_as_high_as_the_page(
    user: int, browser: Callable[[str], None], planned: list[LlamaPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    browser(f"{_MEASURES}\n{_DRAWS}")
    assert _call("tiny.gguf", "--png", "plan.png", "--html", "plan.html") == 0
    asked = Path("plan.png").read_text().split()
    assert "--window-size=800,1234" in asked
    assert ("--no-sandbox" in asked) == (user == 0)
    assert sorted(path.name for path in Path().iterdir()) == ["bin", "plan.html", "plan.png", "tiny.gguf"]


def test_without_a_browser_it_says_what_to_install(
    planned: list[LlamaPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _call("tiny.gguf", "--png", "plan.png") == 2
    assert "apt-get install chromium; --html works without" in capsys.readouterr().err
    assert len(planned) == 1


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo it broke >&2; exit 3", "made no picture: it broke"),
        ("kill -9 $$", "made no picture: it says nothing"),
        ("echo '<html></html>'", "made no picture: <html></html>"),
        (_MEASURES, "made no picture: it says nothing"),
    ],
)
def test_a_browser_that_fails(
    script: str,
    said: str,
    browser: Callable[[str], None],
    planned: list[LlamaPlan],
    capsys: pytest.CaptureFixture[str],
) -> None:
    browser(script)
    assert _call("tiny.gguf", "--png", "plan.png") == 6
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["bin", "tiny.gguf"]


def test_a_browser_that_hangs_is_ended_with_all_that_it_started(
    browser: Callable[[str], None],
    planned: list[LlamaPlan],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(plan_picture, "_SECONDS", 2.0)
    browser(f"sleep 1000 & echo $! > {tmp_path}/pid; wait")
    assert _call("tiny.gguf", "--png", "plan.png") == 6
    assert "within 2 s; --html works without it" in capsys.readouterr().err
    stat = Path(f"/proc/{int(Path('pid').read_text())}/stat")
    ends = time.monotonic() + 10
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it takes a moment to be ended
        while stat.read_text().split()[2] not in ("Z", "X"):
            assert time.monotonic() < ends
            time.sleep(0.01)
    assert sorted(path.name for path in Path().iterdir()) == ["bin", "pid", "tiny.gguf"]


def test_ended_from_outside_it_leaves_nothing(
    browser: Callable[[str], None], planned: list[LlamaPlan], request: pytest.FixtureRequest
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, before))
    browser("kill -TERM $PPID; sleep 1000")
    assert _call("tiny.gguf", "--png", "plan.png") == 130
    assert sorted(path.name for path in Path().iterdir()) == ["bin", "tiny.gguf"]
