"""Pages of Markdown as passages: cut between paragraphs, under the heading they belong to, never inside a URL."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from rlkit.retriever import Passage

__all__ = ["absolute_links", "chunks", "with_urls"]

LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^()\s]*(?:\([^()\s]*\))?[^()\s]*)(?:\s+\"[^\"]*\")?\)")
HEADING = re.compile(r"#{1,6}\s+(.+?)\s*#*\s*$")
NAME = re.compile(r"</?a\b[^>]*>|<br ?/?>", re.IGNORECASE)
NOISE = re.compile(r"^\s*(?:\{:.*\}|\[!INCLUDE.*|- TOC|:::.*|<!--.*-->)\s*$", re.MULTILINE)


def absolute_links(markdown: str, urls: Mapping[str, str]) -> str:
    """Relative links become those that `urls` (anchor text -> URL) knows; of the others only the anchor stays."""

    def resolve(link: re.Match[str]) -> str:
        image, anchor, target = link[1], link[2], link[3]
        if target.startswith(("http://", "https://")):
            return link[0]
        url = urls.get(anchor.strip(), "")
        return f"[{anchor}]({url})" if url and not image else anchor

    return LINK.sub(resolve, markdown)


def with_urls(markdown: str) -> str:
    """As a reader without Markdown would write it: `[docs](https://a.com)` -> `docs (https://a.com)`."""
    return LINK.sub(lambda link: f"{link[2]} ({link[3]})" if link[3].startswith("http") else link[2], markdown)


def chunks(*, page: str, title: str, url: str, text: str, words: int) -> Iterator[Passage]:
    """Passages of about `words` words, numbered `page#0`, `page#1`, ... in order."""
    number, heading = 0, ""
    held: list[str] = []
    size = 0

    def passage() -> Passage:
        name = title if not heading or heading == title else f"{title}: {heading}"
        return Passage(id=f"{page}#{number}", title=name, text="\n".join(held), url=url)

    for line in _lines(NOISE.sub("", NAME.sub(" ", text)), words):
        found = HEADING.match(line)
        length = len(line.split())
        if held and ((found and size >= words // 4) or size + length > words):
            yield passage()
            number, held, size = number + 1, [], 0
        if found:
            heading = found[1]
        if line.strip():
            held.append(line.strip())
            size += length
    if held:
        yield passage()


def _lines(text: str, words: int) -> Iterator[str]:
    """Lines, those of more than `words` words in pieces; words hold whole URLs."""
    for line in text.splitlines():
        parts = line.split()
        if len(parts) <= words:
            yield line
        else:
            yield from (" ".join(parts[start : start + words]) for start in range(0, len(parts), words))
