"""The caption cleaning against the reference prompts and against each rule's own edge cases."""

import json
import random

import ftfy
import pytest
from bs4 import BeautifulSoup
from bs4.exceptions import ParserRejectedMarkup

from inference.text.cleaning import PLAIN, clean_caption, clean_caption_once
from tests.paths import GOLDEN

REFERENCE = json.loads((GOLDEN / "text_clean.json").read_text(encoding="utf-8"))["items"]


@pytest.mark.parametrize("item", REFERENCE, ids=range(len(REFERENCE)))
def test_reference_prompt(item):
    assert clean_caption_once(item["prompt"]) == item["once"]
    assert clean_caption(item["prompt"]) == item["expected"]


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("at https:a cat", "at cat"),  # step 4: scheme and one letter
        ("www:xy here", "y here"),  # step 5
        ("a <script>var x</script> cat <!-- no --> <style>b{}</style>", "a cat"),  # step 6
        ("\u304b\u306a \ud55c\uae00 \u3005 \u6f22\u5b57", "\u304b\u306a \ud55c\uae00 \u3005"),  # step 8
        ("a \u2212 b", "a \u2212 b"),  # step 9 spares the minus sign
        ("it\u2019s", "it's"),  # step 10
        ("from 1.2.3.4 on", "from on"),  # step 13
        ("a\\nb", "a b"),  # step 15
        ("id 1234567 and 12345", "id and 12345"),  # step 16
        ("see .png now", "see now"),  # step 17 without a name before the dot
        ("a.png.b x", ".b x"),  # step 17 up to the last ending; the rest of the run stays
        ("he said ''\"yes\"'' ok", 'he said "yes" ok'),  # step 18
        ("a-b_c-d", "a-b_c-d"),  # step 22: three separators stay
        ("a-b_c-d_e", "a b c d e"),  # step 22: four go
        ("the abcd1234 code", "the abcd1234 code"),  # step 24: four letters are too many
        ("the abc12 code", "the abc12 code"),  # step 24: two digits are too few
        ("worldwide free shipping today", "today"),  # step 25
        ("free download free now", "now"),  # step 26
        ("please click for more now", "please now"),  # step 27
        ("two jpg images here", "two here"),  # step 28
        ("turn to page  12 now", "turn to now"),  # step 29
        ("one :two : three", "one :two: three"),  # step 32
        ("one,two./three", "one, two. three"),  # step 32, then step 20 of the second application
        (":cat+", "cat"),  # step 33: a leading ":"
        (";cat;", "cat;"),  # step 33: ";" is dropped in front only
        ("cat+'", "cat"),  # step 33 twice, once per application ("+" became a space)
        (".hidden", ""),  # step 33
        ("''", '"'),  # steps 18 and 33: nothing between the quotes, nothing dropped
    ],
)
def test_single_rules(prompt, cleaned):
    assert clean_caption(prompt) == cleaned


def test_second_application_changes_more():
    assert clean_caption_once("a &lt;b&gt;bold") == "a <b>bold"
    assert clean_caption("a &lt;b&gt;bold") == "a bold"


def test_a_trailing_blank_shields_from_step_33():
    # The size goes in step 31 and leaves a blank behind, so "-" is no longer the last character.
    assert clean_caption_once("cat- 3x4") == "cat-"
    assert clean_caption("cat- 3x4") == "cat"


def test_hopeless_markup_is_a_clear_error(monkeypatch):
    # Which text it is that a parser gives up on depends on the version of Python: of some, "<![<" is.
    def rejects(*arguments, **named):
        raise ParserRejectedMarkup("expected name token")

    monkeypatch.setattr("bs4.BeautifulSoup", rejects)
    with pytest.raises(ValueError, match="markup"):
        clean_caption("a cat <![<")


def test_text_that_is_not_unicode():
    with pytest.raises(ValueError, match="not valid Unicode at character 5"):
        clean_caption("cat \udcff")


@pytest.mark.parametrize("unit", ["a.", "a-", "1a", "<b>", ".pn", "a/", "worldwide ", "word "])
def test_ten_thousand_characters_stay_ten_thousand(unit):
    # No rule may blow up on a long prompt: the patterns are linear or nearly so on these.
    prompt = (unit * 10_000)[:10_000]
    assert len(clean_caption(prompt)) <= 2 * len(prompt)


def test_what_the_libraries_are_not_asked_about_they_would_not_change() -> None:
    letters = [character for character in map(chr, range(0x250)) if PLAIN.fullmatch(character)]
    assert len(letters) == 92  # of the 95 printable ones of ASCII all but those of markup: & < >
    draw = random.Random(0)
    for length in (0, 1, 2, 3, 10, 100) * 30:
        text = "".join(draw.choices(letters, k=length))
        assert BeautifulSoup(text, features="html.parser").text == ftfy.fix_text(text) == text
