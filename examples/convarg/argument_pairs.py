"""The XML of UKPConvArg1: pairs of arguments for one side of a debate, and the votes on each of several workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from megatron_lpc.command_line import UserError


@dataclass(frozen=True, kw_only=True)
class Argument:
    """A text, and its name in the corpus."""

    name: str
    text: str


@dataclass(frozen=True, kw_only=True)
class ArgumentPair:
    """Two arguments for the same side of a debate, and what each worker said."""

    topic: str
    """The question that is debated; two debates have it, one for each side."""
    stance: str
    """The side that both arguments take."""
    debate: str
    """Name of the file."""
    arguments: tuple[Argument, Argument]
    votes: tuple[tuple[str, str], ...]
    """Worker and vote: `a1`, `a2` or `equal`."""


def read_folder(folder: Path) -> list[ArgumentPair]:
    """The pairs of all files of a folder, in the order of their names.

    Raises:
        UserError: there is no XML file, or one is not as the corpus has it.
    """
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise UserError(f"--input {folder}: holds no .xml file; name the folder UKPConvArg1-full-XML")
    return [pair for file in files for pair in read_file(file)]


def read_file(file: Path) -> list[ArgumentPair]:
    """The pairs of one file.

    Raises:
        UserError: it is not XML, declares a document type (whose entities could grow without bound), or lacks a field.
    """
    tree = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = tree.start
    parser.EndElementHandler = tree.end
    parser.CharacterDataHandler = tree.data
    # No entity can be declared but in a document type.
    parser.StartDoctypeDeclHandler = _refuse_document_type
    try:
        parser.Parse(file.read_bytes(), True)
        return list(_pairs(tree.close(), file.stem))
    except (expat.ExpatError, ValueError) as error:
        raise UserError(f"{file}, line {parser.CurrentLineNumber}: {error}; take the files of the corpus") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check the path of --input") from error


def _refuse_document_type(*_: object) -> None:
    raise ValueError("declares a document type, which the corpus does not have and which is not read")


def _pairs(root: ElementTree.Element, debate: str) -> Iterator[ArgumentPair]:
    for element in root.iter("annotatedArgumentPair"):
        first, second = (
            Argument(name=_text(element, f"{side}/id"), text=_text(element, f"{side}/text"))
            for side in ("arg1", "arg2")
        )
        votes = [(_text(vote, "turkID"), _text(vote, "value")) for vote in element.iter("mTurkAssignment")]
        unknown = {value for _, value in votes} - {"a1", "a2", "equal"}
        if unknown:
            raise ValueError(f"pair {first.name}_{second.name} has the vote {min(unknown)!r}, not a1, a2 or equal")
        yield ArgumentPair(
            topic=_text(element, "debateMetaData/title"),
            stance=_text(element, "arg1/stance"),
            debate=debate,
            arguments=(first, second),
            votes=tuple(votes),
        )


def _text(element: ElementTree.Element, path: str) -> str:
    found = (element.findtext(path) or "").strip()
    if not found:
        raise ValueError(f"<{element.tag}> has no <{path}>")
    return found
