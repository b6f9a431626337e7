"""The page, used in Chromium without a screen: `make test-page`."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from alora_gguf.cli.verdicts import badges_of

import alora_gguf as ag
from alora_gguf import demo, serve
from alora_gguf.serve import Server, talk, work
from tests.support.serving import open_demo, serving

if not os.environ.get("ALORA_TEST_PAGE"):
    pytest.skip("uses a browser for more than a minute: make test-page", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="make test-page installs it")
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="make test-page installs it"
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
QUESTION = "When does the Bomel library open?"
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
IDLE = "#send:not([hidden])"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        found = os.environ.get("ALORA_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), "")
        found = found or play.chromium.executable_path
        if not Path(found).exists():
            pytest.skip("needs Chromium, which is neither on the PATH nor ALORA_CHROMIUM")
        # Chromium's own sandbox needs rights that containers do not give
        browser = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page that is open: what it asked for, and what it said in the console."""

    def __init__(self, browser: Any, url: str, **how: Any) -> None:
        how = {"viewport": WIDE, "permissions": ["clipboard-read", "clipboard-write"], **how}
        self.url, self.context = url, browser.new_context(**how)
        self.context.set_default_timeout(15_000)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.bodies: list[Any] = []
        self.page.on("console", lambda m: m.type in ("error", "warning") and self._say(m.text))
        self.page.on("pageerror", lambda error: self._say(str(error)))
        self.page.on("request", self._note)

    def _say(self, text: str) -> None:
        self.said.append(text)

    def _note(self, request: Any) -> None:
        self.asked.append(request.url)
        if request.url.endswith("/v1/chat/completions"):
            self.bodies.append(json.loads(request.post_data))

    def open(self) -> Any:
        self.page.goto(self.url)
        self.page.wait_for_selector("#adapter-list .adapter", state="attached")
        return self.page

    def ask(self, text: str) -> None:
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")
        self.page.wait_for_selector(IDLE)

    def badges(self, turn: int) -> list[str]:
        words = self.page.locator(f".turn >> nth={turn} >> .badge .word")
        return [text.strip() for text in words.all_text_contents()]


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    visits: list[Visit] = []

    def begin(server: Server, **how: Any) -> Visit:
        visits.append(Visit(browser, server.url, **how))
        return visits[-1]

    yield begin
    for each in visits:
        each.context.close()
        assert [url for url in each.asked if not url.startswith(each.url)] == []


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies whose pieces come slowly enough to be stopped."""
    told = work.Job.tell

    def tell(job: work.Job, event: object) -> None:
        if isinstance(event, talk.Piece):
            time.sleep(0.3)
        told(job, event)

    monkeypatch.setattr(work.Job, "tell", tell)


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that loads adapters."""
    folder = tmp_path_factory.mktemp("adapters")
    shutil.copy(demo.adapter_path("jailbreak"), folder / "guard.gguf")
    n_embd = ag.BaseFile.read(demo.base_path()).n_embd or 0
    part = ag.Directions(3, "block", "add", 1.0, np.ones(n_embd))
    ag.write_vector(folder / "formal.gguf", [part], architecture="granite")
    with serving(open_demo, adapters_dir=folder) as server:
        yield server


def test_a_conversation(visit: Callable[..., Visit], open_server: Server) -> None:
    visited = visit(open_server)
    page = visited.open()
    assert page.title() == "demo · alora-gguf"
    # documents: pasted, and from files
    page.click("#add-document")
    page.fill("#document-text", demo.DOCUMENTS[0])
    page.click("#document-form [type=submit]")
    page.set_input_files("#files", files=[
        {"name": "people.txt", "mimeType": "text/plain", "buffer": demo.DOCUMENTS[1].encode()},
        {"name": "photo.txt", "mimeType": "text/plain", "buffer": b"\xff\xd8\xff"},
    ])  # fmt: skip
    page.wait_for_selector(".document:nth-child(2)")
    assert "photo.txt is not text" in page.inner_text("#document-error")
    # a streamed reply, and verdicts under the turns that they judge
    page.click("#open-settings")
    page.fill("#temperature", "0")
    page.fill("#max-tokens", "40")
    page.click("#settings [type=submit]")
    visited.ask(QUESTION)
    assert visited.bodies[-1]["documents"][1]["title"] == "people.txt"
    assert (visited.bodies[-1]["temperature"], visited.bodies[-1]["max_tokens"]) == (0, 40)
    assert "9:30" in page.inner_text(".turn.assistant .text")
    assert [text.split(" ")[0] for text in visited.badges(0)] == ["answerable", "no"]
    assert [text.split(" ")[0] for text in visited.badges(1)] == ["certainty", "faithful"]
    assert page.locator(".badge.good").count() == 4
    # what they cost is in sight, and the rest a click away
    badge = page.locator(".turn.assistant .badge >> nth=0")
    assert "read" in badge.inner_text()
    badge.click()
    assert "reused" in page.inner_text(".details")
    assert badge.get_attribute("aria-expanded") == "true"
    badge.click()
    assert page.locator(".details").count() == 0
    # the next turn reads what is new
    visited.ask("Who runs it?")
    page.wait_for_function("document.querySelectorAll('.costs li').length === 5")
    assert "reused" in page.inner_text("#last .sum")
    page.wait_for_selector(".holders li")
    assert "base" in page.inner_text("#map")
    assert "cells" in page.inner_text(".holders")
    # the last turn again, and another question in its place
    page.click("text=Regenerate")
    page.wait_for_selector(IDLE)
    assert page.locator(".turn").count() == 4
    page.click("[data-act=Edit]")
    assert page.input_value("#prompt") == "Who runs it?"
    visited.ask("When does it open?")
    said = [each["content"] for each in visited.bodies[-1]["messages"] if each["role"] == "user"]
    assert said == [QUESTION, "When does it open?"]
    # one intrinsic, now
    page.click("[data-adapter=query_rewrite] >> text=Ask")
    page.wait_for_selector(".details")
    assert visited.bodies[-1]["intrinsics"] == ["query_rewrite"]
    assert visited.bodies[-1]["messages"][-1]["role"] == "user"
    page.click("text=Copy >> nth=-1")
    assert page.evaluate("navigator.clipboard.readText()") == page.inner_text(
        ".turn:last-child .text"
    )
    # it is there after a reload, and gone in a new conversation, from which there is a way back
    page.reload()
    page.wait_for_selector("#adapter-list .adapter")
    assert page.locator(".turn").count() == 4
    page.click("#new")
    assert page.locator(".turn").count() == 0
    page.click("text=Back to the old one")
    assert page.locator(".turn").count() == 4
    assert visited.said == []


def test_adapters_come_and_go(visit: Callable[..., Visit], open_server: Server) -> None:
    visited = visit(open_server)
    page = visited.open()
    page.click("#add-adapter")
    page.fill("#adapter-path", "guard.gguf")
    assert page.input_value("#adapter-name") == "guard"
    page.click("#adapter-form [type=submit]")
    page.wait_for_selector("[data-adapter=guard]")
    assert page.locator("#writer option").all_text_contents()[-1] == "guard"
    page.select_option("#writer", "guard")
    visited.ask("Hello")
    assert visited.bodies[-1]["adapter"] == "guard"
    assert "demo:guard" in page.inner_text(".turn.assistant .who")
    page.click("[aria-label='Unload guard']")
    page.wait_for_selector("[data-adapter=guard]", state="detached")
    assert page.input_value("#writer") == ""
    assert visited.said == []
    page.click("#add-adapter")
    page.fill("#adapter-path", "none.gguf")
    page.click("#adapter-form [type=submit]")
    page.wait_for_selector("#adapter-error:not([hidden])")
    assert "none.gguf" in page.inner_text("#adapter-error")


def test_a_vector_steers_replies(visit: Callable[..., Visit], open_server: Server) -> None:
    visited = visit(open_server)
    page = visited.open()
    page.click("#add-adapter")
    page.fill("#adapter-path", "formal.gguf")
    page.click("#adapter-form [type=submit]")
    page.wait_for_selector("[data-adapter=formal]")
    assert "formal" not in page.locator("#writer option").all_text_contents()
    page.fill("#scale-formal", "0.5")
    page.select_option("#writer", "jailbreak")
    visited.ask("Hello")
    assert (visited.bodies[-1]["adapter"], visited.bodies[-1]["steer"]) == (
        "jailbreak", {"formal": 0.5}
    )  # fmt: skip
    assert "demo:jailbreak + formal at 0.5" in page.inner_text(".turn.assistant .who")
    for off in ("", "0"):
        page.fill("#scale-formal", off)
        visited.ask("And then?")
        assert "steer" not in visited.bodies[-1]
    page.fill("#scale-formal", "1001")  # is none, so it changes nothing
    visited.ask("And then?")
    assert "steer" not in visited.bodies[-1]
    assert visited.said == []
    page.click("[aria-label='Unload formal']")
    page.wait_for_selector("[data-adapter=formal]", state="detached")


def test_documents_are_dropped_and_removed(visit: Callable[..., Visit], server: Server) -> None:
    visited = visit(server)
    page = visited.open()
    drop = (
        "([kind]) => { const data = new DataTransfer();"
        " data.items.add(new File(['The mill closes at six.'], 'mill.md', {type: 'text/plain'}));"
        " document.body.dispatchEvent(new DragEvent(kind,"
        " {dataTransfer: data, bubbles: true, cancelable: true})); }"
    )
    page.evaluate(drop, ["dragover"])
    assert page.is_visible("#drop")
    page.evaluate(drop, ["drop"])
    page.wait_for_selector(".document")
    assert page.is_hidden("#drop")
    page.click(".document summary")
    assert page.inner_text(".document .whole") == "The mill closes at six."
    page.click("[aria-label='Remove mill.md']")
    page.wait_for_selector(".document", state="detached")
    assert page.evaluate("document.activeElement.id") == "add-document"
    visited.ask(QUESTION)
    assert "documents" not in visited.bodies[-1]
    assert visited.said == []


def test_settings_are_kept_by_the_browser(visit: Callable[..., Visit], server: Server) -> None:
    visited = visit(server)
    page = visited.open()
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    page.fill("#seed", "7")
    page.fill("#max-tokens", "0")  # is no number of tokens, and not taken
    page.keyboard.press("Escape")
    page.reload()
    page.wait_for_selector("#standing:not([hidden])")
    assert page.inner_text("#standing") == "System prompt: Be brief."
    visited.ask(QUESTION)
    body = visited.bodies[-1]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["seed"] == 7
    assert "max_tokens" not in body
    assert "temperature" not in body
    page.click("#standing")
    page.click("#reset-settings")
    page.click("#settings [type=submit]")
    visited.ask("Who runs it?")
    assert "seed" not in visited.bodies[-1]
    assert visited.bodies[-1]["messages"][0]["role"] == "user"
    assert page.is_hidden("#standing")
    assert visited.said == []


def test_a_plain_lora_and_one_that_needs_an_argument(
    visit: Callable[..., Visit], tmp_path: Path
) -> None:
    path = demo.adapter_path("hallucination")
    text = demo.io_yaml_path("hallucination").read_text("utf-8")
    contract = tmp_path / "io.yaml"
    contract.write_text(text.replace("instruction: ~", "instruction: 'It must be {wanted}.'"))

    def load() -> ag.Model:
        model = open_demo()
        model.load_adapter("plain", path, from_start=True)
        model.load_adapter("checks", path)
        model.set_contract("checks", ag.load_contract(contract))
        return model

    with serving(load) as server:
        visited = visit(server)
        page = visited.open()
        # what reads everything, or cannot be asked yet, is asked on demand alone
        assert not page.is_checked("#verdict-plain")
        assert not page.is_checked("#verdict-checks")
        page.check("#verdict-plain")
        page.check("#verdict-checks")
        visited.ask(QUESTION)
        assert "plain" in visited.bodies[-1]["verdicts"]
        assert "checks" not in str(visited.bodies[-1]["verdicts"])
        page.click("[aria-label='Ask checks now']")
        assert page.evaluate("document.activeElement.id") == "argument-checks-wanted"
        page.keyboard.type("short")
        visited.ask("And on Monday?")
        call = {"name": "checks", "arguments": {"wanted": "short"}}
        assert call in visited.bodies[-1]["verdicts"]
        # three of them answer in the same words
        words = visited.badges(3)
        assert [text.partition(":")[0] for text in words[1:]] == [
            "hallucination",
            "plain",
            "checks",
        ]
        page.click(".turn:last-child .badge[title=plain]")
        assert "reads the conversation itself" in page.inner_text(".details")
        assert " 0 reused" in page.inner_text(".turn:last-child .badge[title=plain]")
        assert visited.said == []


def test_reading_a_long_message_is_followed(visit: Callable[..., Visit], server: Server) -> None:
    visited = visit(server)
    page = visited.open()
    page.evaluate(
        "() => { window.seen = []; new MutationObserver(() => seen.push("
        "document.querySelector('.turn.assistant .text')?.textContent ?? '')).observe("
        "document.getElementById('turns'), { childList: true, subtree: true }); }"
    )
    visited.ask("word " * 900)
    assert any("Reading: 512 of" in text for text in page.evaluate("seen"))


def test_a_reply_is_stopped(visit: Callable[..., Visit], server: Server, slow: None) -> None:
    visited = visit(server)
    page = visited.open()
    page.fill("#prompt", "Tell me about the ferry.")
    page.press("#prompt", "Enter")
    page.wait_for_selector(".turn.assistant .text > p:not(.waiting)")
    page.reload()  # ends the request, and keeps what there is
    page.wait_for_selector("#adapter-list .adapter")
    assert "broke off" in page.inner_text(".turn.assistant .meta")
    assert page.locator(".turn .error").count() == 0
    page.click("[data-act=Regenerate]")
    page.wait_for_selector(".turn.assistant .text > p:not(.waiting)")
    page.keyboard.press("Escape")
    page.wait_for_selector(IDLE)
    assert "stopped" in page.inner_text(".turn.assistant .meta")
    for _ in range(50):  # the server ends it as well
        if httpx.get(f"{server.url}/health").json()["running"] == 0:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the request goes on")
    assert visited.said == []


def test_a_busy_server_can_be_asked_again(visit: Callable[..., Visit], slow: None) -> None:
    with serving(n_parallel=1, n_waiting=0) as server:
        visited = visit(server)
        page = visited.open()
        body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30):
            visited.ask(QUESTION)
            assert "try again" in page.inner_text(".turn.user .error")
            assert page.locator(".turn").count() == 1
        for _ in range(50):
            page.click("[data-act='Try again']")
            page.wait_for_selector(IDLE, timeout=60_000)
            if page.locator(".turn.assistant").count():
                break
        assert page.locator(".turn .error").count() == 0


def test_a_key_is_asked_for_and_kept_in_the_tab(visit: Callable[..., Visit]) -> None:
    with serving(api_key="secret") as server:
        visited = visit(server)
        page = visited.page
        page.goto(server.url)
        for key in ("wrong", "secret"):
            page.wait_for_selector("#key-dialog[open]")
            page.fill("#key", key)
            page.press("#key", "Enter")
        page.wait_for_selector("#adapter-list .adapter")
        page.reload()
        page.wait_for_selector("#adapter-list .adapter")
        assert page.evaluate("Object.values(localStorage).join()").count("secret") == 0
        assert not any("secret" in url for url in visited.asked)


def test_a_server_that_is_loading_or_about_to_end_or_gone(visit: Callable[..., Visit]) -> None:
    go = threading.Event()

    def load() -> ag.Model:
        assert go.wait(60)
        return open_demo()

    server = Server(load, serve.Settings(name="demo"), host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.serve_until_stopped, daemon=True)
    thread.start()
    try:
        visited = visit(server)
        visited.page.goto(server.url)
        visited.page.wait_for_selector("text=loading the model")
        assert visited.page.is_disabled("#send")
        go.set()
        visited.page.wait_for_selector("#adapter-list .adapter")
        assert visited.page.is_enabled("#send")
        server.service.state = "draining"
        visited.ask("Hello")
        assert "about to end" in visited.page.inner_text(".turn.user .error")
    finally:
        server.service.state = "ready"
        server.stop()
        thread.join(60)
    visited.page.click("[data-act='Try again']")
    visited.page.wait_for_selector(IDLE)
    assert "does not answer" in visited.page.inner_text(".turn.user .error")


def test_by_keyboard_alone(visit: Callable[..., Visit], server: Server) -> None:
    visited = visit(server)
    page = visited.open()
    press = page.keyboard.press
    press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    press("Enter")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.type("Who runs it?")
    press("Enter")
    page.wait_for_selector(IDLE)
    assert page.evaluate("document.activeElement.id") == "prompt"
    for _ in range(20):
        press("Shift+Tab")
        if page.evaluate("document.activeElement.classList.contains('badge')"):
            break
    press("Enter")
    page.wait_for_selector(".details")
    # the badge was drawn again, and has the focus still
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    press("Space")
    page.wait_for_selector(".details", state="detached")
    assert visited.said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_nobody_is_kept_out(
    visit: Callable[..., Visit], server: Server, size: dict[str, int], scheme: str
) -> None:
    """axe finds nothing wrong with names, roles and contrasts, nothing is wider than the screen,
    and what is pressed is large enough.
    """
    visited = visit(server, viewport=size, color_scheme=scheme)
    page = visited.open()
    page.click(".tries button >> nth=0")
    page.wait_for_selector(IDLE)
    page.click(".turn.assistant .badge >> nth=0")
    views = ["talk", "documents", "adapters", "cache"] if size is NARROW else ["talk"]
    for view in views:
        if size is NARROW:
            page.click(f"#views [data-view={view}]")
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        small = page.evaluate(
            "[...document.querySelectorAll('button, select, summary')].filter(e => e.offsetParent)"
            ".map(e => [e.textContent, e.getBoundingClientRect()])"
            ".filter(([, r]) => r.height < 24 || r.width < 24).map(([t]) => t)"
        )
        assert small == []
    page.click("#open-settings")
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert visited.said == []


VALUES: list[tuple[str, Any, str | None]] = [
    ("a", True, "high"),
    ("a", "No", "high"),
    ("a", 0.25, None),
    ("a", 3.5, "high"),
    ("a", "some words", None),
    ("a", " ", None),
    ("a", None, None),
    ("a", [1, 2], None),
    ("a", {}, "high"),
    ("a", {"answer": "It does.", "answerable": 0.03}, "high"),
    ("a", {"answer": "yes", "certainty": 0.77}, "high"),
    ("a", {"answerability": 0.01}, "high"),
    ("a", {"jailbreak": 0.91}, "low"),
    ("a", {"jailbreak": "no"}, "low"),
    ("a", {"outer": {"faithful": 0.7, "other": "x"}}, "high"),
    ("a", {"rewritten_question": "word " * 40}, None),
    ("a", {"first": 0.2, "second": 0.9}, "high"),
    ("a", {"requirements_satisfied": True, "list": [1]}, "high"),
]


def test_badges_are_the_terminals(visit: Callable[..., Visit], server: Server) -> None:
    page = visit(server).open()
    for name, value, good in VALUES:
        got = page.evaluate(
            "async ([name, value, good]) =>"
            " (await import('/page/badges.js')).badgesOf(name, value, good)",
            [name, value, good],
        )
        wanted = [{"text": each.text, "good": each.good} for each in badges_of(name, value, good)]  # type: ignore[arg-type]
        assert got == wanted, value


def test_markdown_is_elements_and_never_markup(visit: Callable[..., Visit], server: Server) -> None:
    page = visit(server).open()
    text = (
        "# Head\n\nA **bold** `<b>` <img src=x onerror=alert(1)>\n\n- one\n- two\n\n"
        "```py\nx = '**'\n```\n3. three"
    )
    got = page.evaluate(
        "async (text) => { const { markdown } = await import('/page/markdown.js');"
        " const box = document.createElement('div'); box.append(...markdown(text));"
        " return box.innerHTML; }",
        text,
    )
    assert got == (
        '<p class="heading">Head</p>'
        "<p>A <strong>bold</strong> <code>&lt;b&gt;</code> &lt;img src=x onerror=alert(1)&gt;</p>"
        "<ul><li>one</li><li>two</li></ul>"
        "<pre tabindex=\"0\"><code>x = '**'</code></pre>"
        '<ol start="3"><li>three</li></ol>'
    )
