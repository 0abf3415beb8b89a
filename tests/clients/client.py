"""podman and buildah as one user of one room, on a store whose unions our program mounts.

The rule: each command runs with settings of the test's own, so nothing of the machine's
configuration or storage is read or written. The base image comes from busybox, without network:

    /bin         busybox and its commands
    /data/kept, /data/deleted, /data/attributes     one line each, the file's name
    /data/tree/a, /data/tree/sub/b                  a directory to rename
    /srv/opaque/old                                 a directory to replace
    /data/one, /data/two                            one file, hard linked
"""

import io
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from tests.clients.room import CommandFailed, Room, parse_mountinfo

BASE: Final = "localhost/base"
_USER = "mounter"
_COMMANDS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# crun needs CAP_SYS_RESOURCE for anything above these limits, and containers get no network.
_CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
netns = "none"
cgroups = "disabled"
[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
_STORAGE_CONF = """
[storage]
driver = "overlay"
graphroot = "{graph}"
rootless_storage_path = "{graph}"
runroot = "{run}/storage"
[storage.options.overlay]
mount_program = "{program}"
"""
_DIRECTORIES = ["bin", "data", "data/tree", "data/tree/sub", "srv", "srv/opaque"]
_MOUNT_POINTS = ["dev", "etc", "proc", "run", "sys"]
_FILES = ["kept", "deleted", "attributes", "tree/a", "tree/sub/b", "one"]


@final
@dataclass(frozen=True, slots=True)
class Client:
    """One user's podman and buildah, with their home folder and the mount program they use."""

    room: Room
    home: Path
    program: Path
    rootless: bool

    @property
    def graph(self) -> Path:
        """The folder of images and containers."""
        return self.home / "graph"

    @property
    def fstype(self) -> str:
        """The filesystem type of this program's mounts."""
        return f"fuse.{self.program.name}"

    def settle(self) -> None:
        """Make the user and the settings."""
        self.home.mkdir()
        self.home.chmod(0o755)
        run = self._run_folder
        conf = _STORAGE_CONF.format(graph=self.graph, run=run, program=self.program)
        (self.home / "storage.conf").write_text(conf)
        (self.home / "containers.conf").write_text(_CONTAINERS_CONF)
        self.room.run("mkdir", "--mode=700", run)
        if self.rootless:
            self.room.run("useradd", "--no-create-home", "--home-dir", self.home, _USER)
            self.room.run("chown", "--recursive", f"{_USER}:", self.home, run)

    def make_base(self) -> None:
        """Build BASE from nothing."""
        archive = self.home / "base.tar"
        archive.write_bytes(_base_archive())
        container = self.buildah("from", "scratch").strip()
        self.buildah("add", container, archive, "/")
        self.buildah("config", "--env=PATH=/bin", "--cmd=sh", container)
        self.buildah("commit", "--quiet", "--rm", container, BASE)

    def run(self, *command: str | Path) -> str:
        """Run a command as the user, in their home folder; return what it prints."""
        env = {
            "PATH": _COMMANDS,
            "HOME": str(self.home),
            "TMPDIR": "/var/tmp",
            "XDG_RUNTIME_DIR": str(self._run_folder),
            "CONTAINERS_CONF": str(self.home / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.home / "storage.conf"),
        }
        become = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--init-groups"]
        return self.room.run(
            *(become if self.rootless else []), *command, env=env, folder=self.home
        )

    def podman(self, *arguments: str | Path) -> str:
        """Run podman; return what it prints."""
        return self.run("podman", *arguments)

    def buildah(self, *arguments: str | Path) -> str:
        """Run buildah; return what it prints."""
        return self.run("buildah", *arguments)

    def build(self, name: str, context: Path, isolation: str, *options: str) -> None:
        """Build the Dockerfile in a folder with buildah.

        Isolation is oci, where a runtime mounts the container's root, or chroot. As root, crun
        would ask for more locked memory than a bare machine grants it; runc does not.
        """
        if isolation == "oci":
            options = ("--network=none", f"--runtime={self._build_runtime}", *options)
        self.buildah(
            "bud", "--quiet", f"--isolation={isolation}", *options, f"--tag={name}", context
        )

    def sh(self, script: str, *options: str, image: str = BASE) -> str:
        """Run a shell script in a new container, under `set -e`; return what it prints."""
        return self.podman("run", *(options or ["--rm"]), image, "sh", "-ec", script)

    def root_type(self, mountinfo: str) -> str:
        """The type of a container's root, from its /proc/self/mountinfo."""
        return [mount.fstype for mount in parse_mountinfo(mountinfo) if mount.target == "/"][-1]

    def unions(self) -> list[str]:
        """Where the user's unions are mounted, in whichever namespace."""
        return [
            mount.target
            for mount in self.room.mounts()
            if mount.fstype.startswith(("fuse", "overlay")) and str(self.graph) in mount.target
        ]

    def sweep(self) -> None:
        """Remove all but BASE, and check that no mount and no process stays."""
        remove = ("rm", "--all", "--force", "--time=0")
        try:
            self.podman(*remove)
        except CommandFailed:  # podman's own clean-up of what has just ended was in its way
            assert self.room.wait_for_end("container cleanup") == []
            self.podman(*remove)
        self.buildah("rm", "--all")
        images = set(self.podman("images", "--all", "--quiet", "--no-trunc").split())
        others = images - set(self.podman("images", "--quiet", "--no-trunc", BASE).split())
        if others:
            self.podman("rmi", "--force", *others)
        assert self.unions() == []
        assert self.room.wait_for_end(f"{self.graph}/overlay/") == []

    @property
    def _build_runtime(self) -> str:
        return "crun" if self.rootless else "runc"

    @property
    def _run_folder(self) -> str:
        return f"/run/user/{_USER if self.rootless else 'root'}"


def _base_archive() -> bytes:
    """The base image's files as a tar."""
    busybox = Path("/usr/bin/busybox")
    if not busybox.exists():
        busybox = Path("/bin/busybox")
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in _DIRECTORIES + _MOUNT_POINTS:
            tar.addfile(_member(name, tarfile.DIRTYPE, 0o755))
        tar.addfile(_member("tmp", tarfile.DIRTYPE, 0o1777))
        program = _member("bin/busybox", tarfile.REGTYPE, 0o755)
        program.size = busybox.stat().st_size
        with busybox.open("rb") as data:
            tar.addfile(program, data)
        for name in set(listed.stdout.split()) - {"busybox"}:
            link = _member(f"bin/{name}", tarfile.SYMTYPE, 0o777)
            link.linkname = "busybox"
            tar.addfile(link)
        for name in [*(f"data/{name}" for name in _FILES), "srv/opaque/old"]:
            content = f"{Path(name).name}\n".encode()
            file = _member(name, tarfile.REGTYPE, 0o644)
            file.size = len(content)
            tar.addfile(file, io.BytesIO(content))
        hard = _member("data/two", tarfile.LNKTYPE, 0o644)
        hard.linkname = "data/one"
        tar.addfile(hard)
    return stream.getvalue()


def _member(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.mode = mode
    return member
