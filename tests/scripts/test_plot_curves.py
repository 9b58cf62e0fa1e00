"""The curves' legend says which split each curve is of."""

import json

from tests.scripts import many


def test_the_legend_names_the_splits(tmp_path):
    runs = []
    rows = [dict(step=1, group="eval", AP=0.1, AP50=0.3)]
    losses = dict.fromkeys(("total", "rpn_cls", "rpn_box", "roi_cls", "roi_box"), 1.0)
    rows.append(dict(losses, step=1, group="train"))
    for name, data in (("a", dict(train_split="all[:80%]", eval_split="t<2>")), "bc"):
        run = tmp_path / name
        run.mkdir()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (run / "metrics.jsonl").write_text(text)
        if isinstance(data, dict):
            (run / "config.json").write_text(json.dumps(dict(data=data)))
        runs.append(f"--runs={run}")
    output = tmp_path / "curves.svg"
    ((code, _, err),) = many.run([("plot_curves", *runs, f"--output={output}")])
    assert code == 0, err
    svg = output.read_text()
    assert ">a: losses of all[:80%], AP of t&lt;2&gt;</text>" in svg
    assert ">b</text>" in svg  # without a configuration
    assert 'height="428"' in svg  # a line for each run
