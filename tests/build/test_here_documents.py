"""Here-documents: scripts and files that stand in the Dockerfile itself."""

import os
import stat
from pathlib import Path

import pytest

from tests.build.test_build import built, cached, context
from unionfs.build import BuildError, build
from unionfs.build.dockerfile import parse, trigger
from unionfs.images.reference import Reference
from unionfs.store import Store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts and runs")

__all__ = ["context"]


def test_which_lines_belong_to_which_instruction() -> None:
    text = (
        'FROM box\nRUN <<EOF\none \\\n# two\nEOF\nCOPY --chmod=600 <<-"A" \\\n  <<B /etc/\n'
        "\tFROM a\n\tA\nB\nRUN echo 1 <<< no\n"
    )
    found = parse(text, "Dockerfile")
    assert [(one.name, one.where) for one in found] == [
        ("FROM", "Dockerfile:1"),
        ("RUN", "Dockerfile:2"),
        ("COPY", "Dockerfile:6"),
        ("RUN", "Dockerfile:11"),
    ]
    [script] = found[1].documents
    assert (script.text, script.plain) == ("one \\\n# two\n", False)
    first, second = found[2].documents
    assert (first.name, first.text, first.plain) == ("A", "FROM a\n", True)
    assert (second.name, second.text) == ("B", "")
    assert found[2].sources({}) == ["/etc/"]
    assert found[3].documents == ()


def test_a_trigger_keeps_its_documents() -> None:
    [_, one] = parse("FROM a\nONBUILD RUN <<EOF cat\nsaid\nEOF\n", "Dockerfile")
    kept = trigger(one.lines, "here")
    assert (kept.name, kept.where, kept.script) == ("RUN", "here", "<<EOF cat\nsaid\nEOF")


def test_scripts(store: Store, context: Path) -> None:
    made = built(
        store,
        context,
        """FROM box
ENV WHO=world
RUN <<EOF
echo "hello $WHO" > /one
test -e /one && echo second >> /one
EOF
RUN cat > /two <<'END' && cat <<-THIRD >> /two
$WHO
END
\tof $WHO
\tTHIRD
RUN <<EOF
#!/bin/cat
kept as it is
EOF
USER app
RUN <<SCRIPT
#!/bin/sh
id -u > /tmp/who
SCRIPT
""",
    )
    assert made.text("/one") == "hello world\nsecond\n"
    assert made.text("/two") == "$WHO\nof world\n"
    assert made.text("/tmp/who") == "7\n"
    assert made.all("/dev") == set()


def test_files(store: Store, context: Path) -> None:
    text = """FROM box
ARG NAME=app
COPY <<EOF /etc/app.conf
name = $NAME
cost = \\$5
EOF
COPY --chown=7:8 --chmod=750 <<'run.sh' <<-data.txt one.conf /opt/
echo $NAME
run.sh
\t\tindented
data.txt
ADD <<EOF /etc
into a directory
EOF
"""
    made = built(store, context, text)
    assert made.text("/etc/app.conf") == "name = app\ncost = $5\n"
    assert stat.S_IMODE(made.files.stat("/etc/app.conf").st_mode) == 0o644
    assert made.text("/opt/run.sh") == "echo $NAME\n"
    status = made.files.stat("/opt/run.sh")
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (7, 8, 0o750)
    assert made.text("/opt/data.txt") == "indented\n"
    assert made.text("/opt/one.conf") == "one"
    assert made.text("/etc/EOF") == "into a directory\n"

    assert cached(store, context, text) == [True] * 3
    assert cached(store, context, text.replace("indented", "other")) == [True, False, False]


def test_a_trigger_with_one(store: Store, context: Path) -> None:
    text = "FROM box\nONBUILD COPY <<EOF /made\nby a trigger\nEOF\n"
    build(store, context, text, [Reference.parse("base")])
    assert built(store, context, "FROM base\n").text("/made") == "by a trigger\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM box\nRUN <<EOF\nwithout an end\n", "no line EOF ends the here-document"),
        ("FROM box\nRUN <<EOF\nfalse\nEOF\n", "ended with 1"),
        ("FROM box\nCOPY <<EOF\nnowhere\nEOF\n", "write COPY SOURCE"),
        ("FROM box\nCOPY <<A <<B /x\nA\nB\n", "end the destination with /"),
    ],
)
def test_what_goes_wrong(store: Store, context: Path, text: str, message: str) -> None:
    with pytest.raises(BuildError, match=message) as caught:
        built(store, context, text)
    assert caught.value.filename == "Dockerfile:2"
