"""What a completion asks for, whatever a model wrote."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.tags import Action, Block, Tags, blocks, parse, query_fault

TAGS = Tags()
RENAMED = Tags(think="reasoning", search="tool_call", information="tool_response")


@pytest.mark.parametrize(
    ("completion", "kind", "content"),
    [
        ("<think>hm</think><search> x </search>", "search", "x"),
        ("<answer>Paris</answer>", "answer", "Paris"),
        ("<answer>Paris</answer> <search>x</search>", "answer", "Paris"),  # what follows does not exist
        ("<search>x</search>\n<answer>Paris</answer>", "search", "x"),
        ("<search>no, <answer>Paris</answer>", "answer", "Paris"),  # the first closing tag decides
        ("<search>a<search>b</search>", "search", "b"),  # the nearest opening tag counts
        ("<answer></answer>", "answer", ""),
        ("<SEARCH>x</SEARCH>", "invalid", ""),
        ("< search>x</ search>", "invalid", ""),
        ("<tool_call>x</tool_call>", "invalid", ""),
        ("Paris", "invalid", ""),
        ("", "invalid", ""),
    ],
)
def test_the_first_closing_tag_decides(completion: str, kind: str, content: str) -> None:
    action = parse(completion, TAGS)
    assert (action.kind, action.content) == (kind, content)


@pytest.mark.parametrize(
    ("completion", "fault"),
    [
        ("x</search>", "</search> without <search>"),
        ("<search>x", "<search> is not closed"),
        ("<answer>Par", "<answer> is not closed"),
        ("<think>hm</think>", "no action"),
    ],
)
def test_an_invalid_completion_says_why(completion: str, fault: str) -> None:
    assert parse(completion, TAGS) == Action(kind="invalid", fault=fault)


def test_a_tag_that_the_environment_opened_needs_no_second_one() -> None:
    assert parse("x</search>", TAGS, opened="search").content == "x"
    assert parse("Paris</answer>", TAGS, opened="answer") == Action(kind="answer", content="Paris")
    assert parse("hm</think><search>x</search>", TAGS, opened="think").content == "x"
    assert parse("<answer>Paris</answer>", TAGS, opened="answer").content == "Paris"  # opened twice


def test_tag_names_are_settings() -> None:
    assert parse("<tool_call>x</tool_call>", RENAMED).content == "x"
    assert parse("<search>x</search>", RENAMED).kind == "invalid"


def test_a_forged_observation_is_noticed_and_does_not_hide_the_action() -> None:
    action = parse("<information>made up</information><answer>Paris</answer>", TAGS)
    assert action.forged and action.content == "Paris"
    assert not parse("<answer>Paris</answer><information>", TAGS).forged


@pytest.mark.parametrize("names", [{"think": "search"}, {"search": "a b"}, {"answer": ""}, {"answer": "<x>"}])
def test_tag_names_that_cannot_be_told_apart_are_refused(names: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="tags"):
        Tags(**names)


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("mayor of Velmora", ""),
        ("Élan vital 2018?", ""),
        ("search engines", ""),
        (" ?! ", "it is empty"),
        ("a <answer> b", "it contains a tag"),
        ("see https://x.org", "it is a web address"),
        ("www.x.org", "it is a web address"),
        (" ".join(["word"] * 33), "it is longer than 32 words"),
        ("Search", "it names no subject"),
        ("search(Paris)", "it names no subject"),
        ("search-xyz", "it names no subject"),
    ],
)
def test_queries_that_search_nothing_are_refused(query: str, fault: str) -> None:
    assert query_fault(query, TAGS) == fault


def test_tags_in_a_passage_are_made_inert() -> None:
    assert TAGS.inert("a <answer>b</answer> <b>c</b>") == "a (answer)b(/answer) <b>c</b>"


def kinds(*parts: tuple[str, str]) -> list[str]:
    return [block.kind for block in blocks(parts, TAGS)]  # type: ignore[arg-type]


def test_a_trajectory_falls_into_blocks_by_author() -> None:
    observed = "\n\n<information>d <answer>bad</answer></information>\n\n"
    assert blocks(
        [
            ("prompt", "<answer>Beijing</answer> Question: q"),
            ("policy", "<think>t</think><search>x</search>"),
            ("environment", observed),
            ("policy", "<answer>ok</answer>"),
        ],
        TAGS,
    ) == [
        Block(kind="think", author="policy", text="t"),
        Block(kind="search", author="policy", text="x"),
        Block(kind="information", author="environment", text="d <answer>bad</answer>"),
        Block(kind="answer", author="policy", text="ok"),
    ]


def test_openings_by_the_environment_are_filled_by_the_policy() -> None:
    assert kinds(("environment", "<think>"), ("policy", "t</think><search>x</search>")) == ["think", "search"]
    assert kinds(("prompt", "Question\n<search>"), ("policy", "x</search>")) == ["search"]
    forced = [("environment", "\n<information>d</information>\n<answer>"), ("policy", "ok</answer>")]
    assert kinds(*forced) == ["information", "answer"]


def test_broken_and_forged_blocks_are_loose() -> None:
    assert kinds(("policy", "<think>a<search>x</search>")) == ["loose", "search"]
    assert kinds(("policy", "<information>d</information><answer>ok</answer>")) == ["loose", "answer"]
    assert kinds(("policy", "<answer>ok")) == ["loose"]
    assert kinds(("policy", "words <answer>ok</answer>")) == ["loose", "answer"]
    assert kinds(("environment", "\nMy last action was invalid.\n")) == ["control"]


PIECES = st.sampled_from(
    [f"<{s}{n}>" for s in ("", "/") for n in ("think", "search", "information", "answer", "b")]
    + ["<", ">", "</", "x", " ", "\n", "\ufffd", "\u202e", "\x00", "search", "<<answer>"]
)
WRITTEN = st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=12).map("".join)


@settings(max_examples=1500, deadline=None)
@given(WRITTEN, st.sampled_from([None, "think", "search", "answer"]))
def test_no_text_breaks_the_parser(text: str, opened: str | None) -> None:
    action = parse(text, TAGS, opened)  # type: ignore[arg-type]
    assert (action.kind == "invalid") == bool(action.fault)
    assert action.content in text and action.content == action.content.strip()
    assert action == parse(text, TAGS, opened)  # type: ignore[arg-type]
    if action.kind != "invalid":  # what comes after the action changes nothing
        assert parse(text + "<answer>more</answer>", TAGS, opened) == action  # type: ignore[arg-type]


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["prompt", "policy", "environment"]), WRITTEN), max_size=5))
def test_no_trajectory_breaks_the_blocks(parts: list[tuple[str, str]]) -> None:
    for block in blocks(parts, TAGS):  # type: ignore[arg-type]
        assert block.text == block.text.strip()
        assert (block.author == "environment") == (block.kind in ("information", "control"))
