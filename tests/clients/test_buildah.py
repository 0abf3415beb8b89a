"""buildah builds a Dockerfile on our unions: what its steps change is what the image holds."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.clients.client import BASE, Client

_DOCKERFILE = f"""
FROM {BASE}
ADD greeting /srv/greeting
ADD packed.tar /opt/
RUN cat /proc/self/mountinfo > /srv/mountinfo
RUN echo written > /srv/written && rm /data/deleted
RUN mv /data/tree /data/moved && echo new > /data/moved/sub/new
RUN rm -r /srv/opaque && mkdir /srv/opaque && echo new > /srv/opaque/new
RUN echo hard > /data/hard && ln /data/hard /data/link && ln -s kept /data/soft && mkfifo /data/pipe
RUN chown 1000:1001 /data/attributes && chmod 4750 /data/attributes && chmod 2770 /srv/opaque
RUN touch -d @1000000000 /data/kept
EXPOSE 8080/tcp
CMD ["cat", "/srv/greeting"]
"""
# mode, links, owner and name of each; a directory's links are the filesystem's own affair
_LIST = """
find /data /opt /srv ! -type d -exec stat -c '%A %h %u:%g %n' {} + | sort -k 4
find /data /opt /srv -type d -exec stat -c '%A %u:%g %n' {} + | sort -k 3
"""
_LISTED = """
-rwsr-x--- 1 1000:1001 /data/attributes
-rw-r--r-- 2 0:0 /data/hard
-rw-r--r-- 1 0:0 /data/kept
-rw-r--r-- 2 0:0 /data/link
-rw-r--r-- 1 0:0 /data/moved/a
-rw-r--r-- 1 0:0 /data/moved/sub/b
-rw-r--r-- 1 0:0 /data/moved/sub/new
-rw-r--r-- 2 0:0 /data/one
prw-r--r-- 1 0:0 /data/pipe
lrwxrwxrwx 1 0:0 /data/soft
-rw-r--r-- 2 0:0 /data/two
-rw-r----- 1 7:8 /opt/packed/file
-rw-r--r-- 1 0:0 /srv/greeting
-rw-r--r-- 1 0:0 /srv/mountinfo
-rw-r--r-- 1 0:0 /srv/opaque/new
-rw-r--r-- 1 0:0 /srv/written
drwxr-xr-x 0:0 /data
drwxr-xr-x 0:0 /data/moved
drwxr-xr-x 0:0 /data/moved/sub
drwxr-xr-x 0:0 /opt
drwxr-xr-x 7:8 /opt/packed
drwxr-xr-x 0:0 /srv
drwxrws--- 0:0 /srv/opaque
"""
# -type f: grep would wait for a writer of the pipe
_READ = "find /data /opt /srv/opaque /srv/written -type f -exec grep -H . {} + | sort"
_CONTENT = """
/data/attributes:attributes
/data/hard:hard
/data/kept:kept
/data/link:hard
/data/moved/a:a
/data/moved/sub/b:b
/data/moved/sub/new:new
/data/one:one
/data/two:one
/opt/packed/file:packed
/srv/opaque/new:new
/srv/written:written
"""


@pytest.fixture
def context(client: Client, tmp_path: Path) -> Path:
    """The folder with the Dockerfile and the files it adds, where the client's user can read it."""
    folder = client.home / tmp_path.name
    folder.mkdir(mode=0o755)
    (folder / "Dockerfile").write_text(_DOCKERFILE)
    (folder / "greeting").write_text("hello\n")
    with tarfile.open(folder / "packed.tar", "w") as tar:
        directory = tarfile.TarInfo("packed")
        directory.type, directory.mode, directory.uid, directory.gid = tarfile.DIRTYPE, 0o755, 7, 8
        tar.addfile(directory)
        file = tarfile.TarInfo("packed/file")
        file.size, file.mode, file.uid, file.gid = len(b"packed\n"), 0o640, 7, 8
        tar.addfile(file, io.BytesIO(b"packed\n"))
    for file_or_folder in [folder, *folder.iterdir()]:
        file_or_folder.chmod(file_or_folder.stat().st_mode | 0o444)
    return folder


@pytest.mark.parametrize("layers", [False, True], ids=["one-layer", "layer-a-step"])
@pytest.mark.parametrize("isolation", ["oci", "chroot"])
def test_image_holds_what_the_dockerfile_says(
    client: Client, context: Path, isolation: str, layers: bool
) -> None:
    """In one container for all steps, or on a union that grows by one layer a step."""
    client.build("built", context, isolation, f"--layers={str(layers).lower()}")

    assert client.podman("run", "--rm", "built") == "hello\n"
    assert client.sh(_LIST, image="built") == _LISTED.lstrip()
    assert client.sh(_READ, image="built") == _CONTENT.lstrip()
    assert client.root_type(client.sh("cat /srv/mountinfo", image="built")) == client.fstype


def test_settings_of_the_image(client: Client, context: Path) -> None:
    """EXPOSE and CMD arrive in the image's configuration."""
    client.build("built", context, "chroot")

    [image] = json.loads(client.podman("image", "inspect", "built"))
    assert image["Config"]["ExposedPorts"] == {"8080/tcp": {}}
    assert image["Config"]["Cmd"] == ["cat", "/srv/greeting"]


def test_failed_step_leaves_nothing_mounted(client: Client, context: Path) -> None:
    """A build that fails in a RUN ends without an image; `client` checks for mounts."""
    (context / "Dockerfile").write_text(f"FROM {BASE}\nRUN echo before > /before && false\n")

    with pytest.raises(AssertionError, match="false"):
        client.build("built", context, "chroot")
    assert "built" not in client.podman("images")
