"""Dockerfiles as instructions: words, quotes, variables, flags, and what is no Dockerfile."""

import pytest

from unionfs.build.dockerfile import BuildError, expanded, instruction, parse, split, stages
from unionfs.build.ignore import Ignore

VARIABLES = {"name": "app", "empty": "", "spaced": "a b"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one two", ["one", "two"]),
        ("'a b' \"c d\"", ["a b", "c d"]),
        ("$name ${name}s $missing.", ["app", "apps", "."]),
        ("${missing:-x} ${empty:-x} ${empty-x} ${name:+x} ${missing:+x}", ["x", "x", "", "x", ""]),
        ("${missing:-$name}", ["app"]),
        ("${missing:-two words}", ["two words"]),
        ("'$name' \"$name\" \\$name", ["$name", "app", "$name"]),
        ("$spaced", ["a b"]),
        (r"a\ b \"c\"", ["a b", '"c"']),
        (r'"say \"hi\""', ['say "hi"']),
        ("key='a b'", ["key=a b"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split(text, VARIABLES) == words


def test_a_dollar_alone_stays() -> None:
    assert expanded("$ 5$", VARIABLES) == "$ 5$"


def test_pairs() -> None:
    def pairs(line: str) -> dict[str, str]:
        return instruction(line, "here").pairs(VARIABLES)

    assert pairs('ENV a=1 b="two words" c=$name') == {"a": "1", "b": "two words", "c": "app"}
    assert pairs("ENV old two  words $name") == {"old": "two  words app"}
    with pytest.raises(BuildError, match="no NAME=VALUE"):
        pairs("LABEL a=1 b")


def test_instructions_go_on_over_lines_and_comments() -> None:
    text = '# escape=\\\nFROM base\n\nRUN one \\\n  # not this\n  && two\nCMD ["a", "b c"]\n'
    found = parse(text, "Dockerfile")
    assert [(one.name, one.where) for one in found] == [
        ("FROM", "Dockerfile:2"),
        ("RUN", "Dockerfile:4"),
        ("CMD", "Dockerfile:7"),
    ]
    assert found[1].text.split() == ["one", "&&", "two"]
    assert found[2].form() == ("a", "b c")


def test_flags() -> None:
    one = instruction("COPY --from=build --chown=1:2 --chmod=755 a b", "here")
    assert one.flags == {"from": "build", "chown": "1:2", "chmod": "755"}
    assert one.text == "a b"


def test_stages() -> None:
    before, each = stages(parse("ARG A=1\nFROM a AS x\nRUN b\nFROM x\n", "Dockerfile"))
    assert [one.name for one in before] == ["ARG"]
    assert [[one.name for one in stage] for stage in each] == [["FROM", "RUN"], ["FROM"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no instructions"),
        ("RUN x\nFROM a", "begin with FROM"),
        ("ARG a", "no FROM follows"),
        ("FROM a\nBOIL eggs", "unknown instruction BOIL"),
        ("FROM a\nRUN --security=insecure x", "no flag --security"),
        ("FROM a\nRUN \udcff", "UTF-8"),
        ("FROM a\nCOPY <<EOF /x\nhi\n", "no line EOF ends"),
    ],
)
def test_what_is_no_dockerfile(text: str, message: str) -> None:
    with pytest.raises(BuildError, match=message) as caught:
        stages(parse(text, "Dockerfile"))
    assert str(caught.value.filename).startswith("Dockerfile")


@pytest.mark.parametrize(
    ("lines", "ignored", "kept"),
    [
        (["*.log"], ["a.log"], ["d/a.log", "a.logs"]),
        (["**/*.log"], ["a.log", "d/e/a.log"], ["a"]),
        (["d"], ["d", "d/a", "d/e/f"], ["dd"]),
        (["/d/"], ["d/a"], ["e/d"]),
        (["d/*", "!d/keep"], ["d/a"], ["d/keep", "d/keep/b"]),
        (["*", "!a?c"], ["ac"], ["abc"]),
        (["[a-c]x", "# b", ""], ["ax"], ["dx", "# b"]),
        (["d/**/x"], ["d/x", "d/e/f/x"], ["x"]),
    ],
)
def test_ignored_files(lines: list[str], ignored: list[str], kept: list[str]) -> None:
    patterns = Ignore(lines)
    assert [path for path in ignored + kept if path in patterns] == ignored


def test_a_pattern_that_is_none() -> None:
    with pytest.raises(OSError, match="check its brackets") as caught:
        Ignore(["good", "[z-a]"])
    assert caught.value.filename == "[z-a]"
