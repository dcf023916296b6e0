"""Text of users for interfaces that take ASCII alone: tags of metrics, the path of a webhook's address.

Other characters are written as in a URL: `ö` is `%C3%B6`.
"""

from urllib.parse import quote

PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


def as_ascii(text: str, keep: str = PRINTABLE) -> str:
    """Unchanged where all characters are in `keep`; never raises."""
    return quote(text, safe=keep, errors="backslashreplace")
