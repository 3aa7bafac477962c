"""What a run writes can be read back, holds each step once after a resume, and no NaN."""

import io
import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from adafuse_jax.errors import UserError
from adafuse_jax.train.logs import EVENTS, FILE, Logs, Progress


def _lines(workdir):
    return [json.loads(line) for line in (workdir / FILE).read_text().splitlines()]


def _events(workdir):
    """(tag, step, value) of all events: records of length (8 bytes), its CRC (4), the event, its CRC (4)."""
    found = []
    for path in sorted((workdir / EVENTS).iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            found += [(v.tag, event.step, _value(v)) for v in event.summary.value]
            at += size + 16
    return found


def _value(value):
    """A scalar, or the counts and upper limits of a histogram."""
    if not value.HasField("histo"):
        return value.simple_value
    assert value.histo.num == sum(value.histo.bucket)
    return tuple(value.histo.bucket), tuple(value.histo.bucket_limit)


def test_lines_and_events_hold_what_was_written(tmp_path):
    scalars = {"loss": jnp.float32(0.5), "clips": 8, "shares": {"skip": np.float64(0.25)}}
    with Logs(tmp_path / "run") as logs:
        logs.write(3, "train", scalars)
        logs.write(4, "val", {"top1": 1.0})
    first, second = _lines(tmp_path / "run")
    assert first.pop("time") <= second.pop("time")
    assert first == {"step": 3, "split": "train", "loss": 0.5, "clips": 8, "shares": {"skip": 0.25}}
    assert second == {"step": 4, "split": "val", "top1": 1.0}
    assert set(_events(tmp_path / "run")) == {
        ("train/loss", 3, 0.5),
        ("train/clips", 3, 8.0),
        ("train/shares/skip", 3, 0.25),
        ("val/top1", 4, 1.0),
    }


def test_histograms_are_lists_in_the_file_and_histograms_for_tensorboard(tmp_path):
    counts = [3, 0, 0, 0, 0, 1, 0, 0, 0, 4]
    with Logs(tmp_path) as logs:
        logs.write(5, "val", {"histograms": {"layer1.0": {"keep": counts}}})
    assert _lines(tmp_path)[0]["histograms"] == {"layer1.0": {"keep": counts}}
    ((tag, step, (found, limits)),) = _events(tmp_path)
    assert (tag, step, list(found)) == ("val/histograms/layer1.0/keep", 5, counts)
    np.testing.assert_allclose(limits, np.arange(1, 11) / 10)


def test_who_else_is_told_is_told_the_same(tmp_path):
    class Other:
        def __init__(self):
            self.told, self.failed = [], None

        def write(self, step, values):
            self.told += [(name, step, value) for name, value in values]

        def close(self, failed):
            self.failed = failed

    other = Other()
    with Logs(tmp_path, others=[other]) as logs:
        logs.write(3, "train", {"loss": 0.5, "shares": {"skip": 0.25}})
        logs.write(4, "train", {"loss": 0.25})
    assert other.told == _events(tmp_path)
    assert other.failed is False


def test_a_process_that_does_not_write_touches_nothing(tmp_path):
    with Logs(tmp_path / "run", write=False) as logs:
        logs.write(1, "train", {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_lines_are_there_before_the_end(tmp_path):
    with Logs(tmp_path) as logs:
        logs.write(1, "train", {"loss": 1.0})
        assert len(_lines(tmp_path)) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, jnp.nan])
def test_what_json_does_not_know_is_null(tmp_path, value):
    with Logs(tmp_path) as logs:
        logs.write(1, "train", {"loss": value, "sites": {"a": value}})
    line = json.loads((tmp_path / FILE).read_text(), parse_constant=lambda name: pytest.fail(name))
    assert line["loss"] is None
    assert line["sites"] == {"a": None}


def test_resume_drops_what_will_be_done_again(tmp_path):
    with Logs(tmp_path) as logs:
        for step in range(1, 6):
            logs.write(step, "train", {"loss": float(step)})
    with Logs(tmp_path, step=3) as logs:
        logs.write(4, "train", {"loss": 40.0})
    assert [(line["step"], line["loss"]) for line in _lines(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(FILE)] == [FILE]


def test_a_run_from_its_start_begins_an_empty_file(tmp_path):
    for _ in range(2):
        with Logs(tmp_path) as logs:
            logs.write(0, "val", {"top1": 0.0})
    assert len(_lines(tmp_path)) == 1


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    with Logs(tmp_path) as logs:
        logs.write(1, "train", {"loss": 1.0})
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 2, "spl')
    with Logs(tmp_path, step=2) as logs:
        logs.write(3, "train", {"loss": 1.0})
    assert [line["step"] for line in _lines(tmp_path)] == [1, 3]


def test_a_broken_line_elsewhere_is_an_error_and_stays(tmp_path):
    text = 'not json\n{"step": 1, "split": "train"}\n'
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match="line 1: expected a JSON object with a step, found 'not json'"):
        Logs(tmp_path, step=1)
    assert (tmp_path / FILE).read_text() == text


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _bar(file):
    with Progress("train", steps=10, batch_size=8, done=6, file=file, seconds=0) as progress:
        progress.update(loss=1.5, top1=0.5, gmacs=7.25)
        progress.update()
        progress.update(loss=math.nan, steps=2)
    return file.getvalue()


def test_progress_in_a_file_is_plain_lines():
    lines = _bar(io.StringIO()).splitlines()
    assert lines[0].startswith("train: 48/80 ")
    assert "clips/s, loss=1.500, top-1=50.0%, GMACs=7.25" in lines[1]
    assert lines[1].startswith("train: 56/80 ")
    assert "GMACs=7.25" in lines[2]
    assert lines[-1].startswith("train: 80/80 ")
    assert "loss=nan" in lines[-1]


def test_progress_on_a_terminal_is_one_line():
    text = _bar(_Terminal())
    assert text.count("\n") == 1
    assert "100%" in text.rsplit("\r", 1)[-1]


def test_progress_in_a_file_is_rare(capfd):
    with Progress("train", steps=1000, batch_size=8, file=sys.stderr) as progress:
        for _ in range(1000):
            progress.update(loss=1.0)
    assert len(capfd.readouterr().err.splitlines()) == 2  # the start and the end
