"""When prompts take over, as people write it."""

from fractions import Fraction
from pathlib import Path

import pytest

from inference.session.times import (
    ChunkTimes,
    PromptChange,
    TimedPrompt,
    parse_timed,
    read_schedule,
    timed_prompt,
    whole_schedule,
)

TIMES = ChunkTimes(fps=24, frames=24, chunks=10)


@pytest.mark.parametrize(
    ("text", "seconds", "chunk"),
    [
        ("0: x", 0, None),
        ("0s:x", 0, None),
        ("4s: x", 4, None),
        ("  2.5 s : x", Fraction(5, 2), None),
        ("1m30s: x", 90, None),
        ("2min: x", 120, None),
        ("1m 0.5s: x", Fraction(121, 2), None),
        ("chunk 7: x", None, 7),
    ],
)
def test_times_are_read(text: str, seconds: Fraction | None, chunk: int | None) -> None:
    assert parse_timed(text) == TimedPrompt("x", seconds, chunk)


def test_a_prompt_may_have_colons() -> None:
    assert parse_timed("4s: a sign says: stop").prompt == "a sign says: stop"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a dog", 'has no time: write "TIME: prompt"'),
        ("4: x", '"4" is no time'),
        ("-1s: x", '"-1s" is no time'),
        (": x", '"" is no time'),
        ("4s:", "there is no prompt at 4s"),
        ("nans: x", "is no time"),
        ("chunk 1.5: x", "is no time"),
    ],
)
def test_what_is_no_time_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_timed(text)


def test_a_prompt_takes_the_chunk_that_begins_nearest() -> None:
    at = {0: 0, Fraction(2, 5): 0, 4: 4, Fraction(17, 5): 3, Fraction(18, 5): 4}
    assert {time: TIMES.change(TimedPrompt("x", Fraction(time))).chunk for time in at} == at
    # 40 given frames: the first chunk that is made has 16 of them, and 8 of its own.
    cut = ChunkTimes(fps=24, frames=24, cut=16, chunks=10)
    assert [cut.begin(chunk) * 24 for chunk in range(3)] == [0, 8, 32]
    assert [cut.change(TimedPrompt("x", Fraction(frame, 24))).chunk for frame in (0, 8, 19, 21, 32)] == [0, 1, 1, 2, 2]


def test_a_prompt_after_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at 10s comes too late: the video has 10 chunks, and the last .* at 9s"):
        TIMES.change(TimedPrompt("x", Fraction(10)))
    with pytest.raises(ValueError, match="at chunk 10 comes too late"):
        TIMES.change(TimedPrompt("x", chunk=10))
    assert ChunkTimes(24, 24).change(TimedPrompt("x", Fraction(10**6))).chunk == 10**6


def test_a_file_of_lines_and_one_of_yaml_say_the_same(tmp_path: Path) -> None:
    lines, entries = tmp_path / "prompts.txt", tmp_path / "prompts.yaml"
    lines.write_text("# a comment\n0s: a cat\n\n4s: a dog: brown\nchunk 6: the sun\n", encoding="utf-8")
    entries.write_text(
        '- {at: 0s, prompt: a cat}\n- at: 4s\n  prompt: "a dog: brown"\n- at: chunk 6\n  prompt: the sun\n',
        encoding="utf-8",
    )
    expected = ("a cat", [PromptChange(4, "a dog: brown"), PromptChange(6, "the sun")])
    for path in (lines, entries):
        assert whole_schedule(None, read_schedule(path), TIMES) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "a.txt has no prompt"),
        ("a.txt", "0s: a\nb\n", "a.txt, line 2: .* has no time"),
        ("a.yaml", "a: b", "a.yaml is no list of entries"),
        ("a.yaml", "- at: 0s", 'a.yaml, entry 1: "at" and "prompt" are needed'),
        ("a.yaml", "- {at: 0s, prompt: 4}", "a.yaml, entry 1: there is no prompt at 0s"),
        ("a.yaml", "- {at: 90, prompt: a}", 'a.yaml, entry 1: "90" is no time'),
        ("a.yaml", "- [", "a.yaml: "),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_schedule(tmp_path / name)


def test_the_first_prompt() -> None:
    later = [timed_prompt("4s", "a dog")]
    assert whole_schedule("a cat", later, TIMES) == ("a cat", [PromptChange(4, "a dog")])
    # What a file says of the beginning is meant, also where a script has a prompt by default.
    assert whole_schedule("a cat", [timed_prompt("0s", "the sun")], TIMES) == ("the sun", [])
    with pytest.raises(ValueError, match="no prompt rules from the beginning: give --prompt, or one at 0s"):
        whole_schedule(None, later, TIMES)
    twice = [*later, timed_prompt("chunk 4", "the sun")]
    with pytest.raises(ValueError, match='two prompts for chunk 4, which begins at 4s: at 4s "a dog" and at chunk 4'):
        whole_schedule("a cat", twice, TIMES)
