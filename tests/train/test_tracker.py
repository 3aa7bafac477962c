"""Weights & Biases, by a module of its name that notes what it is told: all that metrics.jsonl holds."""

import json
import sys
import types

import pytest
from runs import PLAIN, config

from adafuse_jax.errors import UserError
from adafuse_jax.train import loop
from adafuse_jax.train.logs import Logs
from adafuse_jax.train.tracker import Tracker


class Run:
    def __init__(self, **settings):
        self.settings, self.rows, self.exit_code, self.metrics = settings, [], None, {}

    def define_metric(self, name, step_metric):
        self.metrics[name] = step_metric

    def log(self, row):
        assert self.exit_code is None
        self.rows.append(row)

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def runs(monkeypatch):
    """The runs begun, in order."""
    begun = []

    def init(**settings):
        begun.append(Run(**settings))
        return begun[-1]

    def histogram(np_histogram):
        counts, edges = np_histogram
        assert len(edges) == len(counts) + 1
        return ("histogram", counts)

    module = types.ModuleType("wandb")
    module.init, module.Histogram, module.Error = init, histogram, type("Error", (Exception,), {})
    monkeypatch.setitem(sys.modules, "wandb", module)
    return begun


TRACKED = {"wandb_project": "videos"}


def flat(prefix, value):
    if isinstance(value, dict):
        return {k: v for name, inner in value.items() for k, v in flat(f"{prefix}/{name}", inner).items()}
    return {prefix: ("histogram", value) if isinstance(value, list) else value}


def test_what_is_logged_is_what_metrics_jsonl_holds(runs, tmp_path):
    values = config(**TRACKED, epochs=1.0)
    loop.train(values, tmp_path / "run")
    (run,) = runs
    assert run.settings["project"] == "videos"
    assert run.settings["name"] == "run"
    assert run.settings["config"] == values.to_dict()
    assert run.metrics == {"*": "step"}
    assert run.exit_code == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == len(run.rows) > 3
    for line, row in zip(lines, run.rows, strict=True):
        step, split = line.pop("step"), line.pop("split")
        del line["time"]
        assert row == {"step": step, **flat(split, line)}
    assert any(isinstance(v, tuple) for v in run.rows[-1].values())


def test_a_run_that_breaks_off_has_failed_there(runs, tmp_path):
    with (
        pytest.raises(OSError, match="disk full"),
        Logs(tmp_path, None, [Tracker(config(**TRACKED), tmp_path, None)]),
    ):
        raise OSError("disk full")
    assert runs[0].exit_code == 1


def test_a_run_goes_on_there_and_one_begun_anew_is_another(runs, tmp_path):
    for step in (None, 5, 7, None):
        Tracker(config(**TRACKED), tmp_path, step).close()
    ids = [run.settings["id"] for run in runs]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    assert {run.settings["resume"] for run in runs} == {"allow"}
    assert all(id.isalnum() for id in ids)


def test_without_the_package_nothing_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as not installed
    expected = r"config\.train\.wandb_project: expected wandb \(pip install 'adafuse_jax\[wandb\]'\), found: "
    with pytest.raises(UserError, match=expected) as error:
        loop.train(config(PLAIN, **TRACKED), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_where_it_cannot_start_it_says_why(runs, tmp_path, monkeypatch):
    wandb = sys.modules["wandb"]

    def init(**_):
        raise wandb.Error("no API key\nlong story")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(UserError, match=r"expected wandb to start, found: no API key \(WANDB_MODE=offline"):
        Tracker(config(**TRACKED), tmp_path, None)
