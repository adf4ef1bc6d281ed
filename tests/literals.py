"""Numbers that are typed into what a reader reads: in the Markdown and the strings of notebooks, and in pages.

A number is looked for where results are written: with a unit (per cent, points, times, seconds, bytes), with a decimal
point, with a comma between its digits, as a fraction in words, or as some of so many (``three of ten runs``).  Small whole
numbers without a unit are sizes and settings nearly always, and are left alone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode

from benchmarks.pages import BLOCK
from minica.course.publish import CARD

WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen twenty thirty hundred"
FRACTIONS = "half third quarter fifth sixth seventh eighth ninth tenth eleventh twelfth fifteenth twentieth thirtieth hundredth"
DIGITS = r"[-+±−]?\d[\d,]*(?:\.\d+)?"
WORD = rf"\b(?:{'|'.join(WORDS.split())}|half an?|an?(?= (?:point|per cent|minute|hour|factor)\b)|(?<=in )a(?= second\b))\b"
NUMBER = rf"(?:{DIGITS}|{WORD})"
RANGE = rf"{NUMBER}(?:(?: ?(?:to|and|or|or at|\+-|±|,) ?| ?- ?){NUMBER})*"
KINDS = {  # in this order: what one kind has taken is not looked at again
    "percentage": rf"{RANGE} ?(?:%|per ?cents?\b)",
    "points": rf"{RANGE}(?: percentage)? points?\b",
    "bytes": rf"{RANGE} ?(?:[kMG]i?B|megabytes?|gigabytes?)\b",
    "time": rf"{RANGE} ?(?:ms|s|milliseconds?|seconds?|minutes?|hours?)\b",
    "times": rf"{RANGE} times (?:as|the|for|less|more|fewer|faster|slower|larger|smaller)\b|\bfactor of {RANGE}|\btwice as\b",
    "large": rf"{RANGE} (?:thousand|million|billion)s?\b|\d{{1,3}}(?:,\d{{3}})+",
    "share": rf"(?:{DIGITS}|{WORD}) (?:of|in|out of) (?:the |our |every )?(?:\d+(?! ?(?:%|\.\d))|{WORD})\b",
    "runs": rf"{RANGE} runs\b",
    "fraction": rf"\b(?:an?|two|three|four) (?:{'|'.join(FRACTIONS.split())})s?(?= of\b| as\b| to\b| is\b| are\b|[,.;:)]|$)"
    r"|\b(?:about|nearly|almost|over|under|more than|less than|fewer than) half\b",
    "decimal": r"[-+±−]?\d+\.\d+",
}
NAMES = [  # what is a name, a level or a setting by the word beside it
    r"\b(?:[Ss]ections?|[Aa]ppendix|Tables?|Figures?|Equations?|[Nn]otebooks?|[Ee]xercises?)"
    r"(?: (?:[A-C]\.)?\d+(?:\.\d+)*(?:,(?: and)?| and| to|:)?)+",
    r"\b[A-C]\.\d\b",
    r"\b(?:Python|torch|minica|timm) \d+\.\d+(?:\.\d+)?",
    r"\barXiv \d+\.\d+",
    r"\bCC BY[\w-]* \d\.\d|Apache-\d\.\d",
    r"\b95 %(?= (?:bootstrap )?interval)|(?<=Student, )95 %|(?<=at )95 %|\b95 %(?= of the differences)",
    r"\b(?:threshold|weight|compression|z)(?: of| =)? \d+\.\d+(?! ?%)|\brates? (?:of )?0\.0\d+",
    r"\b1,000 (?:training )?(?:images|pictures)",  # of a task of VTAB-1k
    r"\bone of the\b",
    r"\bseven points(?= may lie| make)",  # of a figure
]
MARKDOWN = [  # what is not prose: one mark each, so that no sentence runs through it; of code, its comments
    (r"```.*?```", lambda found: re.sub(r"(?m)^.*?(# .+)?$", lambda line: line[1] or "", found[0])),
    (r"\$\$.*?\$\$", lambda found: "\n" * found[0].count("\n")),
    (r"\$[^$\n]+\$", "•"),
    (r"<code>.*?</code>", "•"),
    (r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\([^)]*\)", r"\1"),
    (r"`[^`\n]+`", "•"),
    (r"</?\w[^>\n]*>", " "),
    (r"<!--.*?-->", " "),
    (r"https?://\S+", "•"),
    (r"\*\*|\*(?=\w)|(?<=[\w.?!])\*", ""),
    (r"\\([.*])", r"\1"),
    (r"&amp;", "&"),
]
SENTENCE = re.compile(r"(?<=[.!?])(?<!\d\.)(?<!al\.)(?<!Conv\.)(?<!Par\.)(?<!Seq\.)(?<!Res\.)[)\"]?\s+(?=[A-Z(\"•\d])")
START = re.compile(r"\n\s*\n|\n(?=\s*(?:[*#>|-]|\d+\.) ?)")  # of a paragraph, an item, a row


@dataclass(frozen=True)
class Literal:
    """One number with the sentence that it stands in."""

    file: str
    place: str  # "cell 12" or "line 40"
    sentence: str
    text: str
    kind: str
    start: int  # in the sentence

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.text!r} ({self.kind}) in: {self.sentence}"


def prose(markdown: str) -> str:
    """Markdown without code, formulas, addresses and emphasis, in as many lines."""
    for pattern, instead in MARKDOWN:
        markdown = re.sub(pattern, instead, markdown, flags=re.S)
    return markdown


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Every sentence, item or row of a table, put on one line, with the number of the line that it starts in."""
    for part, start in _split(START, text):
        for sentence, at in _split(SENTENCE, part):
            if words := " ".join(sentence.split()):
                blank = len(sentence) - len(sentence.lstrip())
                yield 1 + text.count("\n", 0, start + at + blank), words


def _split(pattern: re.Pattern, text: str) -> Iterator[tuple[str, int]]:
    at = 0
    for found in pattern.finditer(text):
        yield text[at : found.start()], at
        at = found.end()
    yield text[at:], at


def numbers(sentence: str) -> Iterator[tuple[int, str, str]]:
    """Place, text and kind of every number in a sentence that could be a result's."""
    for name in NAMES:
        sentence = re.sub(name, _blank, sentence, flags=re.I)
    for kind, pattern in KINDS.items():
        whole = re.compile(rf"(?<![\w.])(?:{pattern})", re.I if kind != "bytes" else 0)
        for found in whole.finditer(sentence):
            yield found.start(), found[0], kind
        sentence = whole.sub(_blank, sentence)


def _blank(found: re.Match) -> str:
    return "·" * len(found[0])


def in_page(path: Path) -> Iterator[tuple[str, str]]:
    """Place and text of every sentence of a page, without what ``python -m benchmarks.pages`` writes into it."""
    text = BLOCK.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), path.read_text(encoding="utf-8"))
    for line, sentence in sentences(prose(text)):
        yield f"line {line}", sentence


def in_notebook(notebook: NotebookNode) -> Iterator[tuple[str, str]]:
    """The same of a notebook: its Markdown but for the measured row of the card, and its code's strings but for the set-up."""
    for number, cell in enumerate(notebook.cells):
        texts = [CARD.sub("", cell.source)]
        if cell.cell_type == "code":
            texts = [] if "setup" in cell.metadata.get("tags", ()) else strings(cell.source)
        for text in texts:
            for _, sentence in sentences(prose(text)):
                yield f"cell {number}", sentence


def typed(file: str, found: Iterable[tuple[str, str]]) -> Iterator[Literal]:
    """Every number in these sentences of a file that could be a result's."""
    for place, sentence in found:
        for start, text, kind in numbers(sentence):
            yield Literal(file, place, sentence, text, kind, start)


def strings(code: str) -> list[str]:
    """The strings of a cell's code, with ``•`` for what an f-string computes; names, such as dictionary keys, excepted."""
    lines = [line for line in code.splitlines() if not line.lstrip().startswith(("%", "!"))]
    found, inside = [], set()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in ast.walk(node)} - {id(node)}
            found.append("".join(part.value if isinstance(part, ast.Constant) else "•" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            found.append(node.value)
    return [string for string in found if " " in string]
