"""The playground page in a headless browser, against a stand-in for the server."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from page_stand_in import TEXT, StandIn

pytest.importorskip("selenium")

from selenium.webdriver import ActionChains, Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="chromium or chromedriver is missing"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]

PATIENCE_S = 120


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    server = StandIn()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = BROWSER or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1200,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page as a person uses it."""

    def __init__(self, browser: Chrome) -> None:
        self.browser = browser

    def __getitem__(self, id: str) -> WebElement:
        return self.browser.find_element(By.ID, id)

    def all(self, css: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, css)

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.browser, PATIENCE_S).until(lambda _: condition())

    def wait_text(self, id: str, text: str) -> None:
        self.wait(lambda: text in self[id].text)

    def ask(self, prompt: str) -> None:
        self["prompt"].send_keys(prompt, Keys.ENTER)

    def style(self, element: WebElement, name: str) -> str:
        return str(element.value_of_css_property(name))

    def drawn(self) -> str | None:
        lines = self.all("#throughput-plot path.line")
        return lines[0].get_attribute("d") if lines else None


@pytest.fixture
def page(browser: Chrome, stand_in: StandIn) -> Iterator[Page]:
    """The page, connected. What it does must keep to its content security policy."""
    browser.get(stand_in.address)
    browser.get_log("browser")
    page = Page(browser)
    page.wait_text("connection", "connected")
    yield page
    messages = [entry["message"] for entry in browser.get_log("browser")]
    assert not [text for text in messages if "Security Policy" in text or "Uncaught" in text]


def test_an_answer_arrives_in_colours(page: Page, stand_in: StandIn) -> None:
    assert page["model-name"].text == "stand-in"
    page["seed"].send_keys("7")
    page.ask("hello")
    page.wait_text("answer-status", "Answer finished after 3 tokens.")
    tokens = page.all("#messages .token")
    assert "".join(token.get_attribute("textContent") for token in tokens) == TEXT
    assert page.all("#messages img") == []
    kinds = [token.get_attribute("class").split()[1] for token in tokens]
    assert kinds == ["plain", "accepted", "drawn"]
    assert len({page.style(token, "color") for token in tokens}) == 3
    lines = [page.style(token, "text-decoration-line") for token in tokens]
    assert lines == ["none", "underline", "underline"]
    styles = [page.style(token, "text-decoration-style") for token in tokens[1:]]
    assert styles == ["solid", "double"]
    assert [page[f"count-{kind}"].text for kind in kinds] == ["1", "1", "1"]
    summary = page.all(".answer-stats")[0].text
    assert "accepted length 2.00 · drafted 4, verified 3, accepted 1" in summary
    assert stand_in.asked[0]["seed"] == 7
    page.ask("more")
    page.wait(lambda: len(stand_in.asked) == 2)
    roles = [message["role"] for message in stand_in.asked[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert stand_in.asked[1]["messages"][1]["content"] == TEXT


def test_shift_enter_starts_a_line_and_new_chat_forgets(page: Page, stand_in: StandIn) -> None:
    page["system-panel"].find_element(By.TAG_NAME, "summary").click()
    page["system"].send_keys("Be brief.")
    page["prompt"].send_keys("a", Keys.SHIFT + Keys.ENTER, Keys.NULL, "b")
    assert page["prompt"].get_attribute("value") == "a\nb"
    page["prompt"].send_keys(Keys.ENTER)
    page.wait_text("answer-status", "finished")
    page["new-chat"].click()
    assert page.all(".message") == []
    assert page["count-plain"].text == "0"
    page.ask("c")
    page.wait(lambda: len(stand_in.asked) == 2)
    contents = [m["content"] for body in stand_in.asked for m in body["messages"]]
    assert contents == ["Be brief.", "a\nb", "Be brief.", "c"]


@pytest.mark.parametrize("way", ["escape", "button"])
def test_a_stopped_answer_ends_on_the_server_too(page: Page, stand_in: StandIn, way: str) -> None:
    page.ask("endless")
    page.wait(lambda: len(page.all("#messages .token")) >= 3)
    if way == "escape":
        page["prompt"].send_keys(Keys.ESCAPE)
    else:
        page["stop"].click()
    page.wait_text("answer-status", "Stopped")
    assert stand_in.left.wait(PATIENCE_S)
    assert page["chat-error"].text == ""
    page.ask("hello")
    page.wait_text("answer-status", "Answer finished")


def test_an_answer_that_fails_keeps_what_it_said(page: Page) -> None:
    page.ask("broken")
    page.wait_text("chat-error", "The engine could not answer")
    assert page.all("#messages .answer .text")[0].text == "Half"
    page.ask("hello")
    page.wait_text("answer-status", "Answer finished")
    assert page["chat-error"].text == ""


def test_the_tooltip_explains_a_token(page: Page) -> None:
    page.ask("hello")
    page.wait_text("answer-status", "finished")
    plain, accepted, drawn = page.all("#messages .token")
    ActionChains(page.browser).move_to_element(drawn).perform()
    page.wait(lambda: page["token-tip"].is_displayed())
    lines = page["token-tip"].text.splitlines()
    assert lines[:2] == ["corrected token", "round 1, token 2 of 2"]
    assert lines[2] == "slot 2: confidence 0.31, rejected"
    ActionChains(page.browser).move_to_element(page["prompt"]).perform()
    page.wait(lambda: not page["token-tip"].is_displayed())
    page["messages"].click()
    page["messages"].send_keys(Keys.TAB)
    focused = page.browser.switch_to.active_element
    assert focused == plain
    focused.send_keys(Keys.ARROW_RIGHT)
    assert page.browser.switch_to.active_element == accepted
    assert page["token-tip"].text.splitlines()[-1] == "slot 1: confidence 0.90, accepted"
    assert accepted.get_attribute("aria-describedby") == "token-tip"
    accepted.send_keys(Keys.ESCAPE)
    assert not page["token-tip"].is_displayed()


def test_plots_move_and_pause(page: Page, stand_in: StandIn) -> None:
    first = page.wait(page.drawn)
    page.wait(lambda: page.drawn() != first)
    assert "tokens/s" in page["throughput-now"].text
    assert len(page.all("#load-plot path.line")) >= 4
    bars = page.all("#acceptance-plot .bar-value")
    assert [bar.get_attribute("textContent") for bar in bars][:2] == ["0.93", "0.71"]
    assert "lowest" in (page["throughput-plot"].get_attribute("aria-label") or "")
    page["pause-plots"].click()
    still, polls = page.drawn(), stand_in.polls
    page.wait(lambda: stand_in.polls >= polls + 2)
    assert page.drawn() == still
    page["pause-plots"].click()
    assert page.drawn() != still


def test_a_lost_server_is_told_and_found_again(page: Page, stand_in: StandIn) -> None:
    stand_in.away = True
    page.wait_text("connection", "server not reachable")
    stand_in.away = False
    page.wait_text("connection", "connected")


def test_a_key_is_asked_for_and_kept_for_the_session(page: Page, stand_in: StandIn) -> None:
    assert not page["key-form"].is_displayed()
    stand_in.key = "secret"
    page.wait(lambda: page["key-form"].is_displayed())
    page["api-key"].send_keys("wrong", Keys.ENTER)
    page.wait_text("connection", "API key not accepted")
    page["api-key"].send_keys("secret", Keys.ENTER)
    page.wait_text("connection", "connected")
    assert not page["key-form"].is_displayed()
    page.browser.refresh()
    page.wait_text("connection", "connected")
    assert page.browser.execute_script("return localStorage.length") == 0


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_scrolls_sideways(page: Page, width: int) -> None:
    metrics = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": False}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.ask("hello")
        page.wait_text("answer-status", "finished")
        page.wait(page.drawn)
        for summary in page.all("#plots summary"):
            summary.click()
        size = page.browser.execute_script("return document.documentElement.scrollWidth")
        assert size <= width
        drawing, plot = page.all("#throughput .drawing")[0], page["throughput-plot"]
        assert plot.size["width"] == pytest.approx(drawing.size["width"], abs=1)
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
