"""URLs in text: what counts as one, when two are the same, and which lie under an approved prefix.

Rules of the advertising-QA rewards (Li et al. 2026, arXiv:2602.22584, appendix B says "regex" and no more):

    match       `http://` or `https://`, then ASCII URL characters; a further scheme begins a further URL
    trim        from the first `)` or `]` that closes nothing, then trailing `. , ; : ! ? ' " * _ ~`
    same        scheme and host in lower case, without one trailing `/`; everything else exactly
    under       starts with the prefix, which ends at a border: the end, `/`, `?` or `#`

Nothing here opens a connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

__all__ = ["MAX_LENGTH", "canonical", "extract_urls", "leaks", "spans", "under_prefix", "without_urls"]

MAX_LENGTH = 2048
"""Characters; a longer URL may equal one of the evidence, but no prefix approves it."""

_FOUND = re.compile(r"https?://(?:(?!https?://)[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%])+", re.IGNORECASE)
_TRAILING = ".,;:!?'\"*_~"
_PAIRS = {")": "(", "]": "["}
_PARTS = re.compile(r"(https?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(r"[a-z0-9]|\[[0-9a-f:.]+\]", re.IGNORECASE)
_DOTS = re.compile(r"(?:^|/)(?:\.|%2e){1,2}(?:[/?#]|%2f|%5c|$)", re.IGNORECASE)
_BARE = re.compile(
    r"(?<![\w/@.:-])(?:www\.)?(?:[a-z0-9-]+\.)+(?:com|net|org|io|ai|cn|co|dev|app|info|biz|edu|gov|me|ru|uk|de|top|xyz)"
    r"(?![\w-]|\.\w)(?:/[^\s<>\"')\]]*)?",
    re.IGNORECASE,
)
_OTHER_SCHEME = re.compile(
    r"\b(?:ftp|file|ws|wss|hxxps?|intent)://\S+|\b(?:javascript|data|vbscript):\S+", re.IGNORECASE
)
_FOREIGN_HOST = re.compile(r"https?://[^\x00-\x7f][^\s/]*\.\S+", re.IGNORECASE)


def spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and canonical form of every URL in `text`, in order, repeats included."""
    for match in _FOUND.finditer(text):
        raw = _trimmed(match[0])
        if found := canonical(raw):
            yield match.start(), match.start() + len(raw), found


def extract_urls(text: str) -> list[str]:
    """The different URLs of `text` in canonical form, by first occurrence."""
    return list(dict.fromkeys(url for _, _, url in spans(text)))


def without_urls(text: str) -> str:
    """`text` with a space in place of each URL."""
    for start, end, _ in reversed(list(spans(text))):
        text = f"{text[:start]} {text[end:]}"
    return text


def canonical(url: str) -> str:
    """The form in which URLs are compared; empty if `url` has no host or another scheme."""
    parts = _PARTS.fullmatch(url)
    if parts is None:
        return ""
    user, at, host = parts[2].rpartition("@")
    if not _HOST.match(host):
        return ""
    return f"{parts[1].lower()}://{user}{at}{host.lower()}{parts[3]}".removesuffix("/")


def under_prefix(url: str, prefixes: Iterable[str]) -> bool:
    """True if one of the approved prefixes covers `url`; the scheme must agree.

    Departures from a plain prefix test, all refusals: a path with dot segments, which a server may resolve to a place
    outside the prefix, and a URL of more than `MAX_LENGTH` characters.
    """
    url = canonical(url)
    if not url or len(url) > MAX_LENGTH or _DOTS.search(url.partition("://")[2].partition("?")[0]):
        return False
    for prefix in map(canonical, prefixes):
        if prefix and url.startswith(prefix) and url[len(prefix) : len(prefix) + 1] in ("", "/", "?", "#"):
            return True
    return False


def leaks(text: str) -> list[str]:
    """What a reader may follow and `extract_urls` does not see: bare domains, other schemes, hosts beyond ASCII."""
    found = [(match.start(), match[0]) for rule in (_OTHER_SCHEME, _FOREIGN_HOST) for match in rule.finditer(text)]
    visible = _FOUND.sub(lambda match: " " * len(match[0]), text)
    found += [(match.start(), match[0]) for match in _BARE.finditer(visible)]
    return list(dict.fromkeys(leak.rstrip(_TRAILING) for _, leak in sorted(found)))


def _trimmed(raw: str) -> str:
    """Without closing brackets that belong to the sentence, and without its punctuation."""
    opened: list[str] = []
    for index, char in enumerate(raw):
        if char in "([":
            opened.append(char)
        elif char in _PAIRS:
            if not opened or opened[-1] != _PAIRS[char]:
                raw = raw[:index]
                break
            opened.pop()
    return raw.rstrip(_TRAILING)
