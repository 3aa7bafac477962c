"""Files of weights, told apart by their content: torch.save's two formats, safetensors, NumPy's npz."""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adafuse_jax.errors import UserError
from adafuse_jax.models.recognizer import Recognizer
from adafuse_jax.weights import fit, run_dir, torch_file
from adafuse_jax.weights.card import Card
from adafuse_jax.weights.torch_file import MAX_BYTES

FILE = "weights.safetensors"  # in a folder that `adafuse convert` wrote
_CARD = "adafuse_jax"  # the card's key in a safetensors file
# Under which training scripts put the state dict of a checkpoint.
_STATE_DICTS = ("state_dict", "model_state_dict", "model")


class Weights(NamedTuple):
    """Arrays by their names, and the card where the file has one."""

    arrays: dict[str, np.ndarray]
    card: Card | None


def read(path: str | Path, max_bytes: int = MAX_BYTES) -> Weights:
    """Reads a file of weights, or a folder that holds one as `adafuse convert` writes it.

    Args:
        path: of the file or folder.
        max_bytes: that the arrays may take in memory.

    Raises:
        UserError: for a file that is missing, broken, of another format, too large, or holds more than
            numbers.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise UserError(f"weights {path}: expected a file, found: {error.strerror}") from error
    if head[8:] == b"{":
        return _read_safetensors(path, max_bytes)
    if head[:2] == b"PK" and _is_npz(path):
        return Weights(_read_npz(path, max_bytes), None)
    return Weights(_state_dict(path, torch_file.read(path, max_bytes)), None)


def load(model: Recognizer, path: str | Path, allow_missing: Iterable[str] = ()) -> Recognizer:
    """Fills a model from a file of weights, or from a run's latest checkpoint.

    Args:
        model: from `create_model`; changed in place, but only if everything fits.
        path: see `read`; or a run's workdir.
        allow_missing: see `from_torch`.

    Returns:
        The model.

    Raises:
        UserError: as `read` and `from_torch`.
    """
    path = Path(path)
    checkpoint = None if (path / FILE).exists() else run_dir.latest(path)
    if checkpoint is not None:
        run_dir.fill(model, checkpoint, allow_missing)
        return model
    return fit.from_torch(model, read(path).arrays, allow_missing)


def save(model: Recognizer, path: str | Path, card: Card | None = None) -> None:
    """Writes a model's weights as safetensors under the published names, whole or not at all.

    Args:
        model: of the zoo.
        path: of the file.
        card: goes into the file's metadata.

    Raises:
        UserError: where the file can't be written.
    """
    from safetensors.numpy import save_file

    path = Path(path)
    metadata = {"format": "pt"} | ({_CARD: card.to_json()} if card else {})
    fresh = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(fit.to_torch(model), fresh, metadata)
        fresh.replace(path)
    except OSError as error:
        raise UserError(f"weights {path}: expected a place to write to, found: {error.strerror}") from error


def _read_safetensors(path: Path, max_bytes: int) -> Weights:
    from safetensors import SafetensorError, safe_open

    if path.stat().st_size > max_bytes:
        raise UserError(f"weights {path}: expected at most {max_bytes} bytes, found {path.stat().st_size}")
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            text = (file.metadata() or {}).get(_CARD)
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"weights {path}: expected a safetensors file, found a broken one: {reason}"
        ) from None
    return Weights(arrays, Card.from_json(text) if text else None)


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False  # torch_file says what is wrong
    return bool(names) and all(name.endswith(".npy") for name in names)


def _read_npz(path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
        if total > max_bytes:
            raise UserError(f"weights {path}: expected arrays of at most {max_bytes} bytes, found {total}")
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except UserError:
        raise
    except Exception as error:  # of zipfile, zlib, and NumPy's parser of headers
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"weights {path}: expected an npz of arrays, found a broken one: {reason}") from None


def _state_dict(path: Path, found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    for name in _STATE_DICTS:
        if isinstance(found.get(name), dict):
            found = found[name]
            break
    others = [str(key)[:80] for key, value in found.items() if not isinstance(value, np.ndarray)]
    if others or not found:
        shown = ", ".join(others[:5]) or "an empty one"
        raise UserError(f"weights {path}: expected a state dict of tensors, found {shown}")
    return dict(found)
