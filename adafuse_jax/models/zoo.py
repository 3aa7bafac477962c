"""Names -> models, with the paper's sizes as defaults (reference.md, section 3)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from adafuse_jax.errors import UserError, unknown
from adafuse_jax.models.recognizer import Recognizer
from adafuse_jax.models.resnet import SHIFTS, ResNet, Stem
from adafuse_jax.ops import actions as act

# The policy network's width: fixed, or 196608 divided by a site's channels.
_BACKBONES = {
    "r18": {"blocks": (2, 2, 2, 2), "hidden": 512},
    "r34": {"blocks": (3, 4, 6, 3), "hidden": 512},
    "r50": {"blocks": (3, 4, 6, 3), "bottleneck": True, "hidden_quota": 196608},
    "r101": {"blocks": (3, 4, 23, 3), "bottleneck": True, "hidden_quota": 196608},
    # For small images and small machines: 7.5 MMACs for a frame of 48x48 pixels. Not from the paper.
    "tiny": {
        "blocks": (1, 1, 1),
        "widths": (16, 32, 64),
        "stem": Stem(16, 5, max_pool=False),
        "hidden": 64,
    },
}
# Stages with fusion count from the end: () none, None all.
_FAMILIES = {
    "tsn": {"last_stages": 0},
    "tsm": {"last_stages": 0, "shift": "tsm"},
    "adafuse_tsn": {"last_stages": None},
    "adafuse_tsm": {"last_stages": None, "shift": "tsm"},
    "adafuse_tsm_last": {"last_stages": 1, "shift": "tsm", "hidden": 1024, "share_policy": False},
}
_FUSION_OPTIONS = ("actions", "tau", "group_size", "detach_history", "prior", "prior_strength")
_SITE_OPTIONS = ("fusion_stages", "share_policy", "hidden")


def list_models() -> list[str]:
    """All names that `create_model` knows."""
    return [f"{family}_{backbone}" for family in _FAMILIES for backbone in _BACKBONES]


def create_model(name: str, *, num_classes: int = 174, seed: int = 0, **options: Any) -> Recognizer:
    """Makes a model with random weights.

    Args:
        name: one of `list_models()`.
        num_classes: outputs of the classifier.
        seed: of the initial weights.
        **options: what differs from the name's defaults. All models: `dropout` (0.5), `stride_in_1x1`
            (False: v1.5), `dtype` (of the computation: None, "bfloat16" or "float32"), `shift` (None,
            "tsm" or "online"). Models with fusion: `actions`, `tau`, `group_size`, `detach_history`,
            `prior`, `prior_strength` (see `TemporalFusion`), `hidden` (width of the policy networks),
            `share_policy`, `fusion_stages` (1-based).

    Raises:
        UserError: for an unknown name or option, or a value that can't be.
    """
    if name not in list_models():
        raise unknown("model", name, list_models())
    family, _, backbone = name.rpartition("_")
    settings = dict(_BACKBONES[backbone])
    defaults = dict(_FAMILIES[family])
    last = defaults.pop("last_stages")
    stages = len(settings["blocks"])
    fuses = last != 0
    known = ("dropout", "dtype", "shift", "stride_in_1x1") + (
        _FUSION_OPTIONS + _SITE_OPTIONS if fuses else ()
    )
    for option in options:
        if option not in known:
            raise unknown(f"option of {name!r}", option, known)
    if family == "tsm" and max(settings["blocks"]) >= 23:
        # As published: plain TSM shifts before every second block of so deep a net, fusion networks
        # before every one.
        settings["shift_every"] = 2
    if fuses:
        defaults["fusion_stages"] = tuple(range(1 if last is None else stages - last + 1, stages + 1))
        fusion = {k: options[k] for k in _FUSION_OPTIONS if k in options}
        fusion["actions"] = act.check(fusion.get("actions", act.ALL))
        settings |= {"fusion": fusion, "shift_shortcut": True}
    if "hidden" in defaults or "hidden" in options:
        settings.pop("hidden_quota", None)
    settings |= defaults | {
        k: v for k, v in options.items() if k in (*_SITE_OPTIONS, "shift", "stride_in_1x1")
    }
    _check(name, num_classes, settings, stages, options)
    rngs = nnx.Rngs(seed)
    dtype = None if options.get("dtype") is None else jnp.dtype(options["dtype"])
    return Recognizer(
        name,
        options,
        ResNet(**settings, dtype=dtype, rngs=rngs),
        num_classes,
        dropout=options.get("dropout", 0.5),
        actions=settings["fusion"]["actions"] if fuses else act.ALL,
        dtype=dtype,
        rngs=rngs,
    )


def _check(name: str, num_classes: int, settings: Mapping[str, Any], stages: int, options: Mapping) -> None:
    if num_classes < 1:
        raise UserError(f"num_classes: expected at least 1, found {num_classes}")
    if settings.get("shift") not in SHIFTS:
        raise UserError(f"shift: expected one of {list(SHIFTS)}, found {settings['shift']!r}")
    if options.get("dtype") not in (None, "float32", "bfloat16"):
        raise UserError(f"dtype: expected None, 'float32' or 'bfloat16', found {options['dtype']!r}")
    if not 0 <= options.get("dropout", 0.5) < 1:
        raise UserError(f"dropout: expected a rate in [0, 1), found {options['dropout']}")
    chosen: Sequence[int] = settings.get("fusion_stages", ())
    if not set(chosen) <= set(range(1, stages + 1)):
        raise UserError(f"fusion_stages: expected stages of 1..{stages} of {name!r}, found {tuple(chosen)}")
    for option in ("tau", "hidden"):
        if option in options and not options[option] > 0:
            raise UserError(f"{option}: expected more than 0, found {options[option]}")
