"""What is installed: all packages, all that they import, one version number everywhere."""

import ast
import configparser
import importlib.metadata
import re
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import adafuse_jax

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "adafuse_jax"


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements(text: str) -> dict[str, Requirement]:
    found = [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def test_what_is_imported_is_required():
    modules = set()
    folders = [*(ROOT / "configs").glob("*.py"), *(ROOT / "data").glob("*.py"), *PACKAGE.rglob("*.py")]
    for path in [ROOT / "main.py", *folders]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.split(".")[0])
    extras = setup()["options.extras_require"]
    heavy = requirements(extras["onnx"]) | requirements(extras["wandb"])  # not installed for the tests
    modules -= set(sys.stdlib_module_names) | {"adafuse_jax", "configs", "data", *heavy}
    owners = importlib.metadata.packages_distributions()
    imported = {canonicalize_name(owners[module][0]) for module in modules}
    always = set(requirements(setup()["options"]["install_requires"]))
    for_data = set(requirements(setup()["options.extras_require"]["data"]))
    assert imported - for_data == always
    # Which TFDS imports in its download_and_prepare, without requiring it.
    assert for_data - imported == {"importlib-resources"}


def test_constraints_pin_what_is_required():
    pinned = requirements((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    options = setup()["options"]["install_requires"] + setup()["options.extras_require"]["test"]
    for name, required in requirements(options).items():
        (pin,) = pinned[name].specifier
        assert pin.operator == "==" and required.specifier.contains(pin.version), name


def test_every_folder_of_the_package_is_a_package():
    """`find:` leaves out folders without __init__.py, and what they hold."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_what_is_no_python_comes_along():
    """All files of the package are installed: what `find:` doesn't take is named in package_data."""
    named = {
        PACKAGE.joinpath(*package.split(".")[1:], name.strip())
        for package, names in setup()["options.package_data"].items()
        for name in names.split(",")
    }
    found = {p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert found == named


def test_one_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = adafuse_jax.__version__
    assert setup()["metadata"]["version"] == version
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE).group(1) == version
    assert re.search(r"^## \[(\d.*?)\]", changelog, re.MULTILINE).group(1) == version
