"""The page of scripts/demo.py in a headless Chromium: make test-tools."""

import contextlib
import importlib
import shutil

import pytest

from frcnn_jax.data.images import save_image
from frcnn_jax.records import records
from tests.tools.test_tools import Bright, scene

pytestmark = [
    pytest.mark.tools,
    pytest.mark.filterwarnings("ignore"),  # of packages that are not ours
]


@pytest.fixture(scope="module")
def demo():
    return importlib.import_module("scripts.demo")


def test_slider_and_classes_choose_among_what_was_found(demo):
    image = scene(20, 30)
    found = demo.find(Bright(), image)
    assert demo.find(Bright(), None) is None
    drawn, rows = demo.view(image, found, 0.5, [])
    assert rows == [["star", 0.75, 20.0, 30.0, 40.0, 40.0]]
    assert (
        drawn != records(Bright()([image]), [image], Bright())[0].plot(image)
    ).sum() == 0
    assert demo.view(image, found, 0.8, [])[1] == []
    assert demo.view(image, found, 0.5, ["lamp"])[1] == []
    assert demo.view(image, found, 0.5, ["lamp", "star"])[1] == rows
    assert demo.view(None, None, 0.5, []) == (None, [])


@pytest.fixture(scope="module")
def url(demo):
    pytest.importorskip("gradio")
    page = demo.build(Bright(), score=0.5)
    _, local, _ = page.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True
    )
    yield local
    page.close()


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs Chromium and its driver: apt-get install chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument("--window-size=1280,1200")
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


def test_a_browser_uploads_a_picture_and_moves_the_slider(url, browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(browser, 60)
    save_image(tmp_path / "a.png", scene(20, 30))
    browser.get(url)
    chooser = wait.until(lambda b: b.find_element(By.CSS_SELECTOR, "input[type=file]"))
    chooser.send_keys(str(tmp_path / "a.png"))

    def lines():
        with contextlib.suppress(Exception):
            return browser.find_element(By.TAG_NAME, "body").text.split("\n")
        return []

    wait.until(lambda _: {"star", "0.75", "20", "30"} <= set(lines()))
    slider = browser.find_element(By.CSS_SELECTOR, "input[type=range]")
    slider.send_keys(Keys.END)
    wait.until(lambda _: "star" not in lines())
    slider.send_keys(Keys.HOME)
    wait.until(lambda _: "star" in lines())
