"""The tests as an ordinary user has them: as root of a user namespace with subordinate ids.

    python -m tests.userns [PYTEST ARGUMENTS]      all of FOLDERS, unless tests are named

The user, his line in /etc/subuid and a /dev/fuse that is open to him exist in mounts of this
program's own, which end with it: the files of the machine stay as they are. The namespace is
what `podman unshare` makes. Needs root. Cost: half a second, and then the tests'.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mounts import private

_REPOSITORY = Path(__file__).parents[1]
_TESTED = ("unionfs", "fuse_mount", "conformance", "layers", "store", "images", "cli")
FOLDERS = [str(_REPOSITORY / "tests" / name) for name in _TESTED]
_USER = "userns"
_FURNISH = f"""
set -e
mkdir etc etc.work
mount -t overlay -o lowerdir=/etc,upperdir=etc,workdir=etc.work overlay /etc
useradd --no-create-home {_USER}
echo {_USER}:200000:65536 | tee /etc/subuid > /etc/subgid
cp -a /dev/fuse fuse
chmod 666 fuse
mount --bind fuse /dev/fuse
"""
_ENTER = (
    *("setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--init-groups", "--pdeathsig=KILL"),
    *("unshare", "--user", "--map-auto", "--map-root-user", "--mount"),
    *("--pid", "--fork", "--kill-child", "--mount-proc"),
    *("sh", "-c", '"$@"; exit $?', "sh"),  # which, as the first process, reaps what others leave
)


def _call(*command: str | Path) -> None:
    subprocess.run(command, check=True)


def _reachable(hold: Path) -> None:
    """Let others enter what lies in folders of root's: the sources and this Python."""
    trees = {_REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)}
    hidden: dict[Path, list[Path]] = {}
    for tree in trees:
        closed = [folder for folder in tree.parents if not folder.stat().st_mode & 0o001]
        if closed and not trees & {*tree.parents}:
            hidden.setdefault(closed[-1], []).append(tree)
    for folder, inside in hidden.items():
        for number, tree in enumerate(inside):
            (hold / str(number)).mkdir(exist_ok=True)
            _call("mount", "--rbind", tree, hold / str(number))
        _call("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)
        for number, tree in enumerate(inside):
            tree.mkdir(parents=True)
            _call("mount", "--move", hold / str(number), tree)


def main(arguments: list[str]) -> int:
    """Run pytest with the arguments in the namespace; its exit status."""
    named = any(os.path.exists(argument.partition("::")[0]) for argument in arguments)
    base = Path(tempfile.mkdtemp(prefix="userns-"))
    base.chmod(0o755)
    home = base / "home"
    try:
        with private():
            (machine := base / "machine").mkdir()
            home.mkdir()
            _call("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", machine)
            subprocess.run(["sh", "-c", _FURNISH], cwd=machine, check=True, umask=0o022)
            _call("chown", f"{_USER}:", home)
            _reachable(machine)
            pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
            inside = {"HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
            return subprocess.run(
                [*_ENTER, *pytest, *arguments, *([] if named else FOLDERS)],
                cwd=_REPOSITORY,
                env=os.environ | inside,
                check=False,
            ).returncode
    finally:
        _call("rm", "-rf", base)  # which goes as deep as any test does


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if os.geteuid():
        sys.exit("only root makes the user whose namespace it is")
    sys.exit(main(sys.argv[1:]))
