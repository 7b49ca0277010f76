"""The page of `memfit serve` in a real browser: what it loads, paints, computes and holds.

    python benchmarks/page.py [loading] [answers] [memory] [tabs] [server] [prices]  (all where none is named)

- loading: bytes and requests of a first visit, then of every room; first paint on a CPU four times slower
- answers: share of a core while answers of one block come at 100 tokens a second, and while nothing comes
- memory: heap and listeners after each of five answers of 3,000 tokens
- tabs: ten of them, each answered in turn and then looked at
- server: the share of a core of the process that serves while the model answers, by its speed
- prices: 50 moves of the sliders, each from the move until the bars show its price; the page's share of that

Answers of a chosen shape and speed come from a stand-in: the page's own files by the server's own routes,
with /plan and /activity as `memfit serve demo` told them. Needs playwright (the extra "test") and chromium.
Wall times need an idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from random import Random
from statistics import median, quantiles
from typing import Any

import psutil
import uvicorn
from playwright.sync_api import CDPSession, Page, sync_playwright
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from subjects import MEMFIT

from memfit.server.page_paths import page_routes

KB, MB = 1000, 1000**2
RATE = 100  # tokens a second
TOKEN = 4  # characters
SECONDS = 20
LONG = 3000  # tokens
SLOWER = 4
TABS = 10
MOVES = 50
LINES = {  # of one block each, without end
    "code": "    total_{0} = measure(rows[{0}], 'text', scale=0.5)  # row {0}\n",
    "list": "- item {0} with **strong** words and `code` in it\n",
    "paragraph": "Sentence {0} has *some* words of a paragraph that never ends. ",
    "table": "| {0} | a cell of words | `{0}` |\n",
    "blocks": "## Part {0}\n\nWords.\n\n```python\nx = {0}\n```\n\n- one\n- two\n\n",
}
BEGINNINGS = {"code": "```python\n", "table": "| a | b | c |\n| --- | --- | --- |\n"}
ASKED = ("/plan", "/activity", "/completions", "/api/tags")  # no files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parts: dict[str, Callable[..., Iterator[tuple[str, str, str, bool]]]] = {
        "loading": loading,
        "answers": answers,
        "memory": memory,
        "tabs": tabs,
        "server": server,
        "prices": prices,
    }
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[*parts, []])
    chosen = parser.parse_args().parts or list(parts)
    missed = 0
    print("| what | measured | bar | |\n| --- | --- | --- | --- |", flush=True)
    with memfit_serve() as (real, process), sync_playwright() as driver:
        told = {path: ask(f"{real}/{path}") for path in ("plan", "activity")}
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--enable-precise-memory-info"]
        )
        with stand_in(told) as address, closing(browser):
            for name in chosen:
                where = {"server": (real, process), "prices": (real,)}.get(name, (address,))
                for what, measured, bar, met in parts[name](browser, *where):
                    missed += not met
                    print(f"| {what} | {measured} | {bar} | {'' if met else 'missed'} |", flush=True)
    return int(missed > 0)


# -- the servers


@contextmanager
def memfit_serve() -> Iterator[tuple[str, psutil.Process]]:
    command = [*MEMFIT, "serve", "demo", "--port", "0", "--ctx", "4096"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            yield (
                next(line.split()[-1] for line in process.stderr if "ready: " in line),
                psutil.Process(process.pid),
            )
        finally:
            process.terminate()
            process.communicate(timeout=60)


def ask(url: str) -> Any:
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


@contextmanager
def stand_in(told: dict[str, Any]) -> Iterator[str]:
    """A server whose answers have the shape, the tokens and the speed that a message names."""

    async def chat(request: Request) -> Response:
        shape, tokens, rate = (await request.json())["messages"][-1]["content"].split()
        return StreamingResponse(events(shape, int(tokens), float(rate)), media_type="text/event-stream")

    async def tell(request: Request) -> Response:
        return JSONResponse(told[request.url.path.strip("/")])

    routes = [Route(f"/{path}", tell) for path in told]
    routes += [Route("/v1/chat/completions", chat, methods=["POST"]), *page_routes()]
    config = uvicorn.Config(
        Starlette(routes=routes), port=0, log_level="warning", timeout_graceful_shutdown=1
    )
    serving = uvicorn.Server(config)
    thread = threading.Thread(target=serving.run)
    thread.start()
    try:
        while not serving.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{serving.servers[0].sockets[0].getsockname()[1]}"
    finally:
        serving.should_exit = True
        thread.join()


async def events(shape: str, tokens: int, rate: float) -> AsyncIterator[str]:
    began, timings = time.monotonic(), {"predicted_per_second": rate}
    text = answer_text(shape, tokens)
    for number in range(tokens):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        delta = {"content": text[TOKEN * number : TOKEN * (number + 1)]}
        yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}], 'timings': timings})}\n\n"
    usage = {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": tokens + 3}
    yield f"data: {json.dumps({'choices': [], 'usage': usage, 'timings': timings})}\n\ndata: [DONE]\n\n"


def answer_text(shape: str, tokens: int) -> str:
    found, numbers = BEGINNINGS.get(shape, ""), itertools.count(1)
    while len(found) < TOKEN * tokens:
        found += LINES[shape].format(next(numbers))
    return found[: TOKEN * tokens]


# -- the page


@contextmanager
def opened(browser: Any, address: str) -> Iterator[tuple[Page, CDPSession]]:
    """As a new user has it, once it can be written to."""
    with closing(browser.new_context(viewport={"width": 1200, "height": 800})) as context:
        page = context.new_page()
        session = context.new_cdp_session(page)
        page.goto(address)
        page.wait_for_selector(".composer")
        yield page, session


def say(page: Page, text: str) -> None:
    page.fill(".composer textarea", text)
    page.keyboard.press("Enter")


def answered(page: Page, count: int) -> None:
    page.wait_for_function(
        "count => document.querySelectorAll('.message.assistant .tools').length === count",
        arg=count,
        timeout=300_000,
    )


def metrics(session: CDPSession, *, collects: bool = False) -> dict[str, float]:
    session.send("Performance.enable")
    if collects:
        session.send("HeapProfiler.collectGarbage")
    return {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}


class Cores:
    """CPU seconds of this browser's renderers; they are few, and those that idle add nothing."""

    def __init__(self) -> None:
        self._renderers = [
            one
            for one in psutil.Process().children(recursive=True)
            if "--type=renderer" in " ".join(one.cmdline())
        ]
        self._began, self._before = time.monotonic(), self._seconds()

    def _seconds(self) -> float:
        times = [one.cpu_times() for one in self._renderers if one.is_running()]
        return sum(one.user + one.system for one in times)

    def share(self) -> float:
        return (self._seconds() - self._before) / (time.monotonic() - self._began)


# -- what is measured: what, measured, bar, whether it is met


def loading(browser: Any, address: str) -> Iterator[tuple[str, str, str, bool]]:
    with closing(browser.new_context()) as context:
        page = context.new_page()
        session = context.new_cdp_session(page)
        session.send("Network.enable")
        urls: dict[str, str] = {}
        sizes: dict[str, int] = {}

        def ask_for(event: dict[str, Any]) -> None:
            urls[event["requestId"]] = event["request"]["url"]

        def count(event: dict[str, Any]) -> None:
            url = urls[event["requestId"]]
            if url.startswith("http") and not url.endswith(ASKED):
                sizes[event["requestId"]] = event["encodedDataLength"]

        session.on("Network.requestWillBeSent", ask_for)
        session.on("Network.loadingFinished", count)
        page.goto(address)
        page.wait_for_selector(".composer")
        page.wait_for_load_state("networkidle")
        first = dict(sizes)
        say(page, "code 30 100")
        page.wait_for_selector(".code-number")
        for room in page.eval_on_selector_all("nav a", "links => links.map(link => link.hash)"):
            page.click(f"nav a[href='{room}']")
            page.wait_for_selector(f"nav a[href='{room}'][aria-current=page]")
            if room == "#activity":
                page.wait_for_selector(".chart canvas")
            page.wait_for_timeout(500)
    outside = sorted(url for url in urls.values() if not url.startswith((address, "data:", "blob:")))
    first_bytes, whole_bytes = sum(first.values()), sum(sizes.values())
    said = f"{first_bytes / KB:.1f} KB, {len(first)} requests"
    yield "first visit", said, "60 KB, 16 requests", first_bytes <= 60 * KB and len(first) <= 16
    said = f"{whole_bytes / KB:.1f} KB, {len(sizes)} requests"
    yield "every room, and code in colours", said, "130 KB", whole_bytes <= 130 * KB
    yield "requests to elsewhere", ", ".join(outside) or "none", "none", not outside
    paints, usable = [], []
    for _ in range(5):
        with closing(browser.new_context()) as context:
            page = context.new_page()
            context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
            page.goto(address)
            page.wait_for_selector(".composer")
            usable.append(page.evaluate("() => performance.now()"))
            first_paint = "() => performance.getEntriesByName('first-contentful-paint')[0].startTime"
            paints.append(page.evaluate(first_paint))
    said = f"{median(paints):.0f} ms; can be written to after {median(usable):.0f}"
    yield f"first paint, CPU {SLOWER} times slower", said, "1,000 ms", median(paints) <= 1000


def answers(browser: Any, address: str) -> Iterator[tuple[str, str, str, bool]]:
    with opened(browser, address) as (page, session):
        page.wait_for_timeout(2000)
        cores = Cores()
        page.wait_for_timeout(1000 * SECONDS)
        share = cores.share()
        yield "idle page", f"{share:.1%} of a core", "2 %", share <= 0.02
    for shape in LINES:
        with opened(browser, address) as (page, session):
            cores, before = Cores(), metrics(session)
            say(page, f"{shape} {RATE * SECONDS} {RATE}")
            page.wait_for_timeout(1000 * SECONDS)
            share, after = cores.share(), metrics(session)
            names = ("ScriptDuration", "LayoutDuration", "TaskDuration")
            script, layout, task = ((after[name] - before[name]) / SECONDS for name in names)
            answered(page, 1)
            said = f"{share:.1%} of a core (main thread {task:.1%}: script {script:.1%}, layout {layout:.1%})"
            yield f"{shape}, {RATE} tok/s for {SECONDS} s", said, "20 %", share <= 0.2


def memory(browser: Any, address: str) -> Iterator[tuple[str, str, str, bool]]:
    with opened(browser, address) as (page, session):
        say(page, "blocks 100 1000")  # what is loaded once
        answered(page, 1)
        before = metrics(session, collects=True)
        heaps, listeners = [], []
        for number, shape in enumerate(LINES, 2):
            say(page, f"{shape} {LONG} 1000")
            answered(page, number)
            page.wait_for_timeout(1000)
            after = metrics(session, collects=True)
            heaps.append(after["JSHeapUsedSize"] - before["JSHeapUsedSize"])
            listeners.append(after["JSEventListeners"] - before["JSEventListeners"])
            before = after
    said = ", ".join(f"{shape} {heap / MB:.2f}" for shape, heap in zip(LINES, heaps, strict=True))
    yield f"heap of an answer of {LONG} tokens, MB", said, "1 MB", max(heaps) <= MB
    yield (
        "listeners of an answer more",
        ", ".join(f"{one:.0f}" for one in listeners),
        "the same",
        (len(set(listeners)) == 1),
    )


def tabs(browser: Any, address: str) -> Iterator[tuple[str, str, str, bool]]:
    waits = []
    with closing(browser.new_context()) as context:
        pages = [context.new_page() for _ in range(TABS)]
        for page in pages:
            page.goto(f"{address}#activity")
            page.wait_for_selector(".chart canvas")
        for page in pages:
            page.bring_to_front()
            began = time.monotonic()
            page.click("nav a[href='#chat']")
            page.click("text=New conversation")
            say(page, "blocks 20 100")
            answered(page, 1)
            waits.append(time.monotonic() - began)
    said = f"{median(waits):.1f} s, at most {max(waits):.1f} s"
    yield f"{TABS} tabs: a short answer in each", said, "2 s", max(waits) <= 2


def server(browser: Any, address: str, process: psutil.Process) -> Iterator[tuple[str, str, str, bool]]:
    with opened(browser, address) as (page, _):
        page.wait_for_timeout(1000)
        page.click("summary")
        page.fill("input[max='131072']", "1500")  # tokens at most
        page.keyboard.press("Tab")
        idle = -seconds_of(process)
        page.wait_for_timeout(5000)
        idle = (idle + seconds_of(process)) / 5
        tokens, busy, began = -generated(address), -seconds_of(process), time.monotonic()
        say(page, "Write a very long story about the sea and its people.")
        answered(page, 1)
        seconds = time.monotonic() - began
        tokens, busy = tokens + generated(address), busy + seconds_of(process)
    each = (busy - idle * seconds) / tokens
    said = f"{busy / seconds:.1%} of a core at {tokens / seconds:.0f} tok/s, {idle:.1%} idle"
    yield "the process that serves", said, "5 %", busy / seconds <= 0.05
    at_rate = idle + RATE * each
    yield f"the same, from both to {RATE} tok/s", f"{at_rate:.1%} of a core", "5 %", at_rate <= 0.05


def seconds_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def generated(address: str) -> int:
    return int(ask(f"{address}/activity")["generated_tokens"])


# A move, and the moment after which the browser has drawn what the last price gave.
MOVE = """async ([label, share]) => {
  const slider = document.querySelector(`.sliders input[aria-label='${label}']`);
  const least = Number(slider.min), value = Math.round(least + share * (slider.max - least));
  const began = performance.now();
  performance.clearResourceTimings();
  slider.value = value;
  slider.dispatchEvent(new InputEvent("input", { bubbles: true }));
  const busy = () => document.querySelector(".room [aria-busy]").ariaBusy === "true";
  const frame = () => new Promise(requestAnimationFrame);
  do await frame(); while (busy());
  await frame();
  const asked = performance.getEntriesByType("resource").filter((one) => one.name.endsWith("/plan"));
  const waited = Math.max(0, ...asked.map((one) => one.responseEnd - one.requestStart));
  return [performance.now() - began, waited];
}"""


def prices(browser: Any, address: str) -> Iterator[tuple[str, str, str, bool]]:
    random, wholes, shares = Random(1), [], []
    with opened(browser, address) as (page, _):
        page.click("nav a[href='#plan']")
        page.wait_for_selector(".sliders input")
        page.evaluate(MOVE, ["RAM", 0.5])  # starts the process that prices
        for number in range(MOVES):
            label = ("RAM", "Context", "Sequences at once")[number % 3]
            whole, waited = page.evaluate(MOVE, [label, random.uniform(0.1, 1)])
            wholes.append(whole)
            shares.append(whole - waited)
    told = f"p50 {median(wholes):.0f} ms, p95 {quantiles(wholes, n=20)[-1]:.0f} ms"
    yield f"{MOVES} moves, each priced and drawn", told, "100 ms", quantiles(wholes, n=20)[-1] <= 100
    told = f"p50 {median(shares):.0f} ms, p95 {quantiles(shares, n=20)[-1]:.0f} ms"
    yield "the page's share of a move", told, "35 ms", quantiles(shares, n=20)[-1] <= 35


if __name__ == "__main__":
    sys.exit(main())
