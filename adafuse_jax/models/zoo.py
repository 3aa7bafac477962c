"""Names -> models, with the paper's sizes as defaults (reference.md, section 3)."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from adafuse_jax.errors import UserError, unknown
from adafuse_jax.models import arnet, sites
from adafuse_jax.models.efficientnet import EfficientNet
from adafuse_jax.models.gated_conv import ACTIONS
from adafuse_jax.models.inception import BNInception
from adafuse_jax.models.mbconv import PADDINGS
from adafuse_jax.models.mobilenet import MobileNetV2
from adafuse_jax.models.recognizer import Recognizer
from adafuse_jax.models.resnet import SHIFTS, ResNet, Stem
from adafuse_jax.ops import actions as act


@dataclasses.dataclass(frozen=True)
class _Backbone:
    """A backbone that families can take.

    Attributes:
        make: its class.
        settings: keywords of it.
        stages: in which there are sites.
        policy: what differs from the defaults of `PolicyNetworks`, as their width.
        options: of `create_model`, that it alone understands.
    """

    make: type[nnx.Module]
    settings: Mapping[str, Any]
    stages: tuple[int, ...]
    policy: Mapping[str, Any]
    options: tuple[str, ...] = ()


def _resnet(blocks: Sequence[int], policy: Mapping[str, int], **settings: Any) -> _Backbone:
    stages = tuple(range(1, len(blocks) + 1))
    return _Backbone(ResNet, {"blocks": blocks} | settings, stages, policy, ("shift", "stride_in_1x1"))


def _efficientnet(width: float, depth: float) -> _Backbone:
    settings = {"width": width, "depth": depth}
    # The blocks of the first stage have no expansion to fuse after.
    return _Backbone(
        EfficientNet, settings, tuple(range(2, 8)), _QUOTA, ("drop_path", "padding", "bn_epsilon")
    )


# The policy network's width: fixed, or 196608 divided by a site's channels.
_FIXED, _QUOTA = {"hidden": 512}, {"hidden_quota": 196608}
_BACKBONES = {
    "r18": _resnet((2, 2, 2, 2), _FIXED),
    "r34": _resnet((3, 4, 6, 3), _FIXED),
    "r50": _resnet((3, 4, 6, 3), _QUOTA, bottleneck=True),
    "r101": _resnet((3, 4, 23, 3), _QUOTA, bottleneck=True),
    "b0": _efficientnet(1.0, 1.0),
    "b1": _efficientnet(1.0, 1.1),
    "b2": _efficientnet(1.1, 1.2),
    "b3": _efficientnet(1.2, 1.4),
    # For small images and small machines: 7.5 MMACs for a frame of 48x48 pixels. Not from the paper.
    "tiny": _resnet((1, 1, 1), {"hidden": 64}, widths=(16, 32, 64), stem=Stem(16, 5, max_pool=False)),
    "inc": _Backbone(BNInception, {}, (3, 4, 5), {"hidden": 128, "share": False}),
}


@dataclasses.dataclass(frozen=True)
class _Family:
    """What a family does with a backbone.

    Attributes:
        decides: "policy", "random" or "threshold" at each site; None: there are none.
        last_stages: sites in so many of the last stages; None: in all.
        defaults: of options.
        resnets: only of ResNets.
        options: of `create_model`, that it alone understands.
        backbones: comes with these alone, and without their options.
    """

    decides: str | None = None
    last_stages: int | None = None
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    resnets: bool = False
    options: tuple[str, ...] = ()
    backbones: tuple[str, ...] | None = None


_FUSION_OPTIONS = ("actions", "tau", "group_size", "detach_history", "prior", "prior_strength")
_POLICY_OPTIONS = (*_FUSION_OPTIONS, "hidden", "share_policy", "fusion_stages")
_TSM, _UNIFORM = {"shift": "tsm"}, (1 / 3, 1 / 3, 1 / 3)
_FAMILIES = {
    "tsn": _Family(),
    "tsm": _Family(defaults=_TSM, resnets=True),
    "adafuse_tsn": _Family("policy", options=_POLICY_OPTIONS),
    "adafuse_tsm": _Family("policy", defaults=_TSM, resnets=True, options=_POLICY_OPTIONS),
    "adafuse_tsm_last": _Family(
        "policy", 1, _TSM | {"hidden": 1024, "share_policy": False}, resnets=True, options=_POLICY_OPTIONS
    ),
    "lstm": _Family(defaults={"lstm_hidden": 512}, options=("lstm_hidden",)),
    "trn": _Family(defaults={"num_frames": 8, "dropout": 0.8}, options=("num_frames",)),
    "random": _Family("random", options=("shares", "target_gmacs", "fusion_stages")),
    "threshold": _Family("threshold", defaults={"keep_share": 0.5}, options=("keep_share", "fusion_stages")),
    "cgnet": _Family(defaults={"partitions": 4}, resnets=True, options=("partitions",)),
    "arnet": _Family(
        defaults={"tau": 0.67, "hold_cell": True},
        options=("tau", "lstm_hidden", "hold_cell"),
        backbones=tuple(arnet.SIZES),
    ),
}


def list_models() -> list[str]:
    """All names that `create_model` knows."""
    return [
        f"{family}_{backbone}"
        for family, what in _FAMILIES.items()
        for backbone, of in _BACKBONES.items()
        if (not what.resnets or of.make is ResNet) and (what.backbones is None or backbone in what.backbones)
    ]


def options_of(name: str) -> tuple[str, ...]:
    """All options that `create_model` knows for a name; raises UserError for an unknown one."""
    if name not in list_models():
        raise unknown("model", name, list_models())
    family, _, backbone = name.rpartition("_")
    of_backbone = () if _FAMILIES[family].backbones else _BACKBONES[backbone].options
    return ("dropout", "dtype", *of_backbone, *_FAMILIES[family].options)


def create_model(
    name: str, *, num_classes: int = 174, seed: int = 0, **options: Any
) -> Recognizer | arnet.ARNet:
    """Makes a model with random weights.

    Args:
        name: one of `list_models()`.
        num_classes: outputs of the classifier.
        seed: of the initial weights.
        **options: what differs from the name's defaults. All models: `dropout` (0.5), `dtype` (of the
            computation: None, "bfloat16" or "float32"). ResNets: `stride_in_1x1` (False: v1.5), `shift`
            (None, "tsm" or "online"). EfficientNets: `drop_path` (0.2), `padding` ("same" or "torch"),
            `bn_epsilon` (0.001). Models with policies: `actions`, `tau`, `group_size`,
            `detach_history`, `prior`, `prior_strength` (see `TemporalFusion`), `hidden` (width of the
            policy networks), `share_policy`, `fusion_stages`. lstm: `lstm_hidden`. trn: `num_frames` of
            every clip (8); its `dropout` is 0.8. random: `shares` of skip, reuse and keep, or
            `target_gmacs`, what a clip of 8 frames of 224x224 pixels is to cost. threshold: `keep_share`
            of the channels. cgnet: `partitions` of the channels, the first of which is always computed.
            arnet: `tau`, `lstm_hidden`, `hold_cell` (see `ARNet`).

    Raises:
        UserError: for an unknown name or option, or a value that can't be.
    """
    known = options_of(name)
    family_name, _, backbone_name = name.rpartition("_")
    family, backbone = _FAMILIES[family_name], _BACKBONES[backbone_name]
    for option in options:
        if option not in known:
            raise unknown(f"option of {name!r}", option, known)
    chosen = {"dropout": 0.5, "dtype": None} | dict(family.defaults) | options
    stages = backbone.stages[-family.last_stages :] if family.last_stages else backbone.stages
    chosen.setdefault("fusion_stages", stages)
    _check(name, num_classes, chosen, backbone.stages)
    rngs = nnx.Rngs(seed)
    actions = act.ALL
    if family.decides == "policy":
        actions = chosen["actions"] = act.check(chosen.get("actions", act.ALL))
    elif family.decides == "threshold":
        actions = sites.MagnitudeThreshold.actions
    elif "partitions" in chosen:
        actions = ACTIONS
    dtype = None if chosen["dtype"] is None else jnp.dtype(chosen["dtype"])
    if family_name == "arnet":
        return _make_arnet(name, options, num_classes, chosen, dtype, rngs)
    return Recognizer(
        name,
        options,
        _make_backbone(backbone, family, chosen, dtype, rngs),
        num_classes,
        dropout=chosen["dropout"],
        lstm_hidden=chosen.get("lstm_hidden"),
        num_frames=chosen.get("num_frames"),
        actions=actions,
        dtype=dtype,
        rngs=rngs,
    )


def _make_arnet(
    name: str, options: Mapping[str, Any], num_classes: int, chosen: Mapping[str, Any], dtype, rngs: nnx.Rngs
) -> arnet.ARNet:
    size, plain = arnet.SIZES[name.rpartition("_")[2]], _FAMILIES["tsn"]
    return arnet.ARNet(
        name,
        options,
        [_make_backbone(_BACKBONES[b], plain, {}, dtype, rngs) for b in size.backbones],
        MobileNetV2(**size.glance, dtype=dtype, rngs=rngs),
        num_classes,
        resolutions=size.resolutions,
        lstm_hidden=chosen.get("lstm_hidden", size.lstm_hidden),
        **{option: chosen[option] for option in ("tau", "hold_cell", "dropout")},
        dtype=dtype,
        rngs=rngs,
    )


def _make_backbone(
    backbone: _Backbone, family: _Family, chosen: Mapping[str, Any], dtype, rngs: nnx.Rngs
) -> nnx.Module:
    settings = dict(backbone.settings) | {"dtype": dtype}
    settings |= {k: chosen[k] for k in (*backbone.options, "partitions") if k in chosen}
    if family.decides is not None:
        settings["fusion_stages"] = tuple(chosen["fusion_stages"])
        if backbone.make is ResNet:
            settings["shift_shortcut"] = True
    elif settings.get("shift") == "tsm" and max(settings["blocks"]) >= 23:
        # As published: plain TSM shifts before every second block of so deep a net, fusion networks
        # before every one.
        settings["shift_every"] = 2
    return backbone.make(**settings, deciders=_deciders(backbone, family, chosen, rngs), rngs=rngs)


def _deciders(
    backbone: _Backbone, family: _Family, chosen: Mapping[str, Any], rngs: nnx.Rngs
) -> sites.Deciders | None:
    if family.decides == "policy":
        settings = dict(backbone.policy) | {k: chosen[k] for k in ("hidden", *_FUSION_OPTIONS) if k in chosen}
        if "share_policy" in chosen:
            settings["share"] = chosen["share_policy"]
        return sites.PolicyNetworks(**settings, rngs=rngs)
    if family.decides == "threshold":
        return lambda *_: sites.MagnitudeThreshold(chosen["keep_share"])
    if family.decides == "random":
        shares = chosen.get("shares", _UNIFORM)
        if "target_gmacs" in chosen:
            if "shares" in chosen:
                raise UserError("target_gmacs: expected either it or shares, found both")
            of_any = {k: v for k, v in chosen.items() if k != "target_gmacs"}
            frame = nnx.eval_shape(lambda: _make_backbone(backbone, family, of_any, None, nnx.Rngs(0))).count(
                (224, 224)
            )
            shares = sites.shares_for(frame, chosen["target_gmacs"] * 1e9)
        seeds = itertools.count()  # each site draws for itself
        return lambda *_: sites.RandomPolicy(shares, next(seeds))
    return None


def _check(name: str, num_classes: int, chosen: Mapping[str, Any], stages: tuple[int, ...]) -> None:
    if num_classes < 1:
        raise UserError(f"num_classes: expected at least 1, found {num_classes}")
    if chosen.get("shift") not in SHIFTS:
        raise UserError(f"shift: expected one of {list(SHIFTS)}, found {chosen['shift']!r}")
    if chosen["dtype"] not in (None, "float32", "bfloat16"):
        raise UserError(f"dtype: expected None, 'float32' or 'bfloat16', found {chosen['dtype']!r}")
    if chosen.get("padding", "same") not in PADDINGS:
        raise UserError(f"padding: expected one of {list(PADDINGS)}, found {chosen['padding']!r}")
    for option in ("dropout", "drop_path"):
        if option in chosen and not 0 <= chosen[option] < 1:
            raise UserError(f"{option}: expected a rate in [0, 1), found {chosen[option]}")
    if not set(chosen["fusion_stages"]) <= set(stages):
        raise UserError(
            f"fusion_stages: expected stages of {stages[0]}..{stages[-1]} of {name!r}, "
            f"found {tuple(chosen['fusion_stages'])}"
        )
    for option in ("tau", "hidden", "lstm_hidden", "bn_epsilon"):
        if option in chosen and not chosen[option] > 0:
            raise UserError(f"{option}: expected more than 0, found {chosen[option]}")
