"""Other projects' suites through a mount, from a checkout of theirs that was built.

    python -m tests.suites pjdfstest CHECKOUT    what system calls do and refuse, by pjdfstest
    python -m tests.suites fsx CHECKOUT          one file's data, by xfstests' fsx
    python -m tests.suites fsstress CHECKOUT     many processes and a whole removal, by xfstests

Each runs through kernel overlayfs first, which shows what the suite finds by itself, and then
through the FUSE mount; docs/testing.md says how a checkout is built. Needs root. Cost: four minutes
a door for pjdfstest, half a minute for fsx, two for fsstress.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.conformance.doors import DOORS, Layers

_DOORS = ("kernel", "fuse")
_OPERATIONS = 100_000
_FSX_SIZE = 256 << 10  # bytes; fsx' own greatest length


def pjdfstest(checkout: Path, union: Path) -> None:
    """All of its checks, by prove(1), in the directory that they are about."""
    tests = checkout / "tests"
    subprocess.run(["prove", "--recurse", "--QUIET", tests], cwd=union, check=True)


def fsx(checkout: Path, union: Path) -> None:
    """Random operations on files that begin in a lower layer, with mmap and without."""
    for name, flags in (("mapped", ()), ("called", ("-R", "-W"))):
        command = [checkout / "ltp/fsx", "-q", "-N", str(_OPERATIONS), "-k", *flags]
        subprocess.run([*command, union / "lower" / name], check=True)


def fsstress(checkout: Path, union: Path) -> None:
    """Eight processes in one directory; afterwards it can be removed as a whole."""
    directory = union / "stress"
    directory.mkdir()
    command = [checkout / "ltp/fsstress", "-d", directory, "-p", "8", "-n", "10000"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["rm", "-rf", directory], check=True)
    if directory.exists():
        raise RuntimeError(f"{directory} is still there")


_SUITES: dict[str, Callable[[Path, Path], None]] = {
    "pjdfstest": pjdfstest,
    "fsx": fsx,
    "fsstress": fsstress,
}


def _fill(lower: Path) -> None:
    """Files for fsx. It copies the first byte over the second, unseen by its own books."""
    (lower / "lower").mkdir()
    for name in ("mapped", "called"):
        data = random.Random(name).randbytes(_FSX_SIZE - 1)
        (lower / "lower" / name).write_bytes(data[:1] + data)


def main(suite: str, checkout: str) -> int:
    """Run a suite through each door; 1 when it found a fault."""
    failed = 0
    for door in _DOORS:
        base = Path(tempfile.mkdtemp(prefix="suites-"))
        try:
            base.chmod(0o755)  # the suites act as other users too
            layers = Layers(base)
            layers.make()
            _fill(Path(layers.lower[-1]))
            with DOORS[door](layers):
                print(f"{suite} through {door}:", flush=True)
                _SUITES[suite](Path(checkout).resolve(), Path(layers.target))
            if complaints := layers.complaints():
                raise RuntimeError("\n".join(complaints))
        except (subprocess.CalledProcessError, RuntimeError) as error:
            print(f"{suite} through {door}: {error}", file=sys.stderr)
            failed = 1
        finally:
            shutil.rmtree(base)
    return failed


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in _SUITES or not os.path.isdir(sys.argv[2]):
        sys.exit(f"usage: python -m tests.suites {'|'.join(_SUITES)} CHECKOUT; see docs/testing.md")
    sys.exit(main(sys.argv[1], sys.argv[2]))
