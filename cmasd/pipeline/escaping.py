"""Text of users for interfaces that take ASCII alone: tags of metrics, the path of a webhook's address.

Other characters are written as in a URL: `ö` is `%C3%B6`. JSON on a terminal or in a file has its own way out.
"""

from typing import Any
from urllib.parse import quote

PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


def as_ascii(text: str, keep: str = PRINTABLE) -> str:
    """Unchanged where all characters are in `keep`; never raises."""
    return quote(text, safe=keep, errors="backslashreplace")


def takes_all_letters(stream: Any) -> bool:
    """Whether JSON may be written there with letters as they are; else they must be escaped, to stay JSON."""
    return (getattr(stream, "encoding", None) or "").lower().replace("-", "") in ("utf8", "utf16", "utf32")
