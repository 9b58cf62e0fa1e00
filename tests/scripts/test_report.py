"""The report as a user makes it, and as a browser shows it."""

import json
import shutil

import numpy as np
import pytest

from frcnn_jax.data.sources import coco, shapes
from frcnn_jax.evaluation import errors, files
from tests.scripts.test_scripts import last_json, script
from tests.training import small

NAMES = ("circle", "<b>square</b>", "</script><img src=x onerror=alert(1)>", "star")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a run leaves behind, its detections made from the truth with errors."""
    path = tmp_path_factory.mktemp("runs") / "a&b"
    path.mkdir()
    rng = np.random.default_rng(0)
    config = small.config()
    config.data.eval_split, config.data.size = "val[:40]", 128
    (path / "config.json").write_text(config.to_json())
    annotations = coco.to_coco(shapes.load(split="val", num_images=40))
    for category, name in zip(annotations["categories"], NAMES, strict=True):
        category["name"] = name
    found = []
    for a in annotations["annotations"]:
        for _ in range(int(rng.integers(0, 3))):
            box = np.array(a["bbox"]) + rng.normal(0, 3, 4)
            category = a["category_id"] if rng.random() < 0.8 else 1
            found.append(
                dict(a, bbox=np.maximum(box, 1).tolist(), category_id=category)
                | dict(score=float(rng.random()))
            )
    files.write_annotations(path / "annotations.json", annotations)
    files.write_detections(path / "detections.json", found)
    rows = [dict(step=i, group="train", total=2.0 / i) for i in range(1, 60)]
    rows += [dict(step=i, group="eval", AP=i / 100) for i in (20, 40)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.mark.slow
def test_report_needs_a_run(tmp_path):
    done = script("report", tmp_path, code=2)
    assert "has no metrics.jsonl" in done.stdout + done.stderr


@pytest.fixture(scope="module")
def page(folder):
    output = folder.parent / "report.html"
    done = script("report", folder, f"--output={output}", "--images=30")
    result = last_json(done)
    assert (result["runs"], result["images"]) == (1, 30)
    assert result["bytes"] == output.stat().st_size
    return output


def test_report_without_its_data_has_no_gallery_and_says_so(folder, tmp_path):
    stranger = tmp_path / "stranger"  # whose data would be code of its choice
    shutil.copytree(folder, stranger)
    config = json.loads((folder / "config.json").read_text())
    config["data"] |= dict(name="dicts:tests.hostile.run")
    (stranger / "config.json").write_text(json.dumps(config))
    done = script(
        *("report", folder, stranger, f"--output={tmp_path / 'r.html'}"),
        "--set=data.eval_split=gone",
    )
    assert last_json(done)["images"] == 0
    assert (
        "no gallery, its data cannot be read: shapes has no split 'gone'" in done.stderr
    )
    assert "'tests.hostile.run', which would be imported and called" in done.stderr


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip(
            "needs Chromium and its driver, which are not there: "
            "apt-get install chromium chromium-driver"
        )
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument("--window-size=1280,1000")
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    chrome.set_script_timeout(20)
    yield chrome
    chrome.quit()


@pytest.mark.slow
def test_a_browser_shows_it_and_the_slider_works(page, folder, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait

    wait = WebDriverWait(browser, 20)
    browser.get(page.as_uri())
    assert browser.title == "a&b"
    asked = [
        json.loads(e["message"])["message"] for e in browser.get_log("performance")
    ]
    urls = [
        e["params"]["request"]["url"]
        for e in asked
        if e["method"] == "Network.requestWillBeSent"
    ]
    assert urls and all(u == page.as_uri() or u.startswith("data:") for u in urls)

    analysis = errors.analyse(
        files.read_annotations(folder / "annotations.json"),
        files.read_detections(folder / "detections.json"),
    )

    def kinds():
        return [
            int(span.text)
            for span in browser.find_elements(By.CSS_SELECTOR, "#kinds .row span")
        ]

    def cards():
        return browser.find_elements(By.CSS_SELECTOR, ".card")

    slider = browser.find_element(By.ID, "score")
    browser.execute_script("arguments[0].scrollIntoView()", slider)
    assert kinds() == list(errors.counts(analysis, 0.5).values())
    slider.send_keys(Keys.ARROW_RIGHT * 10)
    assert browser.find_element(By.ID, "score-value").text == "0.60"
    assert kinds() == list(errors.counts(analysis, 0.6).values())
    slider.send_keys(Keys.HOME)
    assert kinds() == list(errors.counts(analysis, 0.0).values())

    # Worst first: the text under each picture says what it is sorted by.
    assert len(cards()) == 30
    Select(browser.find_element(By.ID, "sort")).select_by_value("unfound")
    browser.execute_script("arguments[0].scrollIntoView()", cards()[0])
    wait.until(lambda _: "not found" in cards()[1].text)
    first, second = (
        int(card.text.split("wrong, ")[1].split(" not")[0]) for card in cards()[:2]
    )
    assert first >= second and first > 0

    def pixels():
        return browser.execute_script(
            "const c = arguments[0].querySelector('canvas');"
            "return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height)"
            ".data)",
            cards()[0],
        )

    with_boxes = pixels()
    assert np.std(with_boxes) > 5  # a picture
    slider.send_keys(Keys.END)
    wait.until(lambda _: pixels() != with_boxes)
    slider.send_keys(Keys.HOME)

    Select(browser.find_element(By.ID, "only")).select_by_visible_text(NAMES[1])
    assert 0 < len(cards()) < 30
    Select(browser.find_element(By.ID, "which")).select_by_visible_text(
        f"{NAMES[2]}, IoU .5"
    )
    browser.execute_script("arguments[0].click()", cards()[0])
    wait.until(lambda _: browser.find_element(By.ID, "zoom").is_displayed())
    assert browser.get_log("browser") == []  # nothing on the console
