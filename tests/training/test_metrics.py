import json
import struct

import pytest
from tensorboardX.proto import event_pb2

from frcnn_jax.training import metrics
from frcnn_jax.training.metrics import Progress, Writer, duration, read


def test_rows_are_cut_back_to_the_restored_step(tmp_path):
    write = Writer(tmp_path)
    for step in (1, 2, 3):
        write(step, {"loss": step / 2}, group="train")
    write.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    write = Writer(tmp_path, step=2)
    write(3, {"loss": 9.0}, group="train")
    write.close()
    rows = [
        json.loads(r) for r in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert [(r["step"], r["loss"]) for r in rows] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    assert read(tmp_path / "metrics.jsonl") == rows
    assert list((tmp_path / "tensorboard").iterdir())


def events(file):
    """The events of a TFRecord file: length, 4 bytes, the event, 4 bytes."""
    data, found = file.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return found


def test_tensorboard_gets_every_row(tmp_path):
    write = Writer(tmp_path, step=4)
    write(5, {"loss": 0.5, "lr": 0.25}, group="train")
    write(6, {"AP": 0.125}, group="eval", split="val")
    write.close()
    (file,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    first, start, *rows = events(file)
    assert first.file_version == "brain.Event:2"
    assert start.step == 5 and start.session_log.status == event_pb2.SessionLog.START
    assert [(e.step, v.tag, v.simple_value) for e in rows for v in e.summary.value] == [
        (5, "train/loss", 0.5),
        (5, "train/lr", 0.25),
        (6, "eval/AP", 0.125),
    ]


def test_progress_adds_the_speed(caplog):
    progress = Progress(100, batch_size=4)
    with caplog.at_level("INFO", logger="frcnn_jax"):
        values = progress(10, {"total": 1.5, "rpn_cls": 0.5, "learning_rate": 0.01})
    assert values["images_per_second"] > 0
    assert "step 10/100" in caplog.text and "rpn_cls 0.5" in caplog.text
    assert "images/s" in caplog.text and "left" in caplog.text


@pytest.mark.parametrize(
    "seconds, text",
    [(12.0, "12s"), (245.0, "4m05s"), (11520.0, "3h12m"), (float("nan"), "?")],
)
def test_duration_reads_well(seconds, text):
    assert duration(seconds) == text


def test_waiting_is_the_share_spent_on_data(monkeypatch):
    now = iter([0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 4.0])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(now))
    progress = metrics.Progress(10, 2)
    batches = iter("ab")
    assert (progress.next(batches), progress.next(batches)) == ("a", "b")
    values = progress(2, dict(total=1.0, learning_rate=0.1, padding=0.2))
    assert values["waiting"] == (0.5 + 1.0) / 4
    assert values["images_per_second"] == 1.0


def test_countdown_says_every_twenty_seconds_what_is_left(monkeypatch, caplog):
    clock = iter([0.0, 10.0, 30.0, 40.0])  # at the start, then at each count
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    tell = metrics.Countdown(12, "images evaluated")
    with caplog.at_level("INFO"):
        for _ in range(3):
            tell(1)
    assert caplog.messages == ["2/12 images evaluated, 3m20s left"]
