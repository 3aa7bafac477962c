"""Weights in and out: `convert`, `export`."""

import argparse
import json
from pathlib import Path

from adafuse_jax.cli import values
from adafuse_jax.errors import UserError


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommands."""
    _add_convert(commands)
    _add_export(commands)


def _add_convert(commands: argparse._SubParsersAction) -> None:
    convert = commands.add_parser(
        "convert",
        help="bring weights of others, or of a run, into one safetensors file with a card",
        description="Reads files of torch.save (without running them), safetensors and npz under the names "
        "of published AdaFuse and TSM, torchvision, EfficientNet-PyTorch, Cadene's BN-Inception; and runs.",
    )
    convert.add_argument("source", type=Path)
    convert.add_argument("--model", help="name in the zoo; needed for weights without a card")
    convert.add_argument("--out", type=Path, help="folder for weights.safetensors; needed without --dry_run")
    convert.add_argument("--num_classes", type=values.positive, help="default: as in the source")
    convert.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the model, as stride_in_1x1=true",
    )
    convert.add_argument(
        "--allow_missing",
        "--allow-missing",
        default="",
        help="of policy,head: what may be missing or another task's",
    )
    convert.add_argument("--class_names", type=Path, help="text file, a name a line, in label order")
    convert.add_argument("--licence", default="", help="of the weights")
    convert.add_argument("--origin", default="", help="where they come from; default: the file's name")
    convert.add_argument("--dry_run", "--dry-run", action="store_true", help="only print what goes where")
    convert.set_defaults(run=_convert)


def _convert(args: argparse.Namespace) -> None:
    from adafuse_jax import convert, weights
    from adafuse_jax.input import manifest
    from adafuse_jax.weights import files

    if args.out is None and not args.dry_run:
        raise UserError("--out: expected a folder, found none")
    names = []
    if args.class_names:
        names = [line for _, line in manifest.read_lines(args.class_names, "class names")]
    found = convert.convert(
        args.source,
        args.model,
        num_classes=args.num_classes,
        options=dict(map(_option, args.option)),
        allow_missing=[group for group in args.allow_missing.split(",") if group],
        class_names=names,
        licence=args.licence,
        origin=args.origin,
    )
    if args.dry_run:
        print(found.mapping())
        return
    path = args.out / files.FILE
    weights.save(found.model, path, found.card)
    print(f"written  {path}: {found.card.model}, {found.card.num_classes} classes")


def _option(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--option: expected NAME=VALUE, found {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _add_export(commands: argparse._SubParsersAction) -> None:
    export = commands.add_parser(
        "export", help="write a trained model as a file that runs without this package"
    )
    export.add_argument("checkpoint", type=Path, help="a run's workdir, or what convert wrote")
    export.add_argument("--out", type=Path, required=True, help="file to write")
    export.add_argument(
        "--format",
        choices=("stablehlo", "onnx", "safetensors"),
        default="stablehlo",
        help="StableHLO of jax.export for CPU, CUDA and TPU; ONNX; or the weights by their published names",
    )
    export.add_argument("--stream", action="store_true", help="stablehlo: the step of a stream of frames")
    values.add_which(export)
    export.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> None:
    from adafuse_jax import convert, export, weights
    from adafuse_jax.train import run

    if args.stream and args.format != "stablehlo":
        raise UserError(f"--stream: expected --format=stablehlo with it, found {args.format}")
    trained = run.load(args.checkpoint, args.which)
    if args.format == "safetensors":
        weights.save(convert.model_of(trained), args.out, convert.card_of(trained))
    elif args.format == "onnx":
        export.write(export.onnx(trained), args.out)
    else:
        export.write(export.stablehlo(trained, args.stream), args.out)
    print(f"written  {args.out}")
