"""A real headless Chromium for the tests of the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
LAPTOP, TABLET, PHONE = (1600, 1000), (1024, 900), (412, 900)
T = TypeVar("T")


class Browser:
    """One browser. `errors`: what its console said beside refused log-ins."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str, size: tuple[int, int] = LAPTOP) -> None:
        """The page at its beginning, logged out."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE},
        )
        self.driver.delete_all_cookies()
        self.driver.get(url)
        self.driver.delete_all_cookies()
        self.driver.get(url)

    def log_in(self, token: str) -> None:
        self.until(lambda: self.find("token").is_displayed())
        self.find("token").clear()
        self.find("token").send_keys(token)
        self.driver.find_element(By.CSS_SELECTOR, "#login button").click()

    def find(self, element: str) -> WebElement:
        return self.driver.find_element(By.ID, element)

    def text(self, element: str) -> str:
        return str(self.driver.execute_script("return document.getElementById(arguments[0]).textContent", element))

    def click(self, element: str) -> None:
        self.until(lambda: self.find(element).is_enabled())
        self.find(element).click()

    def run(self, script: str, *arguments: object) -> object:
        return self.driver.execute_script(script, *arguments)

    def press(self, key: str) -> None:
        ActionChains(self.driver).send_keys(key).perform()

    @contextmanager
    def holding(self, key: str) -> Iterator[None]:
        ActionChains(self.driver).key_down(key).perform()
        try:
            yield
        finally:
            ActionChains(self.driver).key_up(key).perform()

    @contextmanager
    def holding_pointer(self, element: str, x: int = 0, y: int = 0) -> Iterator[None]:
        """Pressed on the element, `x` and `y` pixels from its middle."""
        target = self.find(element)
        self.run("arguments[0].scrollIntoView({block: 'end'})", target)
        ActionChains(self.driver).move_to_element_with_offset(target, x, y).click_and_hold().perform()
        try:
            yield
        finally:
            ActionChains(self.driver).release().perform()

    def until(self, found: Callable[[], T], within_s: float = 20.0) -> T:
        until_s = time.monotonic() + within_s
        while not (result := found()):
            assert time.monotonic() < until_s, (
                f"not within {within_s} s; the page says '{self.text('phase')}', '{self.text('refusal')}', "
                f"'{self.text('toasts')}', '{self.text('login-problem')}'"
            )
            time.sleep(0.03)
        return result

    def says(self, element: str, words: str) -> None:
        self.until(lambda: words in self.text(element))

    def screenshot(self, path: Path) -> None:
        self.driver.save_screenshot(str(path))

    def problems(self) -> list[str]:
        """What the console was told since the last call, beside answers that log-ins were refused."""
        entries = self.driver.get_log("browser")
        return [one["message"] for one in entries if "status of 401" not in one["message"]]


@contextmanager
def browser() -> Iterator[Browser]:
    """Skips the tests where there is no Chromium."""
    if not (CHROMIUM.exists() and DRIVER.exists()):
        pytest.skip("Chromium is not installed: apt-get install chromium chromium-driver")
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
