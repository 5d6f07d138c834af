"""Prose passages of a docstring: what a person would write in plain words, without code, signatures and markup."""

import inspect
import re
from collections.abc import Iterator

MIN_WORDS = 4
_MIN_SUMMARY_WORDS = 3  # "Create a directory."
_SHORT_WORDS = 8  # a sentence below this is joined with the next one
_MAX_WORDS = 60  # what an encoder reads of it: 64 to 96 tokens
_MAX_PASSAGES = 32  # one long manual must not outweigh a module's other objects

# Lines that are not prose.
_DOCTEST = re.compile(r"\s*(>>>|\.\.\. ?$|In \[\d+\]:|\$ )")
_CODE_LINE = re.compile(
    r"\s*(import \w|from [\w.]+ import|def \w+\(|class \w+.*:\s*$|(for|while|if|with|elif) .*:\s*(#.*)?$|(try|else):"
    r"|print\(|return\b.*[()\[\]]|@\w|# |[\w.\[\], ]+ = \S|[\w.]+\(.*\)\s*(#.*)?$)"
)
_RULE = re.compile(r"\s*([=\-~^#*+\"'`_.:])\1{2,}(\s+\1{2,})*\s*$")  # under a heading, or the border of a table
_SECTION = re.compile(
    r"\s*(arg(ument)?s?|(other )?param(eter)?s?|keyword arg(ument)?s|kwargs|attributes|returns?|yields?|raises?|throws"
    r"|warns|see also|references?|examples?|usage|methods|properties|shape|inputs?|outputs?|options|todo|bugs|history"
    r"|copyright|authors?|license)\s*:{0,2}\s*$",
    re.IGNORECASE,
)
_FIELD = re.compile(r"\s*[:@]\w+[^:]*:")  # ":param x: ...", "@return: ..."
_DIRECTIVE = re.compile(r"\s*\.\. +(?P<name>[\w-]+)::\s*(?P<text>.*)$")
_PROSE_DIRECTIVES = {"note", "warning", "tip", "important", "caution", "attention", "hint"}
_SIGNATURE = re.compile(r"\s*(?:class )?[\w.]+\s*(?:\(.*?\)|\[.*?\])\s*(?:(?:-+>|=>|=)\s*(?P<result>.*))?$")
_RESULT = re.compile(r"\s*[\w.,\[\]()*= ]+ -+> (?P<result>.*)$")
# "- text", "1. text", "name(args) -- text", "'a'   text"
_ITEM = re.compile(
    r"\s*(?:[-*+•o]\s|\d+[.)]\s|\(\w\)\s|[a-z]\)\s|[\w.*'\"\[\]/]+(?:\([^)]*\))?\s+--?\s|\S{0,20}[^\s.!?,:;]\s{2,})\s*"
)

# Markup inside a line.
_ROLE = re.compile(r":[\w:+.-]+:`~?!?([^`<]*?)(?:\s*<[^`>]*>)?`")
_LINK = re.compile(r"`([^`<]*?)\s*<[^`>]*>`_{0,2}")
_LITERAL = re.compile(r"`+([^`]+)[`']+_{0,2}")
_EMPHASIS = re.compile(r"(?<![\w*])\*{1,2}(?=\S)([^*]+?)(?<=\S)\*{1,2}(?![\w*])")
_ESCAPE = re.compile(r"\\([*_`|])")
_URL = re.compile(r"<?\b(?:https?|ftp)://[^\s>)]+>?")
_TAG = re.compile(r"</?[a-zA-Z]\w*(?:\s[^<>]*)?/?>")
_SPACES = re.compile(r"[\s\0]+")

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]?\s+(?=[\"'(\[]?[A-Z0-9])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.?g|i\.?e|a\.k\.a|etc|cf|vs|resp|fig|eq|sec|no|approx|incl|Dr|Mr|al)|\b[A-Z])\.$"
)
_REFERENCE = re.compile(r"\(?(see|for (a|the|more|further|full)\b.*\b(see|refer))\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")
_CODE = re.compile(r"[=<>{}\[\]|\\^~@#$%&*/+_]|\w\(|\)\.|\w\.\w")


def passages(docstring: str) -> list[str]:
    """Passages of a docstring, in order: its first sentence, then one to a few sentences of a paragraph each.

    A passage is one line of prose of at least `MIN_WORDS` words (the first: three). There may be none.
    """
    found: list[str] = []
    for paragraph in _paragraphs(inspect.cleandoc(docstring)):
        sentences = _sentences(paragraph)
        if not found:  # the summary stands alone
            summary = sentences.pop(0).strip(" -:*#")
            if _is_prose(summary, _MIN_SUMMARY_WORDS):
                found.append(_cut(summary))
        # What ends with a colon introduces something that is not here.
        own = [sentence for sentence in sentences if not sentence.endswith(":") and not _REFERENCE.match(sentence)]
        found += [_cut(sentence) for sentence in _joined(own) if _is_prose(sentence, MIN_WORDS)]
    return list(dict.fromkeys(found))[:_MAX_PASSAGES]


def normalised(passage: str) -> str:
    """The words of a passage in lower case, for telling whether two passages say the same."""
    return " ".join(re.findall(r"[^\W_]+", passage.lower()))


def _paragraphs(text: str) -> Iterator[str]:
    """Runs of prose lines as single lines, free of doctests, code, sections about parameters, tables and markup."""
    lines: list[str] = []

    def flush() -> Iterator[str]:
        paragraph = _plain(" ".join(lines))
        lines.clear()
        if paragraph:
            yield paragraph

    block_indent: int | None = None  # inside a block that is not prose: whatever is indented deeper than this
    code = False  # inside lines of code, up to the next blank line
    section = False  # inside "Parameters" or the like, up to the next heading
    source = text.expandtabs().splitlines()
    for line, following in zip(source, [*source, ""][1:], strict=True):
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            yield from flush()
            code = False
            continue
        if block_indent is not None and indent > block_indent:
            continue
        block_indent = None
        if _is_heading(line, following):
            yield from flush()
            section = bool(_SECTION.match(line))
        elif _SECTION.match(line) or _FIELD.match(line):
            yield from flush()
            block_indent = indent
        elif section or code or _RULE.match(line):
            yield from flush()
        elif _DOCTEST.match(line) or (not lines and _CODE_LINE.match(line) and not _RESULT.match(line)):
            yield from flush()
            # The first line is often a signature, with prose right below it.
            code = bool(_DOCTEST.match(line)) or not _SIGNATURE.match(line)
        elif directive := _DIRECTIVE.match(line):
            yield from flush()
            if directive["name"] in _PROSE_DIRECTIVES:
                lines.append(directive["text"])
            else:
                block_indent = indent
        elif result := _SIGNATURE.match(line) or _RESULT.match(line):
            yield from flush()
            lines.append(result["result"] or "")
        else:
            if _ITEM.match(line):
                yield from flush()
                line = _ITEM.sub("", line, count=1)
            if line.rstrip().endswith("::"):
                block_indent = indent
            lines.append(line)
    yield from flush()


def _is_heading(line: str, following: str) -> bool:
    """Whether `following` underlines `line`, and is not the border of a table or the line itself a rule."""
    return (
        bool(_RULE.match(following))
        and len(following.split()) == 1
        and not _RULE.match(line)
        and len(line.split()) <= 8
    )


def _plain(text: str) -> str:
    """`text` on one line without reStructuredText, links and tags."""
    text = _ROLE.sub(r"\1", text)
    text = _LINK.sub(r"\1", text)
    text = _LITERAL.sub(r"\1", text)
    text = _EMPHASIS.sub(r"\1", text)
    text = _ESCAPE.sub(r"\1", text)
    text = _URL.sub(" ", text)
    text = _TAG.sub(" ", text)
    return _SPACES.sub(" ", text.replace("::", ":")).strip()


def _sentences(paragraph: str) -> list[str]:
    parts: list[str] = []
    for part in _SENTENCE_END.split(paragraph):
        if parts and _ABBREVIATION.search(parts[-1]):
            parts[-1] += " " + part
        else:
            parts.append(part)
    return parts


def _joined(sentences: list[str]) -> list[str]:
    """The sentences, each short one joined with the one after it, the last with the one before it."""
    joined: list[str] = []
    for number, sentence in enumerate(sentences):
        last = number == len(sentences) - 1
        if joined and (_is_short(joined[-1]) or (last and _is_short(sentence))):
            joined[-1] += " " + sentence
        else:
            joined.append(sentence)
    return joined


def _is_short(sentence: str) -> bool:
    return len(sentence.split()) < _SHORT_WORDS


def _is_prose(text: str, min_words: int) -> bool:
    words = text.split()
    code = sum(1 for word in words if _CODE.search(word))
    return len(_WORD.findall(text)) >= min_words and code <= len(words) // 3


def _cut(text: str) -> str:
    return " ".join(text.strip(" -:*#").split()[:_MAX_WORDS])
