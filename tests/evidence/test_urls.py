"""URLs in text: the oracle table of the advertising-QA paper's spec, and look-alikes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkit.evidence.urls import MAX_LENGTH, canonical, extract_urls, leaks, spans, under_prefix


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("请访问https://a.com/help查看", ["https://a.com/help"]),
        ("See (https://a.com/x).", ["https://a.com/x"]),
        ("[doc](https://a.com/x_(y))", ["https://a.com/x_(y)"]),
        ("https://a.com/x,https://a.com/y", ["https://a.com/x", "https://a.com/y"]),
        ("**https://a.com/x**", ["https://a.com/x"]),
        ("<https://a.com/x>", ["https://a.com/x"]),
        ("HTTPS://A.COM/Path/", ["https://a.com/Path"]),
        ("https://a.com/x?y=1&z=2#f。", ["https://a.com/x?y=1&z=2#f"]),
        ("www.a.com/x", []),
        ("https://", []),
        ("[a](https://a.com/x)[b](https://a.com/y)", ["https://a.com/x", "https://a.com/y"]),
        ("![image](https://a.com/x.png)!", ["https://a.com/x.png"]),
        ("https://a.com/x https://a.com/x/ https://A.com/x", ["https://a.com/x"]),
        ("http://[::1]:80/x", ["http://[::1]:80/x"]),
        ("ftp://a.com javascript:alert(1)", []),
        ("https://?x https://#", []),
    ],
)
def test_urls_are_found_as_the_oracle_says(text: str, urls: list[str]) -> None:
    assert extract_urls(text) == urls


@pytest.mark.parametrize(
    ("url", "pool", "approved"),
    [
        ("https://ads.example.com/a", "https://ads.example.com", True),
        ("https://ads.example.com.evil.io/a", "https://ads.example.com", False),
        ("https://ads.example.com@evil.io/", "https://ads.example.com", False),
        ("http://ads.example.com/a", "https://ads.example.com", False),
        ("https://ads.example.com/help/1", "https://ads.example.com/help", True),
        ("https://ads.example.com/helpdesk", "https://ads.example.com/help", False),
        ("https://ads.example.com/help", "https://ads.example.com/help/", True),
        ("https://ads.example.com?q=1", "https://ads.example.com", True),
        ("https://ads.example.com:8443/a", "https://ads.example.com", False),
        ("https://xn--ds-7kc.example.com/a", "https://ads.example.com", False),
        ("https://ads.example.com/help/../admin", "https://ads.example.com/help", False),
        ("https://ads.example.com/help/%2E%2e/admin", "https://ads.example.com/help", False),
        ("https://ads.example.com/help/v1..v2", "https://ads.example.com/help", True),
        ("https://ads.example.com/a", "", False),
        ("https://ads.example.com/" + "a" * MAX_LENGTH, "https://ads.example.com", False),
    ],
)
def test_a_prefix_ends_at_a_border_and_look_alikes_are_refused(url: str, pool: str, approved: bool) -> None:
    assert under_prefix(url, [pool]) is approved


def test_only_scheme_and_host_lose_their_case() -> None:
    assert canonical("HTTPS://User@A.COM/Path?Q=1/") == "https://User@a.com/Path?Q=1"
    assert canonical("ftp://a.com") == canonical("https://-") == ""


def test_what_readers_may_follow_and_the_pattern_misses_is_a_leak() -> None:
    text = "See www.a.com/x, ftp://b.com/y, https://аds.example.com/z and https://c.com/ok or mail me@d.com."  # noqa: RUF001
    assert leaks(text) == ["www.a.com/x", "ftp://b.com/y", "https://аds.example.com/z"]  # noqa: RUF001
    assert leaks("Version 2.0 of e.g. node.js is here: https://a.com/x") == []


@given(st.text(alphabet="ahtps:/.()[]?#@* é中,\n", max_size=60))
def test_every_span_is_where_it_says_and_reads_as_itself(text: str) -> None:
    last = 0
    for start, end, url in spans(text):
        assert last <= start < end <= len(text)
        assert canonical(text[start:end]) == url
        assert canonical(url) == url.removesuffix("/")  # a second trailing slash is a path of its own
        last = end
