"""Tables in Markdown, and documents that a tool writes a part of."""

from __future__ import annotations

from pathlib import Path


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """Lay out a table whose source lines up too; numbers to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: list[str]) -> str:
        padded = [
            cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
            for cell, width in zip(cells, widths, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def marks(tool: str) -> tuple[str, str]:
    """Return the lines between which a tool writes."""
    return f"<!-- {tool}: begin -->", f"<!-- {tool}: end -->"


def write_between(path: Path, tool: str, text: str) -> None:
    """Put text between the two marks of a tool in a Markdown file.

    Raises
    ------
    ValueError
        If the marks are not there.
    """
    begin, end = marks(tool)
    content = path.read_text(encoding="utf-8")
    if content.count(begin) != 1 or content.count(end) != 1:
        raise ValueError(f"{path} needs one line {begin} and one {end}")
    before, rest = content.split(begin)
    after = rest.split(end)[1]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
