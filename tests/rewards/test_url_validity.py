"""URL validity: the worked numbers of the spec, and a checker that never leaves its hosts."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkit.errors import RewardError
from rlkit.records import Task
from rlkit.rewards.http_status import HttpStatus, public_addresses
from rlkit.rewards.url_validity import Mode, UrlReport, classify_urls, url_reward, url_validity
from tests.rewards.paths import path

POOL = ["https://ads.example.com"]
HELP, DOCS = "https://ads.example.com/help/account", "https://ads.example.com/docs"
NEW, OUTSIDE = "https://ads.example.com/new/page", "https://example.com"
ANSWER = f"See {HELP} and again {HELP}, then {NEW} or {OUTSIDE}."
EVIDENCE = f"Pages: {HELP} {DOCS}"
TASK = Task(id="t", question="?", answers=("Yes.",))


def report(evidence: int = 0, live: int = 0, invalid: int = 0) -> UrlReport:
    return UrlReport(evidence=("e",) * evidence, approved_live=("l",) * live, invalid=("i",) * invalid)


def value(answer: str, **settings: object) -> float:
    shown = path(f"e:<information>{EVIDENCE}</information>", "m:x", answer=answer)
    return url_validity(TASK, shown, **settings).value  # type: ignore[arg-type]


def test_the_worked_example_has_one_url_of_each_kind() -> None:
    found = classify_urls(ANSWER, EVIDENCE, POOL, {NEW: 200}.get)
    assert found == UrlReport(evidence=(HELP,), approved_live=(NEW,), invalid=(OUTSIDE,))
    assert url_reward(found) == pytest.approx(1 / 3)  # 2/3 - 1/3


@pytest.mark.parametrize(
    ("code", "raw"),
    [(200, 1 / 3), (301, 1 / 3), (302, 1 / 3), (204, -1 / 3), (404, -1 / 3), (500, -1 / 3), (None, -1 / 3)],
)
def test_only_200_301_and_302_make_an_approved_url_valid(code: int | None, raw: float) -> None:
    assert url_reward(classify_urls(ANSWER, EVIDENCE, POOL, {NEW: code}.get)) == pytest.approx(raw)


@pytest.mark.parametrize(
    ("mode", "found", "raw"),
    [
        ("ratio", report(1, 1, 1), 1 / 3),
        ("ratio", report(0, 0, 2), -1.0),
        ("ratio", report(2, 1, 0), 1.0),
        ("ratio", report(), 0.0),
        ("count", report(1, 1, 1), 1 / 3),
        ("count", report(9, 0, 0), 1.0),  # 3 of 3: pasting more pays nothing
        ("count", report(0, 0, 9), -1.0),
        ("indicator", report(1, 1, 1), 0.0),
        ("indicator", report(1, 0, 0), 1.0),
        ("indicator", report(0, 0, 1), -1.0),
    ],
)
def test_the_three_modes_pay_as_worked_by_hand(mode: Mode, found: UrlReport, raw: float) -> None:
    assert url_reward(found, mode) == pytest.approx(raw)


def test_a_heavier_penalty_makes_one_bad_link_outweigh_good_ones_and_stays_in_range() -> None:
    assert url_reward(report(2, 0, 1), penalty=2) == pytest.approx(0.0)  # 2/3 - 2·1/3
    assert url_reward(report(0, 0, 3), penalty=2) == -1.0


def test_values_are_rescaled_from_0_to_1(tmp_path: Path) -> None:
    table = tmp_path / "web.json"
    table.write_text(json.dumps({NEW: 200, DOCS: None}))
    settings = {"pool": POOL, "check": "table", "table": str(table)}
    assert value(ANSWER, **settings) == pytest.approx(2 / 3)
    assert value(ANSWER, **settings, keep_raw=True) == pytest.approx(1 / 3)
    assert value(ANSWER) == pytest.approx(1 / 3)  # nobody is asked: the new page is not valid
    assert value("No link here.") == 0.5
    assert value(f"Only {HELP}") == 1.0
    assert value("Only https://invented.com/x") == 0.0
    assert value("  ") == value("<think>https://a.com</think>") == 0.0


def test_thoughts_are_no_part_of_the_answer() -> None:
    assert value(f"<think>Is it https://invented.com?</think>See {HELP}.") == 1.0
    assert value(f"{HELP} <think>https://invented.com") == 1.0


def test_without_evidence_only_the_pool_can_validate() -> None:
    assert classify_urls(HELP, "", POOL, {HELP: 200}.get).approved_live == (HELP,)
    assert classify_urls(HELP, "", [], {HELP: 200}.get).invalid == (HELP,)


def test_dead_links_of_the_evidence_are_valid_and_never_asked_about() -> None:
    asked: list[str] = []

    def status(url: str) -> int | None:
        asked.append(url)
        return 404

    assert classify_urls(f"{HELP} {NEW} {OUTSIDE}", EVIDENCE, POOL, status).evidence == (HELP,)
    assert asked == [NEW]  # neither the evidence nor what no prefix approves


def test_a_link_of_the_reference_alone_is_invalid_and_logged() -> None:
    task = Task(id="t", question="?", answers=(f"See {OUTSIDE}.",))
    score = url_validity(task, path("m:x", answer=f"See {OUTSIDE}, www.b.com/x."))
    assert score.value == 0.0
    assert score.measured == {
        "num_urls": 1.0,
        "any_invalid": 1.0,
        "num_invalid": 1.0,
        "without_url": 0.0,
        "num_leaks": 1.0,
        "reference_only": 1.0,
    }


@pytest.mark.parametrize(
    "url",
    [
        "https://ads.example.com@evil.io/a",
        "https://ads.example.com.evil.io/a",
        "http://ads.example.com/a",
        "https://xn--ads-example-fdh.com/a",
        "https://ads.example.com/" + "a" * 5000,
        "https://ads.example.com/help/../../etc",
    ],
)
def test_look_alikes_of_an_approved_host_are_invalid_and_not_fetched(url: str) -> None:
    def refuse(asked: str) -> int:
        raise AssertionError(f"asked about {asked}")

    assert len(classify_urls(url, "", POOL, refuse).invalid) == 1


@given(st.lists(st.sampled_from([HELP, DOCS, NEW, OUTSIDE, "text", "(", ").", "中"]), max_size=8))
def test_the_verdicts_part_the_urls_of_the_answer(words: list[str]) -> None:
    found = classify_urls(" ".join(words), EVIDENCE, POOL, {NEW: 301}.get)
    everything = [*found.evidence, *found.approved_live, *found.invalid]
    assert len(set(everything)) == len(everything) == found.num_urls
    assert set(everything) == {HELP, DOCS, NEW, OUTSIDE} & set(words)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"check": "http"}, "hosts: is empty"),
        ({"check": "table"}, "table: missing"),
        ({"check": "table", "table": "/nowhere.json"}, "is no JSON file"),
    ],
)
def test_settings_that_cannot_work_are_said(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        value(ANSWER, **settings)


class Web:
    """A web that never is one: scripted statuses, and a list of what was asked."""

    def __init__(self, *answers: int | Exception, addresses: tuple[str, ...] = ("93.184.216.34",)) -> None:
        self.answers, self.asked, self.addresses = list(answers), [], addresses  # type: ignore[var-annotated]

    def resolve(self, host: str, port: int) -> tuple[str, ...]:
        return self.addresses

    def request(self, method: str, url: str, address: str, timeout_s: float) -> int | None:
        self.asked.append((method, url, address))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def checker(self, *hosts: str, cache_file: Path | None = None) -> HttpStatus:
        return HttpStatus(hosts, cache_file=cache_file, resolve=self.resolve, request=self.request)


def test_a_host_is_asked_once_per_run_with_head_and_with_get_where_head_is_refused() -> None:
    web = Web(405, 200)
    status = web.checker("a.com")
    assert [status("https://a.com/x"), status("https://A.com/x/"), status("https://a.com/x#part")] == [200, 200, 200]
    assert web.asked == [(method, "https://a.com/x", "93.184.216.34") for method in ("HEAD", "GET")]


@pytest.mark.parametrize(
    "error", [TimeoutError(), OSError("name"), http.client.BadStatusLine("x"), ConnectionResetError()]
)
def test_a_checker_that_times_out_or_fails_gives_no_status_and_keeps_that(error: Exception) -> None:
    web = Web(error)
    status = web.checker("a.com")
    assert (status("https://a.com/x"), status("https://a.com/x")) == (None, None)
    assert len(web.asked) == 1


@pytest.mark.parametrize(
    "url",
    ["https://b.com/", "https://u@a.com/", "https://a.com:444/", "https://a.com:99999/", "https://a.com.evil.io/"],
)
def test_hosts_that_the_recipe_does_not_allow_are_never_contacted(url: str) -> None:
    web = Web()
    assert web.checker("a.com")(url) is None
    assert web.asked == []


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.8", "192.168.1.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1%eth0",
     "fd00::1", "::ffff:10.0.0.1", "2002:0a00:0001::", "100.64.0.1", "224.0.0.1"],
)  # fmt: skip
def test_names_that_lead_inside_are_never_contacted(address: str) -> None:
    web = Web(addresses=("93.184.216.34", address))  # one private address is enough
    assert web.checker("a.com")("https://a.com/x") is None
    assert web.asked == []
    assert public_addresses([address]) == []


def test_statuses_are_shared_by_all_processes_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "run" / "statuses.jsonl"
    first, second = Web(200), Web()
    assert first.checker("a.com", cache_file=file)("https://a.com/x") == 200
    late = second.checker("a.com", cache_file=file)
    assert late("https://a.com/x") == 200  # the same answer never gets two rewards
    assert second.asked == []
    assert file.read_text() == '["https://a.com/x", 200]\n'


def test_nobody_is_asked_about_a_url_unless_the_recipe_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    for name in ("getaddrinfo", "create_connection", "socket"):
        monkeypatch.setattr(f"socket.{name}", reached)
    assert value(f"See {NEW}.", pool=POOL) == 0.0  # approved, but nobody knows that it is alive
    with pytest.raises(AssertionError, match="the network was used"):
        value(f"See {NEW}.", pool=POOL, check="http", hosts=["ads.example.com"])
