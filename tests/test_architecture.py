"""The rules of the house, read from the source: who may import what, and that ARCHITECTURE.md names real files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "windlass"

# A room may import the rooms of lower tiers and itself. "" is the package's own __init__.py, which hands out the faces.
TIERS: tuple[tuple[str, ...], ...] = (
    ("errors", "late_numpy"),
    ("config", "json_files", "machine", "protocol", "quantization", "demo"),
    ("weights", "program", "native", "text"),
    ("engine",),
    ("models",),
    ("serve",),
    ("",),
    ("server",),
    ("cli",),
    ("__main__",),
)
TIER_OF = {room: tier for tier, rooms in enumerate(TIERS) for room in rooms}
SAME_TIER = {("native", "program"), ("text", "native")}  # native runs programs, text encodes with native
APART = {("engine", "text"), ("engine", "protocol")}  # the core knows token ids, pages and logits only

# Third-party package -> the rooms that may import it. A package that is not here may be imported nowhere.
THIRD_PARTY = {
    "anyio": {"server"},
    "click": {"cli"},
    "fastapi": {"server"},
    "h11": {"server"},
    "huggingface_hub": {"weights"},
    "jinja2": {"text"},
    "numpy": {"late_numpy", "quantization", "weights", "program", "native", "engine", "models", "serve"},
    "pydantic": {"protocol", "serve", "server"},
    "pydantic_core": {"protocol", "server"},
    "rich": {"cli"},
    "starlette": {"server"},
    "tokenizers": {"text"},
    "uvicorn": {"server"},
    "typing_extensions": {
        "protocol",
        "serve",
    },  # pydantic's own dependency: it reads TypedDict from there before Python 3.12
}
LATE = {"windlass.late_numpy": "numpy"}  # ours that stand for a package
OPTIONAL = {"huggingface_hub"}  # not installed with the package itself: imported inside functions only
COMPILED = "windlass.native._core"
UNSAFE = {"marshal", "pickle", "shelve"}  # they run code that a model file could bring


@dataclass(frozen=True)
class Import:
    """One imported module: ``windlass.a.b`` for our own, the top-level name for others."""

    importer: str
    target: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def read_modules(package: Path) -> dict[str, ast.Module]:
    """Module name -> syntax tree of every Python file under the directory ``package``."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return modules


def packages_of(package: Path) -> set[str]:
    """Names of the modules that are directories, to which their relative imports refer."""
    return {".".join([package.name, *p.parent.relative_to(package).parts]) for p in package.rglob("__init__.py")}


def imports_of(name: str, tree: ast.Module, modules: Iterable[str], packages: set[str]) -> Iterator[Import]:
    """Every import of one module: at its top, in functions, under TYPE_CHECKING."""
    known = {*modules, COMPILED}
    lazy_nodes = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = name.split(".")[: -node.level + (name in packages) or None]
                base = ".".join([*anchor, base] if base else anchor)
            # `from package import module` depends on the module, `from module import name` on the module it names.
            targets = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
        for target in targets:
            ours = target == "windlass" or target.startswith("windlass.")
            yield Import(name, target if ours else target.split(".")[0], node.lineno, id(node) in lazy_nodes)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def all_imports(package: Path) -> list[Import]:
    modules = read_modules(package)
    packages = packages_of(package)
    return [found for name, tree in modules.items() for found in imports_of(name, tree, modules, packages)]


def tier_violations(imports: Iterable[Import]) -> list[str]:
    """Imports that go up or across the tiers."""
    wrong = []
    for found in imports:
        if not found.target.startswith("windlass"):
            continue
        here, there = room_of(found.importer), room_of(found.target)
        if here == there or (here, there) in SAME_TIER:
            continue
        if here not in TIER_OF or there not in TIER_OF:
            wrong.append(f"{found}: the room {here if here not in TIER_OF else there!r} has no tier")
        elif (here, there) in APART:
            wrong.append(f"{found}: {there} is none of its business")
        elif TIER_OF[there] >= TIER_OF[here]:
            wrong.append(f"{found}: {there or 'the package'} is not below {here}")
    return wrong


def import_cycle(imports: Iterable[Import]) -> list[str]:
    """The modules of one import cycle, or an empty list."""
    graph: dict[str, set[str]] = {}
    for found in imports:
        if found.target.startswith("windlass"):
            graph.setdefault(found.importer, set()).add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def third_party_violations(imports: Iterable[Import]) -> list[str]:
    """Packages outside their rooms, unknown packages, optional packages imported when a module is, unsafe modules."""
    wrong = []
    for found in imports:
        room, package = room_of(found.importer), LATE.get(found.target, found.target)
        if package == COMPILED:
            if room != "native":
                wrong.append(f"{found}: only native imports the compiled module")
        elif package.startswith("windlass"):
            continue
        elif package in sys.stdlib_module_names:
            if package in UNSAFE:
                wrong.append(f"{found}: unsafe")
        elif room not in THIRD_PARTY.get(package, ()):
            wrong.append(f"{found}: allowed in {sorted(THIRD_PARTY.get(package, ())) or 'no room'}")
        elif package in OPTIONAL and not found.lazy:
            wrong.append(f"{found}: an optional package must be imported where it is used")
    return wrong


def environment_readers(modules: dict[str, ast.Module]) -> set[str]:
    """Modules that touch environment variables."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    readers = set()
    for name, tree in modules.items():
        for node in ast.walk(tree):
            attribute = isinstance(node, ast.Attribute) and node.attr in names
            imported = (
                isinstance(node, ast.ImportFrom)
                and node.module == "os"
                and any(alias.name in names for alias in node.names)
            )
            if attribute or imported:
                readers.add(name)
    return readers


def test_imports_go_down_the_tiers() -> None:
    assert tier_violations(all_imports(PACKAGE)) == []


def test_no_import_cycles() -> None:
    assert import_cycle(all_imports(PACKAGE)) == []


def test_third_party_packages_stay_in_their_rooms() -> None:
    assert third_party_violations(all_imports(PACKAGE)) == []


def test_only_config_reads_environment_variables() -> None:
    assert environment_readers(read_modules(PACKAGE)) <= {"windlass.config"}
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".cpp", ".h", ".inl"}]
    assert [str(path) for path in sources if re.search(r"\b(secure_)?getenv\b", path.read_text(encoding="utf-8"))] == []


def test_architecture_names_existing_paths() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w.\-]+(?:/[\w.\-]+)+/?|[\w\-]+\.(?:py|md|toml|cpp|h))`", text)
    assert len(named) >= 10
    missing = [path for path in named if not (ROOT / path).exists() and not (PACKAGE / path).exists()]
    assert missing == []


def test_importing_the_package_is_light() -> None:
    heavy = [*THIRD_PARTY, "torch", "asyncio"]
    script = f"import sys, windlass; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


# The checks themselves must be able to fail: each finds what is wrong in a small package made for it.


@pytest.fixture
def house(tmp_path: Path) -> Path:
    package = tmp_path / "windlass"
    for room in ("engine", "program", "native", "text", "weights"):
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "errors.py").touch()
    (package / "program" / "ops.py").write_text("import math\n\nfrom windlass.errors import LoadError\n")
    (package / "native" / "run.py").write_text("from windlass.program import ops\nfrom . import _core\n")
    assert tier_violations(all_imports(package)) == []
    assert third_party_violations(all_imports(package)) == []
    assert import_cycle(all_imports(package)) == []
    return package


@pytest.mark.parametrize(
    "line",
    [
        "from windlass.engine import loop",
        "from ..engine import loop",
        "def late():\n    import windlass.weights",
        "if TYPE_CHECKING:\n    from windlass.native.run import go",
        "import windlass",
        "from windlass.cellar import wine",
    ],
)
def test_tier_check_finds(house: Path, line: str) -> None:
    (house / "program" / "ops.py").write_text(line + "\n")
    assert len(tier_violations(all_imports(house))) == 1


def test_tier_check_finds_what_is_kept_apart(house: Path) -> None:
    (house / "engine" / "__init__.py").write_text("from windlass import text\n")
    assert len(tier_violations(all_imports(house))) == 1


def test_cycle_check_finds(house: Path) -> None:
    (house / "program" / "a.py").write_text("from windlass.program import b\n")
    (house / "program" / "b.py").write_text("def late():\n    from .a import thing\n")
    assert set(import_cycle(all_imports(house))) == {"windlass.program.a", "windlass.program.b"}


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("engine", "import pydantic"),
        ("weights", "import torch"),
        ("text", "from windlass.late_numpy import np"),
        ("weights", "from huggingface_hub import snapshot_download"),
        ("engine", "from windlass.native._core import run"),
        ("engine", "from windlass.native import _core"),
        ("weights", "import pickle"),
    ],
)
def test_third_party_check_finds(house: Path, room: str, line: str) -> None:
    (house / room / "__init__.py").write_text(line + "\n")
    assert len(third_party_violations(all_imports(house))) == 1


def test_optional_package_may_be_imported_lazily(house: Path) -> None:
    (house / "weights" / "hub.py").write_text("def download():\n    import huggingface_hub\n")
    assert third_party_violations(all_imports(house)) == []


@pytest.mark.parametrize("line", ["import os\nos.environ['A']", "from os import getenv", "import os\nos.getenv('A')"])
def test_environment_check_finds(house: Path, line: str) -> None:
    (house / "engine" / "__init__.py").write_text(line + "\n")
    assert environment_readers(read_modules(house)) == {"windlass.engine"}
