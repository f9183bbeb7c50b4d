"""MAGI-1's caption cleaning: what is done to a prompt before the T5 tokenizer sees it.

The text encoder was trained on captions cleaned like this, so the steps are kept exactly, odd ones included
(docs/conditioning.md, "Text cleaning": 34 steps, applied twice). "Word character", "digit" and "white space" are
Python's Unicode classes; "letter" is a-z and A-Z only.
"""

import html
import re
import urllib.parse
import warnings
from collections.abc import Iterable
from typing import NamedTuple


class Rewrite(NamedTuple):
    """Every match of ``pattern`` becomes ``replacement`` (an ``re.sub`` template)."""

    pattern: re.Pattern[str]
    replacement: str


def _remove(pattern: str) -> Rewrite:
    return Rewrite(re.compile(pattern), "")


def _replace(pattern: str, replacement: str) -> Rewrite:
    return Rewrite(re.compile(pattern), replacement)


# Printable ASCII without markup: nothing that BeautifulSoup or ftfy would change, so neither is imported for it.
PLAIN = re.compile(r"[ !-%'-;=?-~]*")

# A host under a well-known top-level domain with its path. One followed by "@" is the local part of a mail address.
_HOST_AND_PATH = r"[a-zA-Z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/\-]*\b/?(?!@)"
_AFTER_SCHEME = r":(?:/{1,3}|[a-zA-Z0-9%])"
_FILE_ENDING = r"(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"

# Steps 4 and 5. The scheme alternative wins where both fit, so of "http://host.com/path" only "http://" goes by step 4.
URL_HTTP = _remove(rf"\b(?:https?{_AFTER_SCHEME}|{_HOST_AND_PATH})")
URL_WWW = _remove(rf"\b(?:www{_AFTER_SCHEME}|{_HOST_AND_PATH})")

# Step 7: "@nickname".
NICKNAME = _remove(r"@\w+")

# Step 8: CJK strokes, Katakana extensions, enclosed letters, CJK compatibility, extension A, hexagrams, unified
# ideographs. Kana and Hangul stay.
CJK = _remove("[\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff]+")

# Step 9: dashes of all scripts; the minus sign U+2212 is not one of them.
DASHES = _replace(
    "[\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d]+",
    "-",
)

# Step 10: grave, acute, guillemets, curly double quotes, diaeresis; then curly single quotes.
DOUBLE_QUOTES = _replace("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"')
SINGLE_QUOTES = _replace("[\u2018\u2019]", "'")

# Steps 11 and 12: entities that survived the HTML parser because they were escaped twice. A ";" after "&amp" stays.
ENTITY_QUOTE = _remove(r"&quot;?")
ENTITY_AMPERSAND = _remove(r"&amp")

# Steps 13 to 17.
IP_ADDRESS = _replace(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " ")
TIME_AT_END = _remove(r"\d:\d\d\s+$")
ESCAPED_NEWLINE = _replace(r"\\n", " ")
HASH_SHORT_NUMBER = _remove(r"#\d{1,3}\b")
HASH_LONG_NUMBER = _remove(r"#\d{5,}\b")
LONG_NUMBER = _remove(r"\b\d{6,}\b")
# Anchored at the start of the run: greedy matching takes the last ending of a run, so no second match is lost, and a
# long run without any ending costs one scan instead of one per character.
FILE_NAME = _remove(rf"(?<!\S)\S*\.{_FILE_ENDING}")

# Steps 18 to 21.
QUOTE_RUN = _replace(r"[\"']{2,}", '"')
DOT_RUN = _replace(r"\.{2,}", " ")
ODD_PUNCTUATION = _replace(
    "[#\u00ae\u2022\u00a9\u2122&@\u00b7\u00ba\u00bd\u00be\u00bf\u00a1\u00a7~()\\[\\]{}|\\\\/*]+", " "
)
LONELY_DOT = _replace(r"\s+\.\s+", " ")

# Step 22: "-" and "_" are taken for separators where they are frequent.
SEPARATOR = re.compile(r"[-_]")
MAX_SEPARATORS = 3

# Step 24: article numbers ("jc6640", "jc6640vc", "6640vc231"), in this order.
LETTERS_DIGITS = _remove(r"\b[a-zA-Z]{1,3}\d{3,15}\b")
LETTERS_DIGITS_LETTERS = _remove(r"\b[a-zA-Z]+\d+[a-zA-Z]+\b")
DIGITS_LETTERS_DIGITS = _remove(r"\b\d+[a-zA-Z]+\d+\b")

# Steps 25 to 29: shop and web page phrases.
SHIPPING = _remove(r"(?:worldwide\s+)?(?:free\s+)?shipping")
DOWNLOAD = _remove(r"(?:free\s)?download(?:\sfree)?")
CLICK = _remove(r"\bclick\b\s(?:for|on)\s\w+")
FILE_ENDING_WORD = _remove(rf"\b{_FILE_ENDING}(?:\simages?)?")
PAGE_NUMBER = _remove(r"\bpage\s+\d+")

# Steps 30 to 32.
MIXED_CODE = _replace(r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " ")
SIZE = _remove("\\b\\d+\\.?\\d*[x\u0445\u00d7]\\d+\\.?\\d*\\b")
SPACED_COLON = _replace(r"\b\s+:\s+", ": ")
MISSING_SPACE = _replace(r"(\D[,./])\b", r"\1 ")
SPACES = _replace(r"\s+", " ")

# Step 33.
QUOTED_WHOLE = _replace(r"^[\"']([\w\W]+)[\"']$", r"\1")
LEADING_PUNCTUATION = _remove(r"^['_,\-:;]")
TRAILING_PUNCTUATION = _remove(r"['_,\-:+]$")
DOT_AND_WORD = _remove(r"^\.\S+$")

_STEPS_4_TO_5 = (URL_HTTP, URL_WWW)
_STEPS_7_TO_21 = (
    *(NICKNAME, CJK, DASHES, DOUBLE_QUOTES, SINGLE_QUOTES, ENTITY_QUOTE, ENTITY_AMPERSAND),
    *(IP_ADDRESS, TIME_AT_END, ESCAPED_NEWLINE, HASH_SHORT_NUMBER, HASH_LONG_NUMBER, LONG_NUMBER, FILE_NAME),
    *(QUOTE_RUN, DOT_RUN, ODD_PUNCTUATION, LONELY_DOT),
)
_STEPS_24_TO_32 = (
    *(LETTERS_DIGITS, LETTERS_DIGITS_LETTERS, DIGITS_LETTERS_DIGITS),
    *(SHIPPING, DOWNLOAD, CLICK, FILE_ENDING_WORD, PAGE_NUMBER),
    *(MIXED_CODE, SIZE, SPACED_COLON, MISSING_SPACE, SPACES),
)
_STEP_33 = (QUOTED_WHOLE, LEADING_PUNCTUATION, TRAILING_PUNCTUATION, DOT_AND_WORD)


def _rewrite(text: str, rewrites: Iterable[Rewrite]) -> str:
    for pattern, replacement in rewrites:
        text = pattern.sub(replacement, text)
    return text


def _html_to_text(text: str) -> str:
    """Step 6: tags, comments, scripts and styles go; entities are decoded. Raises ValueError on hopeless markup."""
    if PLAIN.fullmatch(text):
        return text
    from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning
    from bs4.exceptions import ParserRejectedMarkup

    with warnings.catch_warnings():
        # A prompt that is nothing but a file name or a URL is still a prompt.
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
        try:
            return BeautifulSoup(text, features="html.parser").text
        except ParserRejectedMarkup as error:
            raise ValueError(
                "the prompt cannot be read as text with HTML in it: it has a broken markup declaration; "
                "remove what starts with '<!' from it"
            ) from error


def _without_mojibake(text: str) -> str:
    """The first part of step 23."""
    if PLAIN.fullmatch(text):
        return text
    import ftfy

    return ftfy.fix_text(text)


def clean_caption_once(text: str) -> str:
    """One application of the 34 steps; :func:`clean_caption` is what the text encoder uses."""
    text = urllib.parse.unquote_plus(text).strip().lower().replace("<person>", "person")  # steps 1 to 3
    text = _rewrite(text, _STEPS_4_TO_5)
    text = _html_to_text(text)
    text = _rewrite(text, _STEPS_7_TO_21)
    if len(SEPARATOR.findall(text)) > MAX_SEPARATORS:
        text = SEPARATOR.sub(" ", text)
    text = html.unescape(html.unescape(_without_mojibake(text))).strip()  # step 23
    # No strip between the steps: a blank at an end shields that end from step 33.
    text = _rewrite(text, _STEPS_24_TO_32)
    text = _rewrite(text, _STEP_33)
    return text.strip()


def clean_caption(text: str) -> str:
    """Clean a prompt as MAGI-1 does: the 34 steps, and all of them once more on the result.

    Not idempotent: "&lt;b&gt;" is text after one application and a tag in the next. An empty result is legal
    (Chinese ideographs, for one, are removed). Raises ValueError for text that is not valid Unicode, as undecodable
    bytes of a command line are, and for markup that the HTML parser gives up on.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt is not valid Unicode at character {error.start + 1}: {error.reason}") from error
    return clean_caption_once(clean_caption_once(text))
