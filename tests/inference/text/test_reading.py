"""What is lost of a prompt is named: words that cleaning removes, words that the encoder has no token for."""

import pytest

from inference.text.reading import read_prompt
from inference.text.t5 import load_t5
from tests.paths import ROOT


@pytest.mark.parametrize(
    ("prompt", "removed", "cleaned"),
    [
        ("A Big red ball, moving!", (), "a big red ball, moving!"),
        ("see http://x.com/abc a ball #1234567", ("http", "x", "com", "abc", "1234567"), "see a ball"),
        ("红球", ("红球",), ""),
        ("a &lt;b&gt;bold</b> cat", ("lt", "gt"), "a bold cat"),
        ("red+ball %21", ("21",), "red ball !"),
    ],
)
def test_words_that_cleaning_removes(prompt: str, removed: tuple[str, ...], cleaned: str) -> None:
    reading = read_prompt(prompt, ())
    assert (reading.removed, reading.cleaned) == (removed, cleaned)
    said = list(reading.warnings())
    assert any("removed from the prompt: " + ", ".join(removed) in line for line in said) == bool(removed)
    assert any("has no words" in line for line in said) == (not cleaned)


def test_words_that_the_bundled_encoder_does_not_know() -> None:
    t5 = load_t5(ROOT / "example/nano/weights/t5", max_length=64)
    assert t5.unknown_words("a cat chases a butterfly") == ("cat", "chases", "butterfly")
    assert t5.unknown_words("a big red circle moves up") == ()
    assert t5.unknown_words("красный шар") == ("красный", "шар")


def test_a_line_for_some_words_and_another_for_all() -> None:
    [line] = read_prompt("a cat runs", ("cat",)).warnings()
    assert line == "the text encoder does not know 1 of 3 words of the prompt, which change nothing: cat"
    [line] = read_prompt("красный шар", ("красный", "шар")).warnings()
    assert line == "the text encoder knows no word of the prompt: красный, шар; the video will follow no text"
    many = tuple(f"word{number}" for number in range(11))
    [line] = read_prompt(" ".join(many) + " ball", many).warnings()
    assert line.endswith("word6, word7 and 3 more")
