"""@contract, the registry of cases, and where their files are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from anymq.capabilities import Fact, Guarantee

if TYPE_CHECKING:
    from anymq.testing.scenario import Scenario

UNIVERSAL = None  # in place of a guarantee: must hold everywhere

NETWORK = "network"  # something happens on the way: the broker itself is left alone
NEEDS = {
    "kill": "a broker that can be killed and started again",
    "pause": "a broker that can be paused",
    "restart": "a broker that can be restarted",
    "users": "a broker that users can be added to",
    NETWORK: "a network on the way to the broker",
}

FAMILIES = {
    "DEL": "Delivery",
    "ACK": "Acks and redelivery",
    "ORD": "Order",
    "DLQ": "Dead letters",
    "RTY": "Retries",
    "DLY": "Delay and expiry",
    "PRI": "Priority",
    "FAN": "Groups",
    "RPL": "Replay",
    "DDP": "Duplicates",
    "PAY": "Payload",
    "BAT": "Batches",
    "FLW": "Flow control",
    "LIF": "Life cycle",
    "CON": "Concurrency",
    "ADM": "Administration",
    "SEC": "Security",
    "MIG": "Migration",
    "HIS": "Histories",
}  # in the order in which they are run and shown

Case = Callable[["Scenario"], None]
CaseT = TypeVar("CaseT", bound=Case)


@dataclass(frozen=True, slots=True)
class Contract:
    """One row of the matrix.

    guarantee     whose level decides how the case is judged; None: UNIVERSAL, holds everywhere
    topic, subscription   portable options of the objects that the case works with
    wish          options of the subscription that are left out where the broker does not have them
    needs         what must be possible with the broker itself: the keys of NEEDS. It gets a broker
                  of its own for that, but for NETWORK. `wants`: the same, but it runs without
                  where it must.
    depends       guarantees without which there is nothing to try; where one is not usable, the
                  cell differs and says so
    certain       the case exposes an absent guarantee in every run: one that then holds does
                  better than it declares. False: by chance only, as with order.
    provision     False: the case provisions by itself, or shows what happens when nobody does
    judged_by     the fact to judge by, where the level of the guarantee alone does not tell: a
                  number or scope in Limits decides; None: it must hold here
    deadline      seconds after which the case is broken because it does not end
    """

    id: str
    title: str
    guarantee: Guarantee | None
    case: Case
    topic: Mapping[str, Any] = field(default_factory=dict)
    subscription: Mapping[str, Any] = field(default_factory=dict)
    wish: Mapping[str, Any] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    wants: frozenset[str] = frozenset()
    depends: tuple[Guarantee, ...] = ()
    certain: bool = True
    provision: bool = True
    judged_by: Callable[[Scenario], Fact | None] | None = None
    deadline: float = 60.0

    @property
    def breaks(self) -> frozenset[str]:
        """What is needed that is done to the broker itself."""
        return self.needs - {NETWORK}

    @property
    def family(self) -> str:
        return self.id.partition("-")[0]

    def __str__(self) -> str:
        return f"{self.id} {self.title}"


CONTRACTS: dict[str, Contract] = {}


def contract(
    id: str,
    guarantee: Guarantee | None,
    *,
    needs: Iterable[str] = (),
    wants: Iterable[str] = (),
    depends: Guarantee | tuple[Guarantee, ...] = (),
    **options: Any,
) -> Callable[[CaseT], CaseT]:
    """Register a case. Its docstring is the title: one line that says what must be true."""
    unknown = {*needs, *wants} - set(NEEDS)
    if unknown:
        raise ValueError(f"{id}: {sorted(unknown)} is none of {sorted(NEEDS)}")
    if id in CONTRACTS:
        raise ValueError(f"{id} is defined twice")
    depends = (depends,) if isinstance(depends, Guarantee) else tuple(depends)

    def register(case: CaseT) -> CaseT:
        title = (case.__doc__ or "").strip().partition("\n")[0].rstrip(".")
        if not title:
            raise ValueError(f"{id} has no docstring: say in one line what must be true")
        CONTRACTS[id] = Contract(
            id,
            title,
            guarantee,
            case,
            needs=frozenset(needs),
            wants=frozenset(wants),
            depends=depends,
            **options,
        )
        return case

    return register


def cases_folder() -> Path:
    """Where the cases are: in the wheel, else in the checkout."""
    here = Path(__file__).resolve()
    for folder in (here.parent / "contracts", here.parents[3] / "contract_tests"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError("the cases are missing: neither in the package nor in a checkout")


def load() -> list[Contract]:
    """Every contract, in the order of the families and ids."""
    for path in sorted(cases_folder().glob("*.py")):
        load_file(path)
    order = [*FAMILIES, *sorted({one.family for one in CONTRACTS.values()} - {*FAMILIES})]
    return sorted(CONTRACTS.values(), key=lambda one: (order.index(one.family), one.id))


def load_file(path: Path) -> list[Contract]:
    """The contracts of one file; imported once."""
    name = f"anymq.testing.contracts.{path.stem}"
    if name not in sys.modules:
        spec = spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return [one for one in CONTRACTS.values() if one.case.__module__ == name]


def select(contracts: Iterable[Contract], only: Iterable[str]) -> list[Contract]:
    """Those whose id or family is named; all when nothing is."""
    wanted = {word.upper() for word in only}
    found = [one for one in contracts if not wanted or {one.id, one.family} & wanted]
    missing = wanted - {one.id for one in found} - {one.family for one in found}
    if missing:
        raise ValueError(f"no contract or family is called {', '.join(sorted(missing))}")
    return found
