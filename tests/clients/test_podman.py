"""podman runs, compares, commits and removes containers on our unions."""

from pathlib import Path

import pytest

from tests.clients.client import BASE, Client

_CHANGE = """
echo fresh > /data/fresh
rm /data/deleted
echo more >> /data/kept
mv /data/tree /data/moved
rm -r /srv/opaque
mkdir /srv/opaque
echo new > /srv/opaque/new
mkdir /srv/made
"""
# /etc: podman puts its own hosts and resolv.conf there
_CHANGED = """
A /data/fresh
A /data/moved
A /data/moved/a
A /data/moved/sub
A /data/moved/sub/b
A /srv/made
A /srv/opaque/new
C /data
C /data/kept
C /etc
C /srv
C /srv/opaque
D /data/deleted
D /data/tree
D /srv/opaque/old
"""
_READ = "grep -r . /data /srv | sort"
_READ_BEFORE = """
/data/attributes:attributes
/data/deleted:deleted
/data/kept:kept
/data/one:one
/data/tree/a:a
/data/tree/sub/b:b
/data/two:one
/srv/opaque/old:old
"""
_READ_AFTER = """
/data/attributes:attributes
/data/fresh:fresh
/data/kept:kept
/data/kept:more
/data/moved/a:a
/data/moved/sub/b:b
/data/one:one
/data/two:one
/srv/opaque/new:new
"""


def test_container_root_is_our_mount(client: Client) -> None:
    """podman must not have taken kernel overlayfs instead: the program would go untested."""
    assert client.root_type(client.sh("cat /proc/self/mountinfo")) == client.fstype


def test_container_sees_its_changes_and_the_image_does_not(client: Client) -> None:
    """Writes, deletions and renames are visible at once, and only in that container."""
    assert client.sh(_CHANGE + _READ) == _READ_AFTER.lstrip()
    assert client.sh(_READ) == _READ_BEFORE.lstrip()


def test_changes_survive_a_restart(client: Client) -> None:
    """The same upper, mounted a second time: files made and files deleted are as they were."""
    script = "if [ -e /data/fresh ]; then ls /data; ls /srv/opaque; exit; fi;" + _CHANGE
    client.sh(script, "--name=twice")

    listed = client.podman("start", "--attach", "twice").split()
    assert listed == ["attributes", "fresh", "kept", "moved", "one", "two", "new"]


def test_diff(client: Client) -> None:
    """podman diff names what the script changed, and nothing else."""
    client.sh(_CHANGE, "--name=changed")

    assert sorted(client.podman("diff", "changed").splitlines()) == _CHANGED.split("\n")[1:-1]


def test_committed_image(client: Client) -> None:
    """A committed container runs as an image, and so does one committed on top of it."""
    client.sh(_CHANGE, "--name=changed")
    client.podman("commit", "--quiet", "changed", "once")
    assert client.sh(_READ, image="once") == _READ_AFTER.lstrip()

    client.sh("rm -r /data/moved", "--name=again", image="once")
    client.podman("commit", "--quiet", "again", "twice")
    kept = [line for line in _READ_AFTER.split() if "moved" not in line]
    assert client.sh(_READ, image="twice").split() == kept


def test_replaced_directory_hides_what_it_replaced(
    client: Client, request: pytest.FixtureRequest
) -> None:
    """A directory removed and made again, beside a deleted file, has only its new files.

    podman looks up by name what the image held, in the container's union mounted anew.
    """
    if client.program.name == "fuse-overlayfs":
        reason = "fuse-overlayfs 1.10 finds lower names in an opaque directory that do not list"
        request.applymarker(pytest.mark.xfail(reason=reason))
    script = "rm /data/deleted; rm -r /data/tree; mkdir /data/tree; echo new > /data/tree/new"
    client.sh(script, "--name=replaced")
    differences = client.podman("diff", "replaced").splitlines()
    assert sorted(line for line in differences if "tree" in line) == [
        "A /data/tree/new",
        "C /data/tree",
        "D /data/tree/a",
        "D /data/tree/sub",
    ]

    client.podman("commit", "--quiet", "replaced", "committed")
    assert client.sh("find /data/tree", image="committed").split() == [
        "/data/tree",
        "/data/tree/new",
    ]


def test_image_carried_to_an_archive_and_back(client: Client) -> None:
    """Layers unpacked from an archive, where deletions may be AUFS names, give the same files."""
    client.sh(_CHANGE, "--name=changed")
    client.podman("commit", "--quiet", "changed", "committed")
    client.podman("rm", "changed")
    archive = f"oci-archive:{client.home}/carried.tar"
    client.run("skopeo", "copy", "--quiet", "containers-storage:localhost/committed", archive)
    client.podman("rmi", "committed")
    client.run("skopeo", "copy", "--quiet", archive, "containers-storage:localhost/carried")

    assert client.sh(_READ, image="carried") == _READ_AFTER.lstrip()
    assert ".wh." not in client.sh("find / -xdev", image="carried")


def test_two_containers_at_once(client: Client) -> None:
    """Two unions over the same image, both mounted: each keeps its own changes."""
    wait = ["sh", "-c", "trap 'exit 0' TERM; while :; do read -t 60 line < /data/pipe; done"]
    for name in "first", "second":
        client.podman("run", "--detach", f"--name={name}", BASE, *wait)
    for name in "first", "second":
        client.podman("exec", name, "sh", "-ec", f"echo {name} > /data/mine; rm /data/deleted")

    assert len(client.unions()) == 2
    client.podman("exec", "first", "rm", "/data/one")
    assert client.podman("exec", "first", "cat", "/data/mine") == "first\n"
    assert client.podman("exec", "second", "cat", "/data/mine", "/data/one") == "second\none\n"


def test_copy_into_and_out_of_a_container(client: Client, tmp_path: Path) -> None:
    """podman cp mounts the container's union by itself, without running anything."""
    client.podman("create", "--name=idle", BASE, "cat", "/data/put")
    (client.home / "put").write_text("put\n")
    client.podman("cp", f"{client.home}/put", "idle:/data/put")

    assert client.podman("start", "--attach", "idle") == "put\n"
    assert "put" in client.podman("diff", "idle")


def test_image_mounted_without_a_container(client: Client) -> None:
    """A union with no upper: it reads, and refuses to be written."""
    script = f"""
        root=$(podman image mount {BASE})
        cat $root/data/kept
        touch $root/data/new 2>&1 || true
        podman image unmount {BASE} > /dev/null
    """
    inside = ["podman", "unshare"] if client.rootless else []
    said = client.run(*inside, "sh", "-ec", script).splitlines()
    assert said[0] == "kept"
    assert said[1].endswith("Read-only file system")


def test_removal_leaves_nothing(client: Client) -> None:
    """rm and rmi give back every folder that run and commit made."""

    def layers() -> set[str]:
        return {entry.name for entry in (client.graph / "overlay").iterdir()}

    before = layers()
    client.sh(_CHANGE, "--name=changed")
    client.podman("commit", "--quiet", "changed", "committed")
    assert len(layers() - before) >= 2

    client.podman("rm", "changed")
    client.podman("rmi", "committed")
    assert layers() == before


def test_container_in_a_user_namespace_of_its_own(client: Client) -> None:
    """Owners on disk are the container's own: the mount shows them as those they map to."""
    script = "touch /data/new; chown 5:6 /data/kept; stat -c %u:%g /data/kept /data/new"
    seen = client.sh(script, "--name=mapped", "--uidmap=0:1:1000", "--gidmap=0:1:1000")
    assert seen.split() == ["5:6", "0:0"]
