"""What the README says is so: its examples, its table of models, its commands."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import adafuse_jax
from adafuse_jax.config import Config, base
from adafuse_jax.ops import costs

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = dict(re.findall(r"^<!-- command: (\w+) -->\n```bash\n(.*)\n```$", README, re.MULTILINE))


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def table(title: str) -> list[list[str]]:
    """The cells of a section's table, without its two head rows."""
    rows = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_layer_plugs_in_with_six_lines():
    """The fused map is Eq. 3 of what the example convolves, under the policy that it got."""
    example = EXAMPLES[0]
    assert len([line for line in example.splitlines() if line]) == 6
    names = {}
    exec(example, names)
    policy, y = names["policy"], jax.nn.relu(names["conv"](names["x"]))
    assert policy.shape == (2, 8, 128, 3)
    before = jnp.concatenate([jnp.zeros_like(y[:, :1]), y[:, :-1]], 1)
    _, reuse, keep = jnp.moveaxis(policy, -1, 0)[:, :, :, None, None]
    np.testing.assert_allclose(names["fused"], keep * y + reuse * before, rtol=1e-6)


def test_fusion_goes_into_a_model_with_one_line():
    """The model after it reads Eq. 3 of the map before it; savings are those of Eq. 5 at this size."""
    names = {}
    exec(EXAMPLES[1], names)
    policy, y = names["policies"]["layers.0"], jax.nn.relu(names["model"].layers[0](names["clip"]))
    before = jnp.concatenate([jnp.zeros_like(y[:, :1]), y[:, :-1]], 1)
    _, reuse, keep = jnp.moveaxis(policy, -1, 0)[:, :, :, None, None]
    wanted = names["model"].layers[2](keep * y + reuse * before)
    np.testing.assert_allclose(names["out"], wanted, rtol=1e-4, atol=1e-5)
    cost = names["fused"].costs["layers.0"]
    assert cost == costs.SiteCost(((16, 32 * 32 * 16 * (27 + 1)),), 32 * 32 * 8 * (144 + 1))
    saved = 8 * sum(costs.savings(policy, cost))
    np.testing.assert_allclose(names["saved"], saved, rtol=1e-6)


def test_a_whole_model_classifies_and_counts():
    names = {}
    exec(EXAMPLES[2], names)
    assert names["out"].logits.shape == (1, 174)
    assert names["out"].frame_logits.shape == (1, 8, 174)
    cost = names["cost"]
    assert 0 < cost.actual[0] <= cost.upper[0] <= cost.dense


@pytest.mark.parametrize("row", table("Whole models"), ids=lambda row: row[0].strip("`"))
def test_table_of_models(row):
    name, _, params, dense, _ = row
    model = nnx.eval_shape(lambda: adafuse_jax.create_model(name.strip("`"), num_classes=174))
    found = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert f"{found / 1e6:.1f}" == params
    assert f"{model.count((224, 224)).dense * 8 / 1e9:.1f}" == dense


def test_all_families_and_backbones_are_named():
    named = set()
    for families, backbones in re.findall(r"^- (`[^:]*`): with ((?:`\w+`,?\s*)+)", README, re.MULTILINE):
        families, backbones = (re.findall(r"`(\w+)`", part) for part in (families, backbones))
        named |= {f"{f}_{b}" for f in families for b in backbones}
    assert named == set(adafuse_jax.list_models())


def test_flags_and_files_exist():
    fields = {f"{section}.{field}" for section, values in base().items() for field in values}
    flags = set(re.findall(r"--config\.([\w.]+)=", README))
    assert flags and flags <= fields
    files = set(re.findall(r"configs/\w+\.py", README)) | {
        "docs/figure.png",
        "docs/figure.py",
        "CITATION.cff",
    }
    for row in table("Where things are"):
        files |= set(re.findall(r"`(.*?)`", row[0]))
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_the_rhythm_of_the_lines_is_the_default():
    assert f"a line every {Config().train.log_every_steps} steps" in section("Watching a run")


def test_both_commands_start_from_nothing():
    setup = "python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e "
    assert COMMANDS.keys() == {"job", "tests"}
    assert all(command.startswith(setup) for command in COMMANDS.values())
    assert COMMANDS["job"].endswith(" && python main.py --config=configs/moving_shapes.py")
    assert COMMANDS["tests"].endswith(" && pytest -n auto")


@pytest.fixture
def ci(tmp_path):
    """Runs .ci/run on a README with another test command, and checks that it leaves no scratch files."""
    scratch = tmp_path / "scratch"
    (tmp_path / ".ci").mkdir()
    scratch.mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")

    def run(command: str):
        assert README.count(COMMANDS["tests"]) == 1
        (tmp_path / "README.md").write_text(README.replace(COMMANDS["tests"], command), encoding="utf-8")
        env = os.environ | {"TMPDIR": str(scratch)}
        done = subprocess.run([tmp_path / ".ci" / "run"], cwd="/", env=env, capture_output=True, text=True)
        assert list(scratch.iterdir()) == []
        return done

    return run


def test_ci_runs_the_test_command_in_an_environment_of_its_own(ci, tmp_path):
    done = ci("mkdir .venv && pwd && ls -d .venv")
    assert done.returncode == 0, done.stderr
    folder, venv = done.stdout.splitlines()[1:3]
    assert folder == str(tmp_path)
    assert Path(venv).is_relative_to(tmp_path / "scratch")
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("command", ["false", "true && exit 3", "", "true\ntrue"])
def test_ci_fails_where_the_command_fails_or_is_not_one_line(ci, command):
    assert ci(command).returncode != 0
