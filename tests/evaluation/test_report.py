import importlib.resources
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from frcnn_jax.evaluation import coco, errors, report
from tests.evaluation.test_errors import noisy

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


def run(name="a", *, seed=7, **leaves):
    annotations, detections = noisy(np.random.default_rng(seed))
    annotations["categories"][1]["name"] = EVIL
    rows = [dict(step=i, group="train", total=1 / i, note="x") for i in range(1, 9)]
    rows += [dict(step=8, group="eval", AP=0.5)]
    config = {"seed": 0, "data.name": EVIL, **leaves}
    return report.Run(name, rows, config, annotations, detections, 8)


def pictures(rng, n=4):
    image = rng.integers(0, 256, (200, 200, 3), np.uint8)
    return {i: report.data_uri(image, side=64) for i in range(n)}


def read(page):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert text is not None
    return json.loads(text[1])


def test_render_puts_runs_side_by_side_and_shares_images(rng):
    images = pictures(rng)
    runs = [run("a"), run("b", seed=7, extra=(1, 2)), run("c", seed=8)]
    data = read(report.render(runs, [images] * 3))
    assert data["title"] == "a, b, c"
    assert [r["set"] for r in data["runs"]] == [0, 0, 1]
    assert [len(s["images"]) for s in data["sets"]] == [4, 4]
    assert ["extra", "", "(1, 2)", ""] in data["config"]
    assert data["runs"][0]["curves"]["train/total"][:2] == [[1, 1.0], [2, 0.5]]
    assert "train/note" not in data["runs"][0]["curves"]
    first = runs[0]
    assert data["runs"][0]["result"] == coco.evaluate(
        first.annotations, first.detections
    )


def test_histograms_give_counts_and_confusion_at_every_threshold(rng):
    r = run()
    entry = read(report.render([r], [{}]))["runs"][0]
    analysis = errors.analyse(r.annotations, r.detections)
    for step in (0, 17, 50, 90):
        expected = errors.counts(analysis, step / 100)
        for kind, name in enumerate(errors.KINDS):
            shown = sum(n for k, at, n in entry["kinds"] if k == kind and at >= step)
            assert shown == expected[name]
        reached = sum(n for at, n in entry["reached"] if at >= step)
        assert sum(entry["objects"]) - reached == expected["missed"]
        matrix = np.zeros((4, 4), int)
        for true, predicted, at, n in entry["confusion"]:
            matrix[true, predicted] += n * (at >= step)
        matrix[:3, 3] = np.array(entry["objects"]) - matrix[:3, :3].sum(1)
        wanted = errors.confusion(analysis, 3, step / 100)
        np.testing.assert_array_equal(matrix, wanted)


def test_gallery_has_boxes_kinds_and_scores_of_its_images(rng):
    r = run()
    data = read(report.render([r], [pictures(rng, 2)]))
    entry, images = data["runs"][0], data["sets"][0]["images"]
    for i, image in enumerate(images):
        truth = [a for a in r.annotations["annotations"] if a["image_id"] == i]
        assert [o[0] for o in image["truth"]] == [a["category_id"] - 1 for a in truth]
        assert len(entry["truth"][i]) == len(truth)
        mine = [d for d in r.detections if d["image_id"] == i]
        scores = [d[1] for d in entry["detections"][i]]
        assert scores == sorted(scores, reverse=True) and len(scores) == len(mine)
        best = max(mine, key=lambda d: d["score"])
        np.testing.assert_allclose(
            entry["detections"][i][0][2:6], best["bbox"], atol=0.1
        )
        right = [d[1] for d in entry["detections"][i] if d[6] == errors.RIGHT]
        found = [f for f, _ in entry["truth"][i] if f >= 0]
        assert sorted(right) == sorted(found)


def test_text_of_a_run_never_becomes_markup_and_nothing_is_fetched(rng):
    page = report.render([run(EVIL)], [pictures(rng)], title=EVIL)
    assert read(page)["title"] == EVIL
    assert "<img" not in page and "alert(1)</script>" not in page
    assert page.count("</script>") == 2
    assert not re.search(r"https?://|src=\"|@import|url\(|innerHTML", page)
    assert "default-src 'none'" in page


def test_a_run_without_evaluation_has_curves_only(rng):
    bare = run()._replace(annotations=None, detections=None)
    data = read(report.render([bare], [{}]))
    assert data["sets"] == [] and "result" not in data["runs"][0]


def test_no_image_and_no_detection_render(rng):
    r = run()._replace(detections=[])
    entry = read(report.render([r], [{}]))["runs"][0]
    assert entry["result"]["AP"] == 0.0 and entry["kinds"] == []
    empty = {"images": [], "categories": [], "annotations": []}
    entry = read(report.render([r._replace(annotations=empty)], [{}]))["runs"][0]
    assert entry["result"]["AP"] is None


def test_curves_thin_to_means_and_leave_out_what_is_not_finite():
    rows = [dict(step=i, group="train", a=float(i % 2)) for i in range(4000)]
    rows.append(dict(step=4000, group="train", b=float("nan"), c=2))
    curves = report.curves(rows)
    assert len(curves["train/a"]) == 1000
    assert {y for _, y in curves["train/a"]} == {0.5}
    assert curves["train/b"] == [] and curves["train/c"] == [[4000, 2.0]]


@pytest.mark.parametrize("size", [(30, 500), (200, 100), (20, 20)])
def test_data_uri_is_a_jpeg_of_at_most_that_side(rng, size):
    import base64

    from frcnn_jax.data.images import load_image

    uri = report.data_uri(rng.integers(0, 256, (*size, 3), np.uint8), side=100)
    head, _, text = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    image = load_image(base64.b64decode(text))
    scale = min(1, 100 / max(size))
    assert image.shape[:2] == tuple(round(s * scale) for s in size)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_labels_of_a_tile_do_not_overlap():
    """The page's own functions, on 200 boxes in one small tile."""
    page = importlib.resources.files("frcnn_jax.evaluation") / "report.html"
    text = page.read_text(encoding="utf-8")
    code = text[text.index("function places(") : text.index("function zoom(")]
    code += """
      const filled = [], taken = [];
      const c = { measureText: (t) => ({ width: 6 * t.length }), fillText() {},
        fillRect: (...r) => filled.push(r) };
      let seed = 1;
      const random = () => (seed = seed * 16807 % 2147483647) / 2147483647;
      for (let i = 0; i < 200; i++) {
        const x = random() * 220, y = random() * 160;
        const box = [x, y, random() * (240 - x), random() * (180 - y)];
        tag(c, "circle 0.99", box, "#102030", 240, 180, taken);
      }
      console.log(JSON.stringify(filled));"""
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    boxes = np.array(json.loads(done.stdout))
    assert 10 < len(boxes) < 200  # those without a free place are left out
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    assert (low >= 0).all() and (high <= [240, 180]).all()
    shared = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    shared = shared.clip(0).prod(-1)
    np.fill_diagonal(shared, 0)
    assert not shared.any()


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_learning_rate_is_drawn_as_it_is_and_raw_values_lie_behind_the_means():
    page = importlib.resources.files("frcnn_jax.evaluation") / "report.html"
    text = page.read_text(encoding="utf-8")
    code = text[text.index("function smooth(") : text.index("function smooth(") + 600]
    code = code[: code.index("\n}\n") + 3]
    draw = text[text.index("function drawCurves(") :]
    code += draw[: draw.index("\n}\n") + 3]
    code += """
      const raw = [[0, 1], [1, 1], [2, 0.1], [3, 0.1]], shown = {};
      const $ = (id) => ({ smooth: { value: "1" }, log: { checked: false } })[id];
      const color = () => "#000";
      const names = ["train/learning_rate", "train/total", "eval/AP"];
      const curves = Object.fromEntries(names.map((n) => [n, raw]));
      const data = { runs: [{ name: "a", curves }] };
      const keep = (n) => ({ set: (series) => { shown[n] = series[0]; } });
      const charts = names.map((n) => [n, keep(n)]);
      drawCurves();
      console.log(JSON.stringify(shown));"""
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown, raw = json.loads(done.stdout), [[0, 1], [1, 1], [2, 0.1], [3, 0.1]]
    for name in ("train/learning_rate", "eval/AP"):
        assert shown[name]["points"] == raw and shown[name]["raw"] == []
    assert shown["train/total"]["raw"] == raw
    means = [y for _, y in shown["train/total"]["points"]]
    np.testing.assert_allclose(means, [1, 0.7, 0.4, 0.1])
