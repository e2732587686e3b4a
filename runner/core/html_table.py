"""HTML tables for notebooks: every text is escaped, whoever wrote it."""

from collections.abc import Iterable, Sequence
from html import escape

from runner.core.escape import make_printable


def make_html_table(rows: Iterable[Sequence[object]], header: Sequence[object] = (), caption: str = "") -> str:
    """Make a table; numbers have six digits."""
    lines = [f"<caption>{_format(caption)}</caption>"] if caption else []
    if header:
        lines.append(f"<thead><tr>{''.join(f'<th>{_format(cell)}</th>' for cell in header)}</tr></thead>")
    body = (f"<tr>{''.join(f'<td>{_format(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{''.join(lines)}<tbody>{''.join(body)}</tbody></table>"


def make_html_text(text: object) -> str:
    """Make preformatted text."""
    return f"<pre>{_format(text)}</pre>"


def _format(value: object) -> str:
    if value is None:
        return ""
    said = f"{value:.6g}" if isinstance(value, float) else str(value)
    return escape(make_printable(said))
