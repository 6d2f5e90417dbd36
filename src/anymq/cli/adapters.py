"""anymq adapters"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from anymq import registry
from anymq.cli.screen import out
from anymq.registry import Entry
from anymq.spi import Backend


def adapters() -> None:
    """Show the brokers that anymq can talk to here, and what their URLs take.

    Adapters of other packages are found by their entry points in the group anymq.adapters.

    Exit status: 0, also when a client library is missing: it is named with what to install.
    """
    by_module: dict[tuple[str, str], list[str]] = {}
    table = registry.schemes()
    for scheme, entry in table.items():
        by_module.setdefault((entry.package, entry.module), []).append(scheme)
    for number, schemes in enumerate(by_module.values()):
        if number:
            out.print("")
        out.print(_adapter(schemes, table[schemes[0]]))


def _adapter(schemes: list[str], entry: Entry) -> RenderableType:
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(width=9, style="dim")
    facts.add_column()
    facts.add_row("  schemes", "  ".join(f"{scheme}://" for scheme in schemes))
    try:
        backend = registry.backend(schemes[0])
    except Exception as error:  # noqa: BLE001 - somebody else's package: the others are shown
        title = Text.assemble(("✘", "red"), " ", (entry.module, "bold"), "  cannot be loaded")
        facts.add_row("  from", f"the package {entry.package}")
        facts.add_row("  why", f"{type(error).__name__}: {error}")
        return Group(title, facts)
    ready, client = _client(entry)
    facts.add_row("  client", client)
    facts.add_row("  options", _options(backend))
    mark = ("✔", "green") if ready else ("!", "yellow")
    return Group(Text.assemble(mark, " ", (backend.name, "bold")), facts)


def _options(backend: Backend) -> RenderableType:
    """As they stand in a URL, with their defaults."""
    if not backend.options:
        return Text("none", "dim")
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, option in backend.options.items():
        default = "" if option.default is None else f"={_plain(option.default)}"
        grid.add_row(Text(f"{name}{default}", no_wrap=True), Text(option.help))
    return grid


def _plain(value: object) -> str:
    """As one would write it in a URL."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _client(entry: Entry) -> tuple[bool, Text]:
    """The libraries that the adapter needs, as its package declares them."""
    if entry.package != "anymq":
        return True, Text(f"comes with {entry.package} {version(entry.package)}")
    if entry.extra is None:
        return True, Text("none needed")
    needed = _of_extra(entry.extra)
    missing = [name for name in needed if _installed(name) is None]
    if missing:
        install = f"pip install 'anymq[{entry.extra}]'"
        return False, Text(f"{', '.join(missing)} is not installed: {install}", "yellow")
    return True, Text(", ".join(f"{name} {_installed(name)}" for name in needed))


def _of_extra(extra: str) -> list[str]:
    """The distributions of one extra of anymq: there is no second list of them."""
    lines = [line for line in requires("anymq") or () if re.search(rf"extra == .{extra}\W", line)]
    return [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
