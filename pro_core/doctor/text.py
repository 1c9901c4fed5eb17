"""The doctor's page for a terminal: plain ASCII but for the data's own names, at most 98 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from pro_core.doctor.contents import ASSUMPTIONS, Section, about_lines, label, sections
from pro_core.doctor.verdict import Examination

WIDTH = 98


def render_text(e: Examination) -> str:
    """The whole page."""
    parts = ["PRO doctor: can a preference adapter help on this data?", *_wrapped(about_lines(e))]
    parts += ["", f"VERDICT  {e.verdict.headline}", *_wrapped(e.verdict.why)]
    parts += _wrapped(ASSUMPTIONS, bullet="- ")
    if e.notes:
        parts += ["", "NOTE", *_wrapped(e.notes, bullet="! ")]
    for section in sections(e):
        parts += ["", f"{section.title.upper()}  {section.subtitle}"]
        parts += [*_table(section), *_wrapped(filter(None, [section.legend, *section.said]))]
    return "\n".join(line.rstrip() for line in parts) + "\n"


def _wrapped(texts: Iterable[str], bullet: str = "") -> list[str]:
    pad = "  " + " " * len(bullet)
    return [
        line
        for text in texts
        for line in textwrap.wrap(
            label(text, len(text)), WIDTH, initial_indent="  " + bullet, subsequent_indent=pad
        )
    ]


def _table(section: Section) -> list[str]:
    lines = (section.header, *section.rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(section.header))]
    gap = " " * (1 if len(widths) > 10 else 2)
    return [
        "  "
        + gap.join(
            cell.ljust(width) if i in section.left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
