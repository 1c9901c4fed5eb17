"""Additions to the documentation site: links into the repository, formulas, tables of numbers.

The pages are also read on GitHub, so they link to files as `../recipes/x.yaml` and write formulas between dollar signs.
Here each linked file is copied into the site as text, and each formula becomes MathML, which browsers draw themselves.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(\.\./([^)#\s]+)\)")
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<formula>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
CELL = re.compile(r"<td[^>]*>(.*?)</td>", re.DOTALL)
NUMBER = re.compile(r"(<strong>)?[-+]?\d")


def _copy_of(path: str) -> str:
    """The path in the site of a file of the repository, with `.txt` added so that browsers show it."""
    return f"repository/{path}.txt"


def on_files(files, config):
    """Add every file that a page links to outside `docs/`.

    Raises:
        FileNotFoundError: a page links to a file that does not exist.
    """
    pages = [file for file in files if file.is_documentation_page()]
    linked = {path for page in pages for path in LINK.findall(page.content_string)}
    for path in sorted(linked):
        if not (ROOT / path).is_file():
            raise FileNotFoundError(f"a page links to ../{path}, which is not a file")
        files.append(File.generated(config, _copy_of(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    return LINK.sub(lambda link: f"]({_copy_of(link[1])})", markdown)


def on_page_content(content, page, config, files):
    def as_mathml(formula: re.Match) -> str:
        display = "block" if formula["tag"] == "div" else "inline"
        return convert(html.unescape(formula["formula"]), display=display)

    def with_marked_numbers(table: re.Match) -> str:
        cells = [cell for cell in CELL.findall(table[0]) if cell]
        numbers = sum(bool(NUMBER.match(cell)) for cell in cells)
        mostly = cells and numbers > len(cells) / 2
        return table[0].replace("<table>", "<table data-numbers>", 1) if mostly else table[0]

    return TABLE.sub(with_marked_numbers, FORMULA.sub(as_mathml, content))
