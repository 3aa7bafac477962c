"""The native code comes from a cache, survives what goes wrong there, and its absence is told once."""

import functools
import logging
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import filled

from adafuse_jax import create_model
from adafuse_jax.compact import Compact
from adafuse_jax.kernels import build

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


@pytest.fixture
def anew(monkeypatch):
    """As in a new process, which hasn't tried yet."""
    monkeypatch.setattr(build, "_load", functools.cache(build._load.__wrapped__))


@pytest.fixture
def command():
    try:
        return build.compiler()
    except build.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture
def counting(command, monkeypatch, tmp_path):
    """An empty cache, and a compiler that notes each library that it makes; the notes, a line each."""
    notes, script = tmp_path / "notes", tmp_path / "c++"
    noted = f'[ "$1" = --version ] || echo made >> {notes}'
    write_compiler(script, f'{noted}\nexec {command[0]} "$@" -O0')
    notes.touch()
    monkeypatch.setenv("CXX", " ".join([str(script), *command[1:]]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda: notes.read_text().splitlines()


def write_compiler(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (None, "no C++ compiler, looked for"),
        ("echo 'x.cc:1: error: no such thing' >&2; exit 1", "c++ failed: x.cc:1: error: no such thing"),
        ('[ "$1" = --version ] || { for last; do :; done; echo nonsense > "$last"; }', "can't be loaded"),
        ("exit 0", "can't be written"),  # says that it has compiled, and hasn't
    ],
)
def test_without_native_code_all_is_dense_and_it_is_said_once(
    anew, monkeypatch, tmp_path, caplog, script, why
):
    if script is None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
    else:
        write_compiler(tmp_path / "c++", script)
        monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = filled(lambda: create_model("adafuse_tsn_tiny", num_classes=4))
    clip = np.random.default_rng(0).standard_normal((1, 3, 16, 16, 3)).astype(np.float32)
    with caplog.at_level(logging.WARNING, "adafuse_jax"):
        compact, again = Compact(model), Compact(model)
    assert not compact.native and not again.native
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "\n" not in record.getMessage()
    assert why in record.getMessage() and "computes all (dense)" in record.getMessage()
    out, wanted = compact(clip), model(clip)
    np.testing.assert_allclose(out.logits, wanted.logits, rtol=1e-4)
    assert list((tmp_path / "cache").rglob(".building-*")) == []


def test_the_library_is_made_once_and_the_cache_is_the_users_alone(counting):
    build._library()
    build._library()
    (path,) = build.cache_folder().iterdir()
    assert counting() == ["made"]
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.unlink()  # the loaded one stays as it is
    path.write_bytes(half)
    build._library()
    assert counting() == ["made"] * 2
    assert len(path.read_bytes()) > len(half)


def test_the_key_knows_sources_compiler_and_machine(command, monkeypatch, tmp_path):
    changed = tmp_path / "compact.cc"
    changed.write_bytes(build.SOURCES[0].read_bytes() + b"\n")
    keys = {build.key(command), build.key([*command, "-g"])}
    with monkeypatch.context() as patch:
        patch.setattr(build, "SOURCES", (changed, *build.SOURCES[1:]))
        keys.add(build.key(command))
    with monkeypatch.context() as patch:
        patch.setattr(build.platform, "machine", lambda: "another")
        keys.add(build.key(command))
    assert len(keys) == 4
    assert build.key(command) in keys


def test_no_flag_names_a_cpu():
    assert not any(flag.startswith(("-march", "-mcpu", "-mtune", "-m")) for flag in build.FLAGS)


def test_processes_may_build_at_once(counting):
    program = "from adafuse_jax.kernels import build; assert build.load()"
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(subprocess.run, [sys.executable, "-c", program], cwd=ROOT, check=True, env=os.environ)
            for _ in range(2)
        ]
        for run in runs:
            run.result()
    assert len(list(build.cache_folder().iterdir())) == 1
    before = counting()
    build._library()
    assert counting() == before


def test_a_cache_that_cannot_be_written_to(counting, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder: not even root can write there
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())
    assert build._library().AdafuseFilter
    assert counting() == ["made"]
    assert set(tmp_path.iterdir()) == before


def test_a_relative_cache_folder_is_ignored(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", "/home/someone")
    assert build.cache_folder() == Path("/home/someone/.cache/adafuse_jax")


DRIVERS = ["compact_driver.cc", "direct_driver.cc", "winograd_driver.cc"]
FOLDERS = ["-isystem", jax.ffi.include_dir(), f"-I{build.SOURCES[0].parent}"]


@pytest.mark.parametrize(("sanitizers", "rounds"), [("address,undefined", 12), ("thread", 3)])
@pytest.mark.parametrize("driver", DRIVERS)
def test_sanitizers_find_nothing(command, tmp_path, driver, sanitizers, rounds):
    flags = ["-O1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-std=c++17", "-pthread"]
    (tmp_path / "probe.cc").write_text("int main() { return 0; }\n")
    probe = [*command, *flags, str(tmp_path / "probe.cc"), "-o", str(tmp_path / "probe")]
    tried = subprocess.run(probe, capture_output=True, text=True)
    if tried.returncode or subprocess.run([tmp_path / "probe"], capture_output=True).returncode:
        pytest.skip(f"the compiler has no -fsanitize={sanitizers} here")
    program = tmp_path / "driver"
    subprocess.run([*command, *flags, *FOLDERS, HERE / driver, "-o", program], check=True)
    assert_all_correct([program, str(rounds)])


@pytest.mark.parametrize("driver", DRIVERS)
def test_it_runs_on_aarch64(tmp_path, driver):
    """Emulated: on Debian, `apt install g++-aarch64-linux-gnu qemu-user-static`."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64-static")
    if not compiler or not emulator:
        pytest.skip("no aarch64-linux-gnu-g++ or qemu-aarch64-static here")
    program = tmp_path / "driver"
    flags = ["-O2", "-static", "-std=c++17", "-pthread"]
    subprocess.run([compiler, *flags, *FOLDERS, HERE / driver, "-o", program], check=True)
    assert_all_correct([emulator, program, "4"])


def assert_all_correct(command):
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout == "all correct\n"
