"""Ray's exceptions -> the one error that a user can act on."""

import re

from cmasd.errors import CmasdError, DecodingError

_LAST_LINE = re.compile(r"(?m)^(?:[\w.]+\.)?(\w+(?:Error|Exception)): (.+)$")


def cause_of(error: BaseException) -> CmasdError:
    """The project's own error inside, or a `DecodingError` that names the innermost cause."""
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, CmasdError):
            return _plain(link)
    innermost = chain[-1]
    texts = [found for link in chain for found in _LAST_LINE.findall(str(link))]
    kind, message = texts[-1] if texts else (type(innermost).__name__, _first_line(innermost))
    return DecodingError(f"{kind}: {message}"[:500])


def _plain(error: CmasdError) -> CmasdError:
    """Ray raises a subclass of its own and of the cause's class, and appends advice to the message: undo both."""
    cause = getattr(error, "cause", None)
    found = cause if isinstance(cause, CmasdError) else error
    return type(found)(_first_line(found))


def _chain(error: BaseException) -> list[BaseException]:
    links: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in links:
        links.append(current)
        inner = getattr(current, "cause", None)
        current = inner if isinstance(inner, BaseException) else current.__cause__
    return [link for link in links if type(link).__name__ != "SystemException"]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
