"""Stop strings in text that comes in any pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llama2q.generate.stopping import StopMatcher


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    text = ""
    for piece in pieces:
        new, stop = matcher.feed(piece)
        text += new
        if stop is not None:
            return text, stop
    return text + matcher.flush(), None


def by_character(stops: list[str], text: str) -> tuple[str, str | None]:
    """The definition: the first character at which any stop string ends; then the longest."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def test_no_stops_pass_everything_at_once() -> None:
    assert StopMatcher(()).feed("abc") == ("abc", None)


def test_holds_back_only_what_could_become_a_stop() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.feed("the E") == ("the ", None)
    assert matcher.feed("N") == ("", None)
    assert matcher.feed("T") == ("ENT", None)
    assert matcher.feed("END and more") == ("", "END")
    assert matcher.flush() == ""


def test_flush_gives_what_was_held() -> None:
    assert run(["\n\n"], ["a\n"]) == ("a\n", None)


def test_the_stop_that_ends_first() -> None:
    assert run(["abcd", "bc"], ["abcd"]) == ("a", "bc")
    assert run(["c", "bc"], ["abc"]) == ("a", "bc")


@given(data=st.data())
def test_pieces_make_no_difference(data: st.DataObject) -> None:
    stops = data.draw(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
    pieces = data.draw(st.lists(st.text("abc", max_size=4), max_size=12))
    assert run(stops, pieces) == by_character(stops, "".join(pieces))


@given(data=st.data())
def test_no_part_of_a_stop_is_let_through(data: st.DataObject) -> None:
    stops = data.draw(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
    text = data.draw(st.text("abc", max_size=30))
    whole, _ = by_character(stops, text)
    matcher = StopMatcher(stops)
    passed = ""
    for character in text:
        new, stop = matcher.feed(character)
        passed += new
        assert whole.startswith(passed)
        if stop is not None:
            break
