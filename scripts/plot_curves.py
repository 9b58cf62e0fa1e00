"""The curves of runs as one SVG picture: losses, learning rate, AP.

python scripts/plot_curves.py --runs=runs/bccd --output=docs/images/bccd_curves.svg
python scripts/plot_curves.py --runs=runs/a --runs=runs/b --output=both.svg --smooth=20

Reads each run's metrics.jsonl; several runs (`--runs` repeated) share the axes. Losses
are drawn as running means over `--smooth` logged values. A line for each run names the
splits of its config.json: losses are of the training split, AP of the evaluation split.
"""

import html
import json
import pathlib

from absl import flags

from frcnn_jax.training import cli, troubles
from frcnn_jax.training.metrics import read

RUNS = flags.DEFINE_multi_string("runs", None, "Folders of runs.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "An .svg file.", required=True)
SMOOTH = flags.DEFINE_integer(
    "smooth", 5, "The number of logged values in a running mean."
)

PANELS = [
    ("train", "total", "loss"),
    ("train", "rpn_cls", "RPN objectness"),
    ("train", "rpn_box", "RPN boxes"),
    ("train", "roi_cls", "detector classes"),
    ("train", "roi_box", "detector boxes"),
    ("eval", "AP", "AP (solid) and AP50 (dashed)"),
]
COLORS = ["#1f6fb4", "#d1495b", "#3a7d44", "#8f5db7", "#c77d1e"]
WIDTH, HEIGHT, LEFT, TOP, GAP, LINE = 300, 190, 46, 26, 30, 18


def running_mean(points, n):
    values = [v for _, v in points]
    means = (values[max(0, i - n + 1) : i + 1] for i in range(len(values)))
    return [(x, sum(m) / len(m)) for (x, _), m in zip(points, means, strict=True)]


def label(run):
    """A run's name, and the splits that its curves are of."""
    file = pathlib.Path(run) / "config.json"
    data = json.loads(file.read_text()).get("data", {}) if file.is_file() else {}
    train, evaluation = data.get("train_split"), data.get("eval_split")
    said = f": losses of {train}" if train else ""
    said += f", AP of {evaluation}" if train and evaluation else ""
    return f"{pathlib.Path(run).name}{said}"


def panel(title, curves, unit):
    """One chart: `curves` are (points, colour, dashes); returns SVG elements."""
    steps = [x for points, _, _ in curves for x, _ in points] or [1]
    values = [y for points, _, _ in curves for _, y in points] or [1.0]
    right, high = max(steps), 1.0 if unit else max(values) * 1.05 or 1.0
    w, h = WIDTH - LEFT - 8, HEIGHT - TOP - 24

    def place(x, y):
        return f"{LEFT + w * x / right:.1f},{TOP + h * (1 - y / high):.1f}"

    parts = [f'<text x="{LEFT}" y="16" class="t">{html.escape(title)}</text>']
    for i in range(5):
        y = high * i / 4
        a, b = place(0, y), place(right, y)
        (x1, y1), (x2, _) = a.split(","), b.split(",")
        parts.append(f'<path d="M{a} L{b}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{float(x1) - 5}" y="{float(y1) + 4}" class="n">{y:.2g}</text>'
        )
        if i == 0:
            label = f'y="{float(y1) + 16}" class="n"'
            parts.append(f'<text x="{x1}" {label}>0</text>')
            parts.append(f'<text x="{x2}" {label}>{right}</text>')
    for points, color, dashes in curves:
        path = " L".join(place(x, y) for x, y in points)
        if path:
            parts.append(
                f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.8" '
                f'stroke-dasharray="{dashes}"/>'
            )
            x, y = place(*points[-1]).split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{color}"/>')
    return parts


def main(_):
    output = troubles.prepare_file(OUTPUT.value)
    runs = {
        pathlib.Path(r).name: read(pathlib.Path(r) / "metrics.jsonl")
        for r in RUNS.value
    }
    body = []
    for i, (group, name, title) in enumerate(PANELS):
        curves = []
        for color, rows in zip(COLORS * len(runs), runs.values(), strict=False):
            rows = [r for r in rows if r["group"] == group]
            if group == "eval":
                for key, dashes in (("AP", ""), ("AP50", "5 3")):
                    points = [(r["step"], r[key]) for r in rows if key in r]
                    curves.append((points, color, dashes))
            else:
                points = [(r["step"], r[name]) for r in rows]
                curves.append((running_mean(points, SMOOTH.value), color, ""))
        x, y = i % 3 * WIDTH, i // 3 * HEIGHT
        body += [f'<g transform="translate({x},{y})">']
        body += [*panel(title, curves, group == "eval"), "</g>"]
    for i, text in enumerate(map(label, RUNS.value)):
        color = COLORS[i % len(COLORS)]
        body.append(
            f'<text x="{LEFT}" y="{2 * HEIGHT + 18 + LINE * i}" class="t" '
            f'style="fill:{color}">{html.escape(text)}</text>'
        )
    height = 2 * HEIGHT + GAP + LINE * (len(RUNS.value) - 1)
    size = f'width="{3 * WIDTH}" height="{height}"'
    style = (
        "text{font:12px sans-serif;fill:#333}.n{font-size:10px;text-anchor:end}"
        ".t{font-weight:600}"
    )
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>']
    svg += ['<rect width="100%" height="100%" fill="white"/>', *body, "</svg>"]
    output.write_bytes(("\n".join(svg) + "\n").encode("utf-8", "backslashreplace"))
    print(json.dumps({"output": str(output), "runs": list(runs)}))


if __name__ == "__main__":
    cli.run(main)
