"""Reading published state dicts: every key's place, strict both ways, and the published parameter groups."""

import chex
import jax
import numpy as np
import pytest
from flax import nnx
from helpers import filled

from adafuse_jax import create_model
from adafuse_jax.errors import UserError
from adafuse_jax.models.recognizer import Recognizer
from adafuse_jax.models.resnet import ResNet, Stem
from adafuse_jax.models.sites import PolicyNetworks
from adafuse_jax.train.optim import groups
from adafuse_jax.weights import from_torch
from adafuse_jax.weights import to_torch as state_dict
from adafuse_jax.weights.published import canonical, entries, torch_shape

GOLDEN = {
    "tsn_r18_64": ("tsn_r18", {}),
    "tsm_r50_64": ("tsm_r50", {}),
    "ada_r18_tsn_64": ("adafuse_tsn_r18", {}),
    "ada_r50_tsn_64": ("adafuse_tsn_r50", {}),
    "ada_r18_reuseonly_64": ("adafuse_tsn_r18", {"actions": ("reuse", "keep")}),
    "thr_r18_keep50_64": ("threshold_r18", {"keep_share": 0.5}),
    "ada_inc_tsn_224": ("adafuse_tsn_inc", {}),
}


def small(seed=0, share_policy=True):
    """A model with all that a state dict can hold; layer1.0 and layer1.1 share fc0 and fc1."""

    def create():
        rngs = nnx.Rngs(0)
        backbone = ResNet(
            (2, 1),
            (4, 6),
            stem=Stem(4, 3),
            shift="tsm",
            deciders=PolicyNetworks(hidden=5, share=share_policy, rngs=rngs),
            fusion_stages=(1, 2),
            rngs=rngs,
        )
        return Recognizer("small", {}, backbone, 3, dropout=0.5, actions=("skip", "reuse", "keep"), rngs=rngs)

    return filled(create, seed)


def assert_same(model, other):
    chex.assert_trees_all_equal(nnx.state(model), nnx.state(other))


@pytest.mark.parametrize(
    "spell",
    [
        lambda key: key,
        lambda key: "module." + key,
        lambda key: key.replace(".conv1.", ".conv1.net.") if ".layer" in key else key,
        lambda key: key.replace("downsample0", "downsample.0").replace("downsample1", "downsample.1"),
    ],
    ids=["plain", "module", "conv1.net", "downsample.0"],
)
def test_every_spelling(spell):
    source, model = small(seed=1), small()
    given = {spell(key): value for key, value in state_dict(source).items()}
    assert from_torch(model, given) is model
    assert_same(model, source)


def test_layout():
    """PyTorch has (out, in, y, x) and (out, in)."""
    model = small()
    given = state_dict(model)
    given["base_model.conv1.weight"] = conv = np.zeros((4, 3, 3, 3), np.float32)
    conv[1, 2, 0, 1] = 7.0
    given["new_fc.weight"] = np.arange(18, dtype=np.float32).reshape(3, 6)
    from_torch(model, given)
    assert model.backbone.conv1.kernel[0, 1, 2, 1] == 7.0
    assert model.fc.kernel[4, 2] == 2 * 6 + 4


def test_every_variable_has_its_names_and_no_name_two():
    for share_policy in (True, False):
        model = small(share_policy=share_policy)
        listed = list(entries(model))
        ids = [id(entry.variable) for entry in listed]
        variables = jax.tree.leaves(nnx.state(model), is_leaf=lambda v: isinstance(v, nnx.Variable))
        assert len(set(ids)) == len(ids) == len(variables)
        names = [name for entry in listed for name in entry.names]
        assert len(set(names)) == len(names)


def test_any_name_of_a_shared_parameter_is_enough():
    source, model = small(seed=1), small()
    given = {
        key: value
        for key, value in state_dict(source).items()
        if "gate_fc" not in key or ".layer1.1." in key or ".layer2." in key
    }
    from_torch(model, given)
    assert_same(model, source)


SHARED = "base_model.layer1.1.policy_net.gate_fc0.weight"
MISFITS = {  # what is changed in a state dict that fits (None: taken out): what the error says of it
    "base_model.bn1.running_var": (None, "missing base_model.bn1.running_var (4,)"),
    "base_model.layer2.0.policy_net.gate_bn.weight": (
        None,
        "missing base_model.layer2.0.policy_net.gate_bn.weight (5,)",
    ),
    "base_model.layer3.0.conv1.weight": (
        np.zeros((8, 6, 3, 3)),
        "left over base_model.layer3.0.conv1.weight (8, 6, 3, 3)",
    ),
    "base_model.layer3.0.bn1.num_batches_tracked": (
        np.zeros(()),
        "left over base_model.layer3.0.bn1.num_batches_tracked ()",
    ),
    "new_fc.weight": (np.zeros((174, 6)), "new_fc.weight: expected (3, 6), found (174, 6)"),
    SHARED: (
        np.zeros((5, 8)),
        f"{SHARED}: expected the same values as base_model.gate_fc0s.8_12.weight",
    ),
    "module.new_fc.bias": (
        np.zeros(3),
        "module.new_fc.bias: expected one spelling of new_fc.bias, found two",
    ),
}


@pytest.mark.parametrize("keys", [*([key] for key in MISFITS), [*MISFITS]], ids=[*MISFITS, "all"])
def test_what_does_not_fit_is_listed_and_nothing_changed(keys):
    model, before, given = small(), small(), state_dict(small(seed=1))
    for key in keys:
        value, _ = MISFITS[key]
        given = {k: v for k, v in given.items() if k != key} | ({} if value is None else {key: value})
    with pytest.raises(UserError) as error:
        from_torch(model, given)
    head, _, listed = str(error.value).partition("'small': ")
    assert head == f"state dict: {len(keys)} keys don't fit model "
    assert sorted(listed.split("; ")) == sorted(MISFITS[key][1] for key in keys)
    assert "\n" not in str(error.value)
    assert_same(model, before)


def test_an_empty_state_dict():
    with pytest.raises(UserError, match=r"missing base_model\.conv1\.weight \(4, 3, 3, 3\)"):
        from_torch(small(), {})


def test_weights_of_another_model():
    with pytest.raises(UserError, match=r"left over base_model\.gate_fc0s\.8_12\.weight"):
        from_torch(small(share_policy=False), state_dict(small()))


@pytest.mark.parametrize("share_policy", [False, True])
def test_bn_inception_there_and_back(share_policy):
    source, model = (
        filled(lambda: create_model("adafuse_tsn_inc", num_classes=3, share_policy=share_policy), seed)
        for seed in (1, 0)
    )
    given = state_dict(source)
    from_torch(model, given)
    assert_same(model, source)
    pooled = "base_model.gate_fc0s.1152_1728.bias"  # of 4a and 4b
    assert (pooled in given) is share_policy
    gone, new = "base_model.inception_4a_pool_proj_bn.running_var", "base_model.inception_4e_1x1.bias"
    given = {k: v for k, v in given.items() if k != gone} | {new: np.zeros(5)}
    with pytest.raises(UserError) as error:
        from_torch(model, given)
    assert str(error.value).endswith(f"'adafuse_tsn_inc': missing {gone} (128,); left over {new} (5,)")


@pytest.fixture(params=GOLDEN)
def golden_case(request, golden):
    name, options = GOLDEN[request.param]
    meta, _ = golden.load(request.param)
    return meta, nnx.eval_shape(lambda: create_model(name, num_classes=174, **options))


def test_golden_keys_shapes_and_aliases(golden_case):
    meta, model = golden_case
    ours, alias_of = {}, {}
    for names, variable in entries(model):
        ours |= {name: [*torch_shape(name, variable)] for name in names}
        alias_of |= {name: names[0] for name in names[1:]}
    published = {k: s for k, s in meta["keys"].items() if not k.endswith("num_batches_tracked")}
    assert ours == {canonical(key): shape for key, shape in published.items()}
    assert alias_of == meta["aliases"]


GROUPS = {
    "first_conv_weight|lr1|wd1": "weight",
    "first_conv_bias|lr2|wd0": "bias",
    "normal_weight|lr1|wd1": "weight",
    "normal_bias|lr2|wd0": "bias",
    "BN scale/shift|lr1|wd0": "norm",
}


def test_golden_parameter_groups(golden_case):
    meta, model = golden_case
    group_of = {}
    by_variable = {id(entry.variable): entry.names[0] for entry in entries(model)}
    found = groups(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        group = found
        for part in path:
            group = group[part]
        group_of[by_variable[id(variable)]] = group
    wanted = {canonical(key): GROUPS[kind] for kind, keys in meta["optim"].items() for key in keys}
    assert group_of == wanted
