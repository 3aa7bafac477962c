"""Every system of the paper's tables: its config, its counts beside the paper's, and a step of training."""

import csv
import dataclasses
import io
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import quick_jit

from adafuse_jax import cli
from adafuse_jax.config import Config
from adafuse_jax.report import table
from adafuse_jax.report.paper import DATA_SETS, rows
from adafuse_jax.train import run
from adafuse_jax.train import state as states
from adafuse_jax.train.optim import groups, make_optimizer
from adafuse_jax.train.step import make_train_step

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
OURS = {"arid_r50", "common", "moving_shapes", "video_list"}  # not of the paper
# The first row of each model.
MODELS = {(row.model, tuple(row.options.items())): row.config for row in reversed(rows())}


def test_a_config_a_row():
    names = [row.config for row in rows()]
    assert len(set(names)) == len(names)
    assert set(names) | OURS == {path.stem for path in CONFIGS.glob("*.py")}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.config)
def test_a_config_says_and_makes_what_its_row_is(row):
    path = CONFIGS / f"{row.config}.py"
    config = Config.from_dict(runpy.run_path(str(path))["get_config"]().to_dict())
    assert (config.model.name, dict(config.model.options)) == (row.model, dict(row.options))
    assert config.data.num_classes == {"jester": 27, "minik": 200}.get(row.data, 174)
    assert config.data.flip == (0.5 if row.data == "minik" else 0.0)
    assert (config.loss.flops_weight > 0) == row.model.startswith(("adafuse", "arnet"))
    head, _, rest = path.read_text().partition("\n")
    assert head.endswith(f" on {DATA_SETS[row.data]}.")
    assert f"{row.top1:g}% top-1" in rest and f" {row.gmacs:g} GMACs per clip" in rest
    assert f"python main.py --config=configs/{row.config}.py " in rest


@pytest.fixture(scope="module")
def counted():
    return [table.count(row) for row in rows()]


def test_a_figure_that_is_off_says_why(counted):
    assert [c.row.config for c in counted if c.differs and not c.row.note] == []


def test_table_7(counted):
    """At its shares of skip and reuse the costs of its five rows come out."""
    last = [c for c in counted if c.row.config.startswith("sthv2_adafuse_tsm_last_r50_h")]
    assert len(last) == 5
    for row in last:
        assert row.gmacs == pytest.approx(row.row.gmacs, rel=2e-3)


def test_policies_can_reach_what_they_cost_in_the_paper(counted):
    """Trained costs lie between those of skipping everything and of keeping everything."""
    ours = (c for c in counted if c.row.model.startswith("adafuse") and c.row.learnt)
    for c in (c for c in ours if "EfficientNet" not in c.row.backbone):  # quoted at other resolutions
        _, frame = table._sizes(c.row.model, tuple(c.row.options.items()))
        least = table.costs.expected(frame, (1.0, 0.0, 0.0)) / 1e9
        assert least < c.row.gmacs < c.dense, c.row.config


def test_the_table_in_three_styles(capsys):
    assert cli.main(["table", "--data", "jester", "--format", "csv"]) == 0
    head, *lines = csv.reader(io.StringIO(capsys.readouterr().out))
    wanted = [row for row in rows() if row.data == "jester"]
    assert [line[head.index("config")] for line in lines] == [row.config for row in wanted]
    assert cli.main(["table", "--data", "jester", "--format", "markdown"]) == 0
    markdown = capsys.readouterr().out.splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown[2:]] == lines
    assert cli.main(["table", "--data", "jester"]) == 0
    text = capsys.readouterr().out
    for line in lines:
        assert any(" ".join(shown.split()).startswith(" ".join(line[:-1])) for shown in text.splitlines())
        assert line[-1] in text


def test_an_unknown_data_set_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["table", "--data", "kinetics"])
    assert stopped.value.code == 2
    assert "invalid choice: 'kinetics'" in capsys.readouterr().err


# They stand for their kinds: all of them take minutes to compile.
QUICK = {f"sthv1_{name}_r18" for name in ("tsn", "adafuse_tsn", "lstm", "cgnet", "threshold", "random")}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in MODELS.values()]
)
def test_a_step_of_training_changes_everything(name):
    """BatchNorm statistics, every parameter group, the optimiser's state."""
    values = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]().to_dict()
    config = Config.from_dict(values)
    frames = 32 if "arnet" in name else 2  # each of its nets needs a frame that it is chosen for
    small = dataclasses.replace(config.data, num_classes=5, image_size=32, num_frames=frames)
    train = dataclasses.replace(config.train, batch_size=2)
    config = dataclasses.replace(config, data=small, train=train)
    # What reaches a policy network passes layers of N(0, 0.001): at the config's rate it is lost beside a 1.
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=1.0))
    parts = run.build(config, jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, parts.params, 1, 50)
    step = quick_jit(make_train_step(parts.graph, config, optimizer, 50, parts.devices).__wrapped__)
    before = states.initial(parts.params, parts.stats, optimizer)
    rng = np.random.default_rng(0)
    batch = {
        "clip": rng.integers(0, 256, (2, frames, 32, 32, 3), np.uint8),
        "label": np.array([1, 3], np.int32),
        "weight": np.ones(2, np.float32),
    }
    after, metrics = step(before, batch, jax.random.key(0))
    assert np.isfinite(metrics.loss)

    def changed(a, b):
        return bool((np.asarray(a) != np.asarray(b)).any())

    stats = jax.tree.leaves(jax.tree.map(changed, before.stats, after.stats))
    assert all(stats)
    kinds: dict[str, list[bool]] = {}
    jax.tree.map(
        lambda kind, a, b: kinds.setdefault(kind, []).append(changed(a, b)),
        groups(before.params), before.params, after.params,
    )  # fmt: skip
    assert set(kinds) == {"weight", "norm", "bias"}
    assert all(kinds["weight"]) and all(kinds["norm"])
    assert any(kinds["bias"])  # one before a BatchNorm has no gradient but rounding
    momenta = jax.tree.map(changed, before.opt_state, after.opt_state)
    assert np.mean(jax.tree.leaves(momenta)) > 0.7
    assert int(after.step) == 1
