"""Root without CAP_FSETID, as in many containers, takes set-id bits off what it writes."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conformance.doors import DOORS, Layers
from tests.tree import build, file

_WITHOUT_FSETID = ["setpriv", "--bounding-set=-fsetid", "--inh-caps=-fsetid"]
_CHANGES = {
    "append": "printf x >> {}",
    "empty": ": > {}",
    "truncate": "truncate -s 1 {}",
    "allocate": "fallocate -l 9 {}",
    "chown": "chown 7 {}",
}


@pytest.mark.parametrize("change", _CHANGES)
@pytest.mark.parametrize("place", ["lower", "upper"])
@pytest.mark.parametrize("name", [name for name in DOORS if name != "library"])
def test_dropped_by_root_in_a_container(tmp_path: Path, name: str, place: str, change: str) -> None:
    if (name, change) == ("fuse-pure", "allocate"):
        pytest.skip("pyfuse3 has no fallocate")
    layers = Layers(tmp_path)
    layers.make()
    build(layers.lower[0] if place == "lower" else layers.upper, {"f": file(b"data", 0o6755)})
    with DOORS[name](layers) as door:
        script = _CHANGES[change].format(f"{layers.target}/f")
        subprocess.run([*_WITHOUT_FSETID, "sh", "-c", script], check=True)
        assert oct(door.stat("f").st_mode & 0o7777) == oct(0o755)
    assert os.stat(f"{layers.upper}/f").st_mode & 0o7777 == 0o755
