"""A Dockerfile as instructions, each with its flags and the text that follows.

`dockerfile-parse` tells the instructions apart: comments, lines that go on, the escape directive.
It knows no here-documents, so these are taken out of the text first, where it says that the
instruction ends. What it leaves as text, words, quotes and variables, is read here, as it depends
on what earlier instructions have set.

Rules: Dockerfile reference; for what is no part of it, such as which word opens a here-document,
BuildKit's parser. Cost: the text is parsed once more for each instruction with here-documents.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, final

from dockerfile_parse import DockerfileParser

FLAGS: Final[Mapping[str, frozenset[str]]] = {
    "ADD": frozenset({"chown", "chmod", "link", "checksum"}),
    "ARG": frozenset(),
    "CMD": frozenset(),
    "COPY": frozenset({"from", "chown", "chmod", "link"}),
    "ENTRYPOINT": frozenset(),
    "ENV": frozenset(),
    "EXPOSE": frozenset(),
    "FROM": frozenset({"platform"}),
    "HEALTHCHECK": frozenset({"interval", "timeout", "start-period", "start-interval", "retries"}),
    "LABEL": frozenset(),
    "MAINTAINER": frozenset(),
    "ONBUILD": frozenset(),
    "RUN": frozenset({"mount", "network"}),
    "SHELL": frozenset(),
    "STOPSIGNAL": frozenset(),
    "USER": frozenset(),
    "VOLUME": frozenset(),
    "WORKDIR": frozenset(),
}
"""The instructions, and the flags that each may have."""

_FLAG: Final = re.compile(r"--([a-z-]+)(?:=(\S*))?(?:\s+|$)")
_OPENING: Final = re.compile(r"""\d*<<(-?)(?:'([^']+)'|"([^"]+)"|([^<'"\s]+))""")
_WITH_DOCUMENTS: Final = ("ADD", "COPY", "RUN", "ONBUILD")
_VARIABLE: Final = re.compile(r"\$(?:(\w+)|\{(\w+)(?:(:?[-+])((?:[^}\\]|\\.)*))?\})")


class BuildError(OSError):
    """A build that cannot go on; `filename` names the Dockerfile's line."""

    def __init__(self, message: str, where: str) -> None:
        super().__init__(errno.EINVAL, message, where)


@final
@dataclass(frozen=True, slots=True)
class Document:
    """A here-document. name: its end. raw: as it is written. tabs: whether those that lines begin
    with are left out. plain: whether variables in it are none."""

    name: str
    raw: str
    tabs: bool
    plain: bool

    @property
    def text(self) -> str:
        """What it says."""
        return re.sub(r"^\t+", "", self.raw, flags=re.MULTILINE) if self.tabs else self.raw


@final
@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. text: what follows its flags. where: file and line, for errors.

    mounts: the values of `--mount`, the one flag that may be repeated.
    """

    name: str
    text: str
    where: str
    flags: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[str, ...] = ()
    documents: tuple[Document, ...] = ()

    def __str__(self) -> str:
        given = [*self.flags.items(), *(("mount", text) for text in self.mounts)]
        flags = "".join(f" --{name}={value}" for name, value in given)
        begun = [each.text.strip().split("\n")[0] for each in self.documents]
        documents = f" ({'…, '.join(begun)}…)" if begun else ""
        return f"{self.name}{flags} {' '.join(self.text.split())}{documents}"

    @property
    def lines(self) -> str:
        """The text with its here-documents, as it is written and as a shell reads it."""
        return "\n".join((self.text, *(each.raw + each.name for each in self.documents)))

    @property
    def script(self) -> str:
        """What a shell is to run: the one here-document that is all there is, else the lines."""
        if len(self.documents) == 1 and _OPENING.fullmatch(self.text):
            return self.documents[0].text
        return self.lines

    @property
    def names_interpreter(self) -> bool:
        """Whether the script is a here-document that says by itself what runs it."""
        return bool(self.documents) and self.script.startswith("#!")

    def error(self, message: str) -> BuildError:
        """An error of this instruction."""
        return BuildError(message, self.where)

    def form(self) -> tuple[str, ...] | None:
        """The words of the JSON form, or None for any other."""
        if not self.text.startswith("["):
            return None
        try:
            found = json.loads(self.text)
        except ValueError:
            return None
        if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
            return None
        return tuple(found)

    def words(self, variables: Mapping[str, str]) -> list[str]:
        """The words, of the JSON form or apart by spaces, with variables in them."""
        form = self.form()
        if form is not None:
            return [expanded(word, variables) for word in form]
        return split(self.text, variables)

    def sources(self, variables: Mapping[str, str]) -> list[str]:
        """The words that open no here-document."""
        words = self.words(variables)
        if not self.documents:
            return words
        written = _words(self.text)
        return [
            word for word, raw in zip(words, written, strict=True) if not _OPENING.fullmatch(raw)
        ]

    def pairs(self, variables: Mapping[str, str]) -> dict[str, str]:
        """The pairs of `NAME=VALUE …`, or the one of the old `NAME VALUE`."""
        first, _, rest = self.text.partition(" ")
        if "=" not in first:
            return {expanded(first, variables): expanded(rest.strip(), variables)}
        found = {}
        for word in split(self.text, variables):
            name, equals, value = word.partition("=")
            if not name or not equals:
                raise self.error(f"{word!r} is no NAME=VALUE; quote values with spaces")
            found[name] = value
        return found


def parse(text: str, name: str) -> list[Instruction]:
    """The instructions of a Dockerfile that is called name. Raises BuildError."""
    lines = text.split("\n")
    documents: dict[int, tuple[Document, ...]] = {}
    while True:
        rows = [row for row in _rows(lines, name) if row["instruction"] != "COMMENT"]
        row = next((row for row in rows if _opens(row) and row["startline"] not in documents), None)
        if row is None:
            break
        documents[row["startline"]] = tuple(_taken(lines, row, name))
    found = [
        replace(
            instruction(f"{row['instruction']} {row['value']}", f"{name}:{row['startline'] + 1}"),
            documents=documents.get(row["startline"], ()),
        )
        for row in rows
    ]
    if not found:
        raise BuildError("no instructions; begin with FROM", name)
    return found


def _rows(lines: Sequence[str], name: str) -> list[dict[str, Any]]:
    """What the parser makes of some lines."""
    content: Any = io.BytesIO(os.fsencode("\n".join(lines)))
    try:
        return [{**row} for row in DockerfileParser(fileobj=content, env_replace=False).structure]
    except UnicodeDecodeError:
        raise BuildError("not a text in UTF-8; save it as one", name) from None


def _opens(row: Mapping[str, Any]) -> bool:
    """Whether an instruction has here-documents."""
    return row["instruction"] in _WITH_DOCUMENTS and any(_openings(row["value"]))


def _openings(text: str) -> Iterator[re.Match[str]]:
    if not text.startswith("["):
        yield from filter(None, map(_OPENING.fullmatch, _words(text)))


def _taken(lines: list[str], row: Mapping[str, Any], name: str) -> Iterator[Document]:
    """Take the here-documents of an instruction out of the lines that follow it."""
    position = row["endline"] + 1
    for opening in _openings(row["value"]):
        end, tabs = opening[2] or opening[3] or opening[4], bool(opening[1])
        text = ""
        while True:
            if position == len(lines):
                message = f"no line {end} ends the here-document"
                raise BuildError(message, f"{name}:{row['startline'] + 1}")
            line, lines[position] = lines[position].removesuffix("\r"), ""
            position += 1
            if (line.lstrip("\t") if tabs else line) == end:
                break
            text += f"{line}\n"
        yield Document(end, text, tabs, plain=opening[4] is None)


def trigger(text: str, where: str) -> Instruction:
    """The instruction that an ONBUILD has kept, with its here-documents. Raises BuildError."""
    return replace(parse(text, where)[0], where=where)


def instruction(line: str, where: str) -> Instruction:
    """One instruction from its line. Raises BuildError for one that is unknown."""
    name, _, text = line.strip().partition(" ")
    name, text = name.upper(), text.strip()
    if name not in FLAGS:
        raise BuildError(f"unknown instruction {name}; there are: {', '.join(FLAGS)}", where)
    flags = {}
    mounts = []
    while found := _FLAG.match(text):
        if found[1] not in FLAGS[name]:
            raise BuildError(f"{name} has no flag --{found[1]} here; leave it out", where)
        if found[1] == "mount":
            mounts.append(found[2] or "")
        else:
            flags[found[1]] = found[2] or ""
        text = text[found.end() :]
    if not text:
        raise BuildError(f"{name} needs an argument", where)
    return Instruction(name, text, where, flags, tuple(mounts))


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """Text with the values of its variables; `\\$` is a dollar sign."""

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        here = variables.get(name)
        # with a colon, an empty value counts as none
        is_set = bool(here) if (found[3] or "").startswith(":") else here is not None
        if found[3] and found[3].endswith("-") and not is_set:
            return expanded(found[4], variables)
        if found[3] and found[3].endswith("+"):
            return expanded(found[4], variables) if is_set else ""
        return here or ""

    pieces = re.split(r"(\\.)", text, flags=re.DOTALL)
    return "".join(
        piece.replace("\\$", "$") if number % 2 else _VARIABLE.sub(value, piece)
        for number, piece in enumerate(pieces)
    )


def split(text: str, variables: Mapping[str, str]) -> list[str]:
    """The words of a text, without quotes; variables in all but single quotes.

    What a variable holds is never split.
    """
    return ["".join(_unquoted(word, variables)) for word in _words(text)]


_WORD: Final = re.compile(
    r"""(?:'[^']*' | "(?:\\.|[^"\\])*" | \\. | \$\{[^}]*\} | [^\s'"\\])+""", re.VERBOSE | re.DOTALL
)
_PIECE: Final = re.compile(
    r"""'([^']*)' | "((?:\\.|[^"\\])*)" | \\(.) | ((?:\$\{[^}]*\} | [^'"\\])+)""",
    re.VERBOSE | re.DOTALL,
)


def _words(text: str) -> Iterator[str]:
    for found in _WORD.finditer(text):
        yield found[0]


def _unquoted(word: str, variables: Mapping[str, str]) -> Iterator[str]:
    for single, double, escaped, bare in _PIECE.findall(word):
        if bare:
            yield expanded(bare, variables)
        elif double:
            yield re.sub(r'\\(["\\])', r"\1", expanded(double, variables))
        else:
            yield single or escaped


def stages(found: Sequence[Instruction]) -> tuple[list[Instruction], list[list[Instruction]]]:
    """The ARGs before the first FROM, and the stages, each beginning with its FROM.

    Raises BuildError.
    """
    before: list[Instruction] = []
    each: list[list[Instruction]] = []
    for one in found:
        if one.name == "FROM":
            each.append([one])
        elif each:
            each[-1].append(one)
        elif one.name == "ARG":
            before.append(one)
        else:
            raise one.error("begin with FROM; only ARG may stand before it")
    if not each:
        raise found[-1].error("no FROM follows")
    return before, each
