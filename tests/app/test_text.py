"""Text in pieces: however tokens are cut into pieces, their texts joined are the text of the whole."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.app.text import TextStream


class Letters:
    """A decoder with what makes streaming hard: characters of several tokens, and tokens of no text."""

    special_ids = frozenset({0})

    def decode(self, ids):
        return bytes(token for token in ids if token).decode("utf-8", "replace")


MARK = st.text(alphabet="ab\n€", min_size=1, max_size=3)
TEXT = st.text(alphabet="ab\n€🙂", max_size=30)


@settings(deadline=None)
@given(
    TEXT,
    st.lists(st.integers(1, 5), max_size=40),
    st.lists(st.text(alphabet="ab\n€", min_size=1, max_size=3), max_size=3),
)
def test_pieces_joined_are_the_whole(text, sizes, stop):
    ids = list(text.encode())
    stream, found, at = TextStream(Letters(), stop), "", 0
    for size in sizes:
        found += stream.add([*ids[at : at + size], 0])
        at += size
        assert "\N{REPLACEMENT CHARACTER}" not in found
    found += stream.add(ids[at:], last=True)
    ends = [text.find(mark) for mark in stop if mark in text]
    assert found == text[: min(ends, default=len(text))]


def test_half_a_character_at_the_end_is_shown_as_such():
    assert TextStream(Letters()).add(list("a€".encode())[:-1], last=True) == "a\N{REPLACEMENT CHARACTER}"


def test_special_tokens_are_left_out_unless_asked_for():
    class Marked(Letters):
        def decode(self, ids):
            return "".join("<end>" if token == 0 else chr(token) for token in ids)

    assert TextStream(Marked()).add([97, 0], last=True) == "a"
    assert TextStream(Marked(), keep_special=True).add([97, 0], last=True) == "a<end>"


def test_the_stop_string_stays_where_it_is_wanted():
    stream = TextStream(Letters(), ["\n\n"], keep_stop=True)
    assert stream.add(list(b"one\n")) == "one"
    assert stream.add(list(b"\ntwo"), last=True) == "\n\n"
    assert stream.add(list(b"more"), last=True) == ""
