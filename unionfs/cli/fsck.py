"""`unionmount fsck`: faults in the layers of a union that is not mounted.

Exit codes are those of fsck(8): 0 no fault, 1 all faults repaired, 4 faults are left, 8 the check
itself failed; and 2, as of every subcommand here, where it was called wrongly.
"""

from __future__ import annotations

from typing import Final

import click

from unionfs.cli.given import GivenLayers, layer_options
from unionfs.cli.output import complain, describe, json_option, print_json, print_line
from unionfs.fsck import Finding, check

_REPAIRED: Final = 1
_LEFT: Final = 4
_FAILED: Final = 8


@click.command("fsck")
@layer_options
@click.option("--repair", is_flag=True, help="Do what has one safe repair, in upper and work.")
@json_option
def fsck_command(layers: GivenLayers, repair: bool, as_json: bool) -> int:
    """Check the layers of a union that is not mounted.

    \b
      unionmount fsck --lower app --lower base --upper changes --work scratch
      unionmount fsck --repair -o lowerdir=app:base,upperdir=changes,workdir=scratch

    One line a fault: stray whiteouts, redirects that lead nowhere, damaged marks and origins,
    leftovers, and what a mount would read other than it was meant. Lower layers are never changed.

    Exit code: 0 no fault, 1 all repaired, 4 some are left, 8 the check failed.
    """
    findings: list[Finding] = []
    try:
        with layers.open() as stack:
            for finding in check(stack, repair=repair):
                findings.append(finding)
                if not as_json:
                    _print(finding)
    except OSError as error:
        complain(describe(error))
        return _FAILED
    if as_json:
        print_json(findings)
    if not findings:
        return 0
    return _REPAIRED if all(finding.repaired for finding in findings) else _LEFT


def _print(finding: Finding) -> None:
    done = ""
    if finding.remedy is not None:
        done = f"; repaired: {finding.remedy}" if finding.repaired else "; --repair mends it"
    print_line(
        (finding.path, "bold"),
        (f": {finding.kind}: ", "yellow"),
        (finding.message, ""),
        (done, "green" if finding.repaired else "dim"),
    )
