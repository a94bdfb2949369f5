"""Imports point one way (design 10): what decides knows nothing of what runs, and the intake stays thin."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS = (
    ("hub.errors", "hub.redaction", "hub.unforeseen"),
    ("hub.model", "hub.messages", "hub.parsing", "hub.integration", "hub.privacy"),
    ("hub.rules", "hub.outcome", "hub.notification", "hub.ports", "hub.events"),
    ("hub.contexts",),
    ("hub.crew", "hub.wires", "hub.limits", "hub.circuits", "hub.transport"),
    ("hub.vtex", "hub.mapper", "hub.marketplaces"),
    ("hub.db", "hub.private_file", "hub.settings", "hub.stores"),
    ("hub.conservation", "hub.remembering", "hub.ledger", "hub.beliefs", "hub.states"),
    ("hub.links", "hub.reconcile"),
)
"""Who may import whom: a module imports its own row and those above it. What is not named may import all of them."""

PURE = (
    "hub.errors",
    "hub.model",
    "hub.messages",
    "hub.rules",
    "hub.outcome",
    "hub.notification",
    "hub.ports",
    "hub.contexts",
)
"""Whatever they lead to: no network, no database, no clock, no environment."""

IMPURE = frozenset(
    [
        "asyncio",
        "celery",
        "concurrent",
        "http",
        "kombu",
        "multiprocessing",
        "os",
        "psycopg",
        "psycopg_pool",
        "pybreaker",
        "random",
        "redis",
        "requests",
        "socket",
        "ssl",
        "starlette",
        "subprocess",
        "tasks",
        "threading",
        "time",
        "urllib",
        "urllib3",
        "uvicorn",
    ]
)

THICK = ("hub.contexts", "hub.reconcile", "hub.marketplaces", "hub.vtex", "hub.links", "hub.transport", "requests")
"""What the intake must not lead to, so that it starts quickly and carries nothing but notices."""

MAY_START_TASKS = ("hub.cli", "hub.demo")
"""Commands: they start the processes of `tasks`, and are imported by nobody."""


@cache
def modules() -> dict[str, frozenset[str]]:
    """Every module of hub and tasks, with all it imports, wherever in the file it does."""
    found = {}
    for folder in ("hub", "tasks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = path
    return {name: frozenset(_imports(path, frozenset(found))) for name, path in found.items()}


def _imports(path: Path, ours: frozenset[str]) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name for name in below if name in ours} | {str(node.module)}
    return names


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def layer(name: str) -> int:
    return next((level for level, prefixes in enumerate(LAYERS) if within(name, prefixes)), len(LAYERS))


def leads_to(start: str) -> dict[str, str]:
    """Everything a module leads to, each with the module that imports it."""
    reached: dict[str, str] = {}
    open_ends = [start]
    while open_ends:
        name = open_ends.pop()
        for imported in modules().get(name, frozenset()):
            if imported not in reached:
                reached[imported] = name
                open_ends.append(imported)
    return reached


def names(prefixes: tuple[str, ...]) -> list[str]:
    found = [name for name in modules() if within(name, prefixes)]
    assert found, f"nothing is called {prefixes}"
    return found


@pytest.mark.parametrize("name", names(PURE))
def test_what_decides_leads_to_nothing_that_runs(name):
    wrong = {found: by for found, by in leads_to(name).items() if found.split(".")[0] in IMPURE}
    assert wrong == {}


@pytest.mark.parametrize("name", [name for name in modules() if name.startswith("hub")])
def test_imports_point_one_way(name):
    level = layer(name)
    wrong = {found for found in modules()[name] if found.startswith("hub.") and layer(found) > level}
    assert wrong == set()


@pytest.mark.parametrize("name", [name for name in modules() if name.startswith("hub")])
def test_the_hub_knows_neither_celery_nor_the_tasks(name):
    foreign = {found.split(".")[0] for found in modules()[name]}
    forbidden = {"celery", "kombu"} if within(name, MAY_START_TASKS) else {"celery", "kombu", "tasks"}
    assert foreign & forbidden == set()


def test_nobody_imports_the_commands():
    wrong = {
        name: found
        for name, imported in modules().items()
        for found in imported
        if within(found, MAY_START_TASKS) and not within(name, MAY_START_TASKS)
    }
    assert wrong == {}


def test_the_intake_stays_thin():
    wrong = {found: by for found, by in leads_to("tasks.intake").items() if within(found, THICK)}
    assert wrong == {}


def test_every_layer_exists():
    for prefixes in LAYERS:
        for prefix in prefixes:
            assert names((prefix,))
