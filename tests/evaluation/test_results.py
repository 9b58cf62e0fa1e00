import json
import os

import pytest

from frcnn_jax.evaluation import report, results


def write(folder, split, **info):
    where = results.paths(folder, split)
    where.annotations.write_text(json.dumps(dict(info=dict(split=split, **info))))
    where.detections.write_text("[]")
    return where


def test_results_of_two_splits_lie_beside_each_other(tmp_path):
    val, test = write(tmp_path, "val"), write(tmp_path, "test", step=7)
    os.utime(val.detections, ns=(1, 1))
    assert list(results.found(tmp_path)) == ["test", "val"]  # the newest first
    assert len({*val, *test}) == 6
    read = json.loads(results.found(tmp_path)["test"].annotations.read_text())
    assert results.about(read) == dict(split="test", step=7)


def test_half_a_result_and_files_of_older_versions(tmp_path):
    (tmp_path / "annotations_val.json").write_text("{}")
    assert results.found(tmp_path) == {}
    for name in ("annotations", "detections"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert list(results.found(tmp_path)) == [""]


def test_parts_of_a_split_have_names_of_their_own():
    names = {results.file_name(f"val[{part}]") for part in ("", ":40", "40:", "-5:")}
    names |= {results.file_name("val"), results.file_name("a/b")}
    assert len(names) == 6 and not any(set(name) & set("/[:]") for name in names)


def test_metrics_of_different_splits_are_refused():
    whole = dict(images=[], annotations=[], categories=[])
    runs = [
        report.Run("a", [], {}, whole, [], split="val"),
        report.Run("b", [], {}, whole, [], split="test"),
    ]
    with pytest.raises(ValueError, match="splits: a of 'val', b of 'test'"):
        report.render(runs, [{}, {}])


def test_curves_of_two_splits_are_two_curves():
    rows = [dict(step=1, group="eval", split=s, AP=0.5) for s in ("val", "test")]
    assert report.curves(rows).keys() == {"eval/AP of val", "eval/AP of test"}
    assert report.curves(rows[:1]).keys() == {"eval/AP"}
