"""Text of fixed width as a PDF: A4, Courier, the same bytes for the same text. Pure.

The format is small enough to write (ISO 32000-1 §7.5, §9.6.2.2: the standard 14 fonts need no
file). Courier knows the Western letters of Windows-1252; others become question marks. A library
would not change that: the standard fonts have no other letters, and a font that has those of all
scripts is a file of many megabytes, which nobody asked to carry. The JSON of an invoice, which its
hash is made of, keeps every letter.
"""

from __future__ import annotations

WIDTH, HEIGHT = 595, 842
"""A4 in points."""
MARGIN_LEFT, MARGIN_TOP = 42, 50
FONT_SIZE, LEADING = 8.5, 11.5
LINES_PER_PAGE = 64


def render_pdf(text: str, title: str) -> bytes:
    """Return the text as pages of at most 64 lines."""
    lines = text.rstrip("\n").split("\n")
    pages = [lines[n : n + LINES_PER_PAGE] for n in range(0, len(lines), LINES_PER_PAGE)]
    numbers = [4 + 2 * n for n in range(len(pages))]
    kids = " ".join(f"{number} 0 R" for number in numbers)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Courier /Encoding /WinAnsiEncoding >>",
    ]
    for number, page in zip(numbers, pages, strict=True):
        objects += [_page(number), _content(page)]
    objects.append(b"<< /Title (" + _escaped(title) + b") /Producer (botplane) >>")
    return _file(objects)


def _page(number: int) -> bytes:
    return (
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {WIDTH} {HEIGHT}] "
        f"/Resources << /Font << /F1 3 0 R >> >> /Contents {number + 1} 0 R >>"
    ).encode()


def _content(lines: list[str]) -> bytes:
    start = f"BT /F1 {FONT_SIZE} Tf {LEADING} TL {MARGIN_LEFT} {HEIGHT - MARGIN_TOP} Td\n"
    shown = b"".join(b"(" + _escaped(line) + b") Tj T*\n" for line in lines)
    stream = start.encode() + shown + b"ET"
    return f"<< /Length {len(stream)} >>\nstream\n".encode() + stream + b"\nendstream"


def _escaped(text: str) -> bytes:
    raw = text.encode("cp1252", "replace")
    for special in (b"\\", b"(", b")"):
        raw = raw.replace(special, b"\\" + special)
    return raw.replace(b"\r", b" ")


def _file(objects: list[bytes]) -> bytes:
    """Number the objects, and close with the table of where each begins."""
    body = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"
    offsets = []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n".encode() + content + b"\nendobj\n"
    entries = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    count = len(objects) + 1
    return (
        body
        + (
            f"xref\n0 {count}\n0000000000 65535 f \n{entries}"
            f"trailer\n<< /Size {count} /Root 1 0 R /Info {count - 1} 0 R >>\n"
            f"startxref\n{len(body)}\n%%EOF\n"
        ).encode()
    )
