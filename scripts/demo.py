r"""A page to try a detector: upload a picture, move the score, choose classes.

python scripts/demo.py --checkpoint=runs/demo
python scripts/demo.py --checkpoint=torchvision/fasterrcnn_resnet50_fpn --port=7861

Needs the package gradio (`pip install gradio`); nothing is sent anywhere, the page is
on this machine alone unless `--host=0.0.0.0`. A picture is detected once, and the
slider and the classes choose among what was found.
"""

import json
import logging
from typing import Any

from absl import app, flags

from frcnn_jax.detector import Detector, load
from frcnn_jax.evaluation import draw
from frcnn_jax.records import Record, records
from frcnn_jax.training import cli, devices
from frcnn_jax.training.metrics import log_to_stderr

log = logging.getLogger("frcnn_jax.demo")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A run's folder, a checkpoint, or a detector's name or file.",
    required=True,
)
HOST = flags.DEFINE_string("host", "127.0.0.1", "The address to serve on.")
PORT = flags.DEFINE_integer("port", 7860, "The port to serve on.", lower_bound=1)
SCORE = flags.DEFINE_float("score", 0.5, "Where the slider of the score begins.")


def shown(record: Record, score: float, classes: list[str]) -> Record:
    """What of a record is at least `score` sure, and of `classes` if any are named."""
    kept = [
        i
        for i, name in enumerate(record.class_names)
        if record.scores[i] >= score and (not classes or name in classes)
    ]
    return record._replace(
        boxes=record.boxes[kept],
        scores=record.scores[kept],
        classes=record.classes[kept],
        category_ids=record.category_ids[kept],
        class_names=tuple(record.class_names[i] for i in kept),
    )


def table(record: Record) -> list[list[Any]]:
    """A row for each box: class, score and corners."""
    rows = zip(record.class_names, record.scores, record.boxes, strict=True)
    return [
        [c, round(float(s), 3), *(round(float(x), 1) for x in b)] for c, s, b in rows
    ]


def find(detector: Detector, image: Any) -> Record | None:
    """All that is found in an RGB image; None without one."""
    if image is None:
        return None
    return records(detector([image]), [image], detector)[0]


def answer(detector: Detector, image: Any, failed: type[Exception]) -> Record | None:
    """`find`; what it cannot do is raised as `failed` with one line, and logged."""
    try:
        return find(detector, image)
    except draw.FAILURES as error:
        log.error("%s", error)
        raise failed(str(error)) from error


def view(image: Any, found: Record | None, score: float, classes: list[str]) -> Any:
    """The picture with its boxes, and the rows of the table."""
    if image is None or found is None:
        return None, []
    kept = shown(found, score, classes)
    return kept.plot(image), table(kept)


def build(detector: Detector, *, score: float) -> Any:
    """The page, a `gradio.Blocks`."""
    try:
        import gradio  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "scripts/demo.py needs the package gradio: pip install gradio"
        ) from error

    with gradio.Blocks(title="frcnn_jax") as page:
        gradio.Markdown(f"## Faster R-CNN, {len(detector.classes)} classes")
        found = gradio.State(None)
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(type="numpy", image_mode="RGB", label="Picture")
                slider = gradio.Slider(0, 1, value=score, step=0.01, label="Score")
                classes = gradio.Dropdown(
                    list(detector.classes), multiselect=True, label="Classes"
                )
            with gradio.Column():
                drawn = gradio.Image(type="numpy", format="png", label="Detections")
                rows = gradio.Dataframe(
                    headers=["class", "score", "x1", "y1", "x2", "y2"],
                    label="Boxes",
                    interactive=False,
                )
        shown_now = dict(
            fn=view, inputs=[image, found, slider, classes], outputs=[drawn, rows]
        )
        ask = lambda x: answer(detector, x, gradio.Error)  # noqa: E731
        image.change(ask, image, found).then(**shown_now)
        slider.change(**shown_now)
        classes.change(**shown_now)
    return page


def main(_):
    if not 0 <= SCORE.value <= 1:
        raise app.UsageError(f"--score={SCORE.value}: expected 0 to 1")
    log_to_stderr()
    devices.keep_compiled()
    detector = load(CHECKPOINT.value)
    page = build(detector, score=SCORE.value)
    about = dict(url=f"http://{HOST.value}:{PORT.value}", classes=detector.classes)
    print(json.dumps(about), flush=True)
    page.launch(server_name=HOST.value, server_port=PORT.value, quiet=True)


if __name__ == "__main__":
    cli.run(main)
