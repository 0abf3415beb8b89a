"""The scenarios, one module for each kind of operation."""

from tests.conformance.play import Scenario
from tests.conformance.scenarios import (
    attributes,
    creating,
    flags,
    indexing,
    linking,
    metadata,
    names,
    opening,
    reading,
    redirecting,
    removing,
    renaming,
    users,
    writing,
)

SCENARIOS: tuple[Scenario, ...] = (
    *reading.SCENARIOS,
    *creating.SCENARIOS,
    *removing.SCENARIOS,
    *renaming.SCENARIOS,
    *linking.SCENARIOS,
    *indexing.SCENARIOS,
    *metadata.SCENARIOS,
    *redirecting.SCENARIOS,
    *opening.SCENARIOS,
    *writing.SCENARIOS,
    *attributes.SCENARIOS,
    *flags.SCENARIOS,
    *names.SCENARIOS,
    *users.SCENARIOS,
)

assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS), "names are unique"
