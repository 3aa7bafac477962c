"""`adafuse bench`: what it times does as it says, and its numbers are those of `flops.count`."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import filled
from test_predict import FRAMES, SIZE, trained, workdir, write_video  # noqa: F401

from adafuse_jax import bench, cli, compact, create_model, flops
from adafuse_jax.errors import UserError
from adafuse_jax.kernels import build
from adafuse_jax.layers import TemporalFusion
from adafuse_jax.predict import predict
from adafuse_jax.report import saved

SHARES = (0.35, 0.25, 0.4)


def clips(batch=2, frames=4, size=24):
    shape = (batch, frames, size, size, 3)
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def made(name="adafuse_tsn_tiny", **options):
    return filled(lambda: create_model(name, num_classes=4, **options))


def chances(policies):
    return np.concatenate([np.asarray(policy).reshape(-1, policy.shape[-1]) for policy in policies.values()])


def test_a_drawn_model_acts_as_drawn():
    model, clip = made(), clips()
    runs = bench.prepare(model, clip, bench.Drawn(model, SHARES, 2, 4), ("dense",))
    policies = runs.clip["dense"]().policies
    actions = chances(policies)
    assert ((actions == 0) | (actions == 1)).all() and (actions.sum(-1) == 1).all()
    error = np.sqrt(0.25 / len(actions))
    np.testing.assert_allclose(actions.mean(0), SHARES, atol=5 * error)
    for policy in policies.values():  # neither the same at every frame nor in every clip
        assert (policy[:, 1:] != policy[:, :1]).any() and (policy[:1] != policy[1:]).any()
    again = bench.prepare(model, 2 * clip, bench.Drawn(model, SHARES, 2, 4), ("dense",))
    jax.tree.map(np.testing.assert_array_equal, again.clip["dense"]().policies, policies)


@pytest.mark.parametrize(
    ("name", "options", "executions"),
    [
        ("adafuse_tsn_tiny", {}, compact.EXECUTIONS),
        ("adafuse_tsm_tiny", {"shift": "online", "group_size": 4}, compact.EXECUTIONS),
        ("adafuse_tsn_tiny", {"actions": ("reuse", "keep"), "fusion_stages": (3,)}, ("dense",)),
    ],
)
def test_all_runs_of_a_model_say_the_same(name, options, executions):
    """On clips and frame by frame, dense and compactly: by the same draws, and so to the same end."""
    model, clip = made(name, **options), clips()
    shares = SHARES if "actions" not in options else (0.0, 0.5, 0.5)
    runs = bench.prepare(model, clip, bench.Drawn(model, shares, 2, 4), executions)
    wanted = runs.clip["dense"]()
    others = [run() for run in runs.clip.values()]
    frame_logits = [out.frame_logits for out in others]
    policies = [out.policies for out in others]
    for run in runs.stream.values():
        outs = run()
        frame_logits.append(np.stack([out.frame_logits for out in outs], 1))
        policies.append({k: np.stack([out.policies[k] for out in outs], 1) for k in wanted.policies})
    assert len(policies) == len(runs.named()) >= 2
    for logits, of in zip(frame_logits, policies, strict=True):
        for site, policy in wanted.policies.items():
            np.testing.assert_array_equal(of[site], policy)
        size = np.abs(wanted.frame_logits).max()
        np.testing.assert_allclose(logits, wanted.frame_logits, rtol=0, atol=1e-4 * size)


def test_the_policy_network_of_a_drawn_model_still_runs():
    """XLA finds as many operations to do as in the model itself."""
    model, clip = made(), clips()

    def operations(of):
        graph, weights = nnx.split(of)
        compiled = jax.jit(lambda w, c: nnx.merge(graph, w)(c)).lower(weights, clip).compile()
        return compiled.cost_analysis()["flops"]

    wanted = operations(model)
    assert operations(bench.Drawn(model, SHARES, 2, 4).model) == pytest.approx(wanted, rel=1e-3)
    network = sum(block.fusion.macs for _, block in model.backbone.named_blocks())
    assert network * clip.shape[0] * clip.shape[1] > 2e-3 * wanted  # which would be missed


def test_sites_that_share_a_network_draw_each_for_itself():
    model = create_model("adafuse_tsn_r18", num_classes=4)
    biases = [m.fc1.bias[...] for _, m in nnx.iter_modules(model) if isinstance(m, TemporalFusion)]
    drawn = bench.Drawn(model, SHARES, 1, 2).model
    found = [m.fc1.bias[...] for _, m in nnx.iter_modules(drawn) if isinstance(m, TemporalFusion)]
    assert len(found) == len(biases) == 8
    same = [(a, b) for i, a in enumerate(found) for b in found[:i] if a.shape == b.shape]
    assert same and all((a != b).any() for a, b in same)
    assert all((bias == 0).all() for bias in biases)  # the model is as it was


def test_random_policies_take_the_shares():
    model, clip = made("random_tiny"), clips()
    runs = bench.prepare(model, clip, bench.Drawn(model, (1.0, 0.0, 0.0), 2, 4), ("dense",))
    assert (chances(runs.clip["dense"]().policies) == (1, 0, 0)).all()
    assert runs.stream == {} and runs.missing[0].startswith("stream: expected policies that depend on")


@pytest.mark.parametrize(
    ("name", "options", "shares", "message"),
    [
        (
            "tsn_tiny",
            {},
            SHARES,
            "a model with policy networks or random policies to draw for, found 'tsn_ti",
        ),
        (
            "arnet_tiny",
            {},
            SHARES,
            "a model with policy networks or random policies to draw for, found 'arne",
        ),
        ("adafuse_tsn_tiny", {}, (0.5, 0.6, -0.1), "shares of skip, reuse, keep that add up to 1, found 0.5"),
        ("adafuse_tsn_tiny", {}, (0.5, 0.4), "shares of skip, reuse, keep that add up to 1, found 0.5,0.4"),
        (
            "adafuse_tsn_tiny",
            {},
            (float("nan"), 0.5, 0.5),
            "shares of skip, reuse, keep that add up to 1, fo",
        ),
        (
            "adafuse_tsn_tiny",
            {"actions": ("skip", "keep")},
            SHARES,
            "shares of skip, keep alone, what the mo",
        ),
    ],
)
def test_what_cannot_be_drawn(name, options, shares, message):
    with pytest.raises(UserError, match=f"policy: expected {message}"):
        bench.Drawn(made(name, **options), shares, 1, 2)


@pytest.mark.parametrize(
    "name", ["adafuse_tsn_tiny", "adafuse_tsn_inc", "cgnet_tiny", "arnet_tiny", "tsn_tiny"]
)
def test_stages_add_up_to_the_count(name):
    model, random = nnx.eval_shape(lambda: create_model(name, num_classes=4)), np.random.default_rng(0)
    count = len(model.actions) if hasattr(model, "actions") else 0
    sites = model.count((64, 64)).sites
    policies = {
        site: jax.nn.one_hot(random.integers(0, count, (2, 3, of.channels)), count)
        for site, of in sites.items()
    }
    cost = flops.count(model, policies, image_size=64, num_frames=3)
    stages = saved.by_stage(model, policies, image_size=64, num_frames=3)
    dense, less = np.sum(list(stages.values()), 0)
    assert dense == pytest.approx(cost.dense / 1e9)
    assert dense - less == pytest.approx(float(cost.actual.mean()) / 1e9, rel=1e-5)
    assert list(stages) == [*dict.fromkeys(map(model.stage_of, sites)), "all else"]
    assert all(0 <= saving <= total for total, saving in stages.values())


def test_theory_beside_what_was_measured():
    assert saved.side_by_side(3.0, 4.0, 0.0123, 0.0246) == [
        "cost     3 GMACs per clip of 4 dense (75.0%)",
        "time     12.3 ms per clip of 24.6 dense (50.0%)",
    ]
    # Ratios are of one turn: here always a half, though the medians' isn't.
    turns = saved.times(np.array([1.0, 2.0, 30.0]), np.array([2.0, 4.0, 60.0]), "per frame")
    assert turns == "2000.0 ms per frame of 4000.0 dense (50.0%; 50.0% to 50.0%)"
    spread = saved.times(np.array([1.0, 2.0, 3.0]), np.array([4.0, 4.0, 4.0]))
    assert spread == "2000.0 ms per clip of 4000.0 dense (50.0%; 37.5% to 62.5%)"
    assert saved.times(None, 0.5) == "500.0 ms per clip, dense"
    assert saved.times(0.5, None) == "500.0 ms per clip, compact"
    assert saved.times(None, None) == "not measured"


def test_all_take_turns():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = bench.take_turns(runs, 3)
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"
    assert {name: len(of) for name, of in seconds.items()} == {"a": 3, "b": 3, "c": 3}


SMALL = ["--image_size", "24", "--num_frames", "4", "--turns", "2"]


def figures(printed):
    """{kind: (GMACs spent, GMACs dense)} that a command printed, and its lines of times."""
    blocks = re.findall(r"^(.+)\ncost     (\S+) GMACs .* of (\S+) dense .*\ntime     (.*)$", printed, re.M)
    return {kind: (float(spent), float(dense)) for kind, spent, dense, _ in blocks}, [b[-1] for b in blocks]


def test_the_command(capsys):
    arguments = ["--model", "adafuse_tsn_tiny", "--policy", ".35,.25,.4", "--batch", "2", *SMALL]
    assert cli.main(["bench", *arguments]) == 0
    printed = capsys.readouterr().out
    model = create_model("adafuse_tsn_tiny")
    runs = bench.prepare(model, clips(), bench.Drawn(model, SHARES, 2, 4), ("dense",))
    policies = runs.clip["dense"]().policies
    cost = flops.count(model, policies, image_size=24)
    costs, times = figures(printed)
    spent, dense = float(cost.actual.mean()) / 1e9, cost.dense / 1e9
    assert costs["on clips"] == pytest.approx((spent, dense), rel=1e-3)
    assert costs["frame by frame"] == pytest.approx((spent / 4, dense / 4), rel=1e-3)
    assert " ms per clip" in times[0] and " ms a frame" in times[1]
    assert (" of " in times[0]) == build.load()
    rows = {row[0]: row[-3:] for row in (line.split() for line in printed.splitlines()) if len(row) >= 4}
    assert [float(n) for n in rows["all"][:2]] == pytest.approx([dense, dense - spent], abs=1e-4)
    shares = chances(policies).mean(0)
    assert f"actions  skip {shares[0]:6.1%}  reuse {shares[1]:6.1%}  keep {shares[2]:6.1%}\n" in printed
    assert re.search(r"^2 turns on \d+ cores, load average [\d.]+ before and [\d.]+ after$", printed, re.M)


def test_without_native_code_dense_alone_is_timed(monkeypatch, capsys):
    monkeypatch.setattr(build, "load", lambda: False)
    assert cli.main(["bench", "--model", "adafuse_tsn_tiny", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "not timed: compact execution: expected native code, found none here\n" in printed
    assert [line.split(", ")[-1] for line in figures(printed)[1]] == ["dense", "dense"]


def test_a_checkpoint_on_a_video(workdir, trained, tmp_path, capsys):  # noqa: F811
    images = np.random.default_rng(3).integers(0, 256, (9, SIZE, SIZE, 3), np.uint8)
    video = write_video(tmp_path / "clip.mov", images)
    arguments = ["--checkpoint", str(workdir), "--video", str(video), "--turns", "1", "--execution", "dense"]
    assert cli.main(["bench", *arguments]) == 0
    printed = capsys.readouterr().out
    wanted = predict(video, trained)
    costs, _ = figures(printed)
    assert costs["on clips"] == pytest.approx((wanted.gmacs, wanted.dense_gmacs), rel=1e-3)
    assert printed.splitlines()[2].split()[1::2] == ["skip", "reuse", "keep"]
    assert f"1 x {FRAMES} frames of {SIZE}x{SIZE} of {video}; policies of its own" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "adafuse_tsn_tinny"], "unknown model 'adafuse_tsn_tinny' (did you mean"),
        (["--model", "adafuse_tsn_tiny", "--policy", "a,b"], "--policy: expected SKIP,REUSE,KEEP, as .35,"),
        (["--model", "adafuse_tsn_tiny", "--policy", ".9,.9,.9"], "policy: expected shares of skip, reuse"),
        (["--model", "tsn_tiny", "--policy", ".3,.3,.4"], "policy: expected a model with policy networks"),
        (["--model", "adafuse_tsn_tiny", "--video", "none.mp4"], "video none.mp4: expected a file, found n"),
        (["--model", "adafuse_tsn_tiny", "--video", __file__], f"video {__file__}: "),
        (
            ["--model", "tsn_tiny", "--execution", "compact"],
            "compact execution: expected a model with fusion",
        ),
        (["--checkpoint", "nowhere"], "checkpoint nowhere: expected a run's workdir"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert cli.main(["bench", *arguments, *SMALL]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1 and printed.out == ""


@pytest.mark.parametrize(
    "arguments", [[], ["--model", "a", "--checkpoint", "b"], ["--model", "a", "--turns", "0"]]
)
def test_wrong_flags(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["bench", *arguments])
