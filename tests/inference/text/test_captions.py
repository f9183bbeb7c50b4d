"""Caption assembly against the reference runs, and against the rules written out naively."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from inference.text.captions import NULL_POSITIONS, ChunkCaptions, PromptFlags, SpecialTokens, assemble_captions
from tests.paths import GOLDEN

INDEX = GOLDEN / "sample_index.json"
CASES = json.loads(INDEX.read_text(encoding="utf-8")) if INDEX.exists() else {}
WIDTH = 6
ALL_OFF = PromptFlags(pad_hq=False, pad_duration=False)


def test_reference_runs_are_there():
    assert CASES, f"{INDEX} is missing or empty"


@pytest.mark.parametrize("name", CASES)
def test_reference_run(name):
    case = CASES[name]
    tensors = load_file(GOLDEN / f"sample_{name}.safetensors")
    with safe_open(GOLDEN / case["weights"], "pt") as weights:
        null_embedding = weights.get_tensor("y_embedder.null_caption_embedding")
    length, width = null_embedding.shape
    features, mask = torch.zeros(1, 1, length, width), torch.zeros(1, length)
    features[:, :, :64], mask[:, :64] = tensors["in.caption_first64"], tensors["in.mask_first64"]
    prefix = "in.token."
    tokens = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    offset = (case["prefix_latent_frames"] or 0) // case["runtime_config"]["chunk_width"]
    captions = assemble_captions(
        *(features, mask, null_embedding, SpecialTokens.from_dict(tokens)),
        *(PromptFlags.from_switches(case["pad_flags"]), case["chunk_num"], offset),
    )
    cond, cond_mask = captions.padded_cond()
    assert torch.equal(cond[:, :72], tensors["mid.y_cond_first72"])
    assert torch.equal(cond_mask[:, :72].float(), tensors["mid.y_mask_cond_first72"])
    null_mask = captions.null_mask.float().expand(case["chunk_num"], -1)
    assert torch.equal(null_mask[:, :72], tensors["mid.y_mask_null_first72"])
    check_packing(captions)


def check_packing(captions: ChunkCaptions) -> None:
    """The packed features are the padded ones at the mask."""
    cond, mask = captions.padded_cond()
    for chunk in range(captions.chunk_num):
        assert torch.equal(captions.packed_cond(chunk), cond[chunk][mask[chunk]])
    assert torch.equal(captions.packed_null(), captions.null[captions.null_mask])


def numbered_tokens() -> SpecialTokens:
    """Every token filled with a number of its own; duration n with 10 n."""
    names = ["CAPTION", "LOGO", "TRANS", "HQ", "STATIC_FIRST_FRAMES", "DYNAMIC_FIRST_FRAMES", "BORDERNESS"]
    names += ["THREE_D_MODEL", "TWO_D_ANIME"]
    numbers = {f"{name}_TOKEN": number for number, name in enumerate(names, start=1)}
    numbers |= {f"DURATION_TOKEN_{count}": 10 * count for count in range(1, 9)}
    return SpecialTokens.from_dict({name: torch.full((1, WIDTH), float(value)) for name, value in numbers.items()})


def captions_of(text_length: int, flags: PromptFlags, chunk_num: int, offset: int = 0, length: int = 60):
    """Text positions are numbered from -1 down, null positions from 1000 up."""
    features = -torch.arange(1.0, length + 1).reshape(1, 1, length, 1).expand(1, 1, length, WIDTH)
    mask = (torch.arange(length) < text_length).long().unsqueeze(0)
    null_embedding = torch.arange(1000.0, 1000 + length).unsqueeze(1).expand(length, WIDTH)
    return assemble_captions(features, mask, null_embedding, numbered_tokens(), flags, chunk_num, offset)


def numbers(features: torch.Tensor) -> list[int]:
    return features[:, 0].int().tolist()


def test_order_of_all_tokens():
    flags = PromptFlags(**dict.fromkeys(vars(PromptFlags()), True))
    captions = captions_of(3, flags, chunk_num=2)
    # duration, 2D anime, 3D model, HQ, borderness, dynamic, static, text
    assert numbers(captions.packed_cond(0)) == [20, 9, 8, 4, 7, 6, 5, -1, -2, -3]
    # borderness, transition, logo, caption, null
    assert numbers(captions.packed_null())[:6] == [7, 3, 2, 1, 1000, 1001]
    assert captions.packed_null().shape[0] == NULL_POSITIONS
    check_packing(captions)


def test_duration_counts_generated_chunks_only():
    captions = captions_of(3, PromptFlags(), chunk_num=13, offset=3)
    assert [numbers(captions.packed_cond(chunk))[:1] for chunk in range(3)] == [[]] * 3
    assert [numbers(captions.packed_cond(chunk))[0] for chunk in range(3, 13)] == [
        80,
        80,
        80,
        70,
        60,
        50,
        40,
        30,
        20,
        10,
    ]
    assert numbers(captions.packed_cond(12)) == [10, 4, -1, -2, -3]
    check_packing(captions)


def test_given_chunks_have_the_plain_null_caption_and_a_zero_mask():
    captions = captions_of(3, PromptFlags(neg_prompt=True), chunk_num=4, offset=2)
    cond, mask = captions.padded_cond()
    assert numbers(cond[1])[:2] == [1000, 1001] and not mask[:2].any() and mask[2:].sum(1).tolist() == [5, 5]


def test_a_full_prompt_loses_its_end():
    captions = captions_of(60, PromptFlags(), chunk_num=1)
    assert numbers(captions.packed_cond(0)) == [10, 4, *range(-1, -59, -1)]
    check_packing(captions)


def test_more_special_tokens_than_positions():
    captions = captions_of(1, PromptFlags(pad_static=True), chunk_num=1, length=2)
    assert numbers(captions.packed_cond(0)) == [10, 4]
    check_packing(captions)


def test_empty_mask_uses_the_null_branch_everywhere():
    captions = captions_of(0, PromptFlags(neg_prompt=True), chunk_num=3, offset=1)
    for chunk in range(3):
        assert torch.equal(captions.packed_cond(chunk), captions.packed_null())
    check_packing(captions)


def test_a_list_of_chunks():
    captions = captions_of(3, PromptFlags(), chunk_num=4, offset=1)
    features, lengths = captions.packed([0, 2, 3])
    assert lengths == [0, 5, 5]
    assert torch.equal(features, torch.cat([captions.packed_cond(2), captions.packed_cond(3)]))
    null, null_lengths = captions.packed([1, 2], null=True)
    assert null_lengths == [50, 50] and torch.equal(null[50:], captions.packed_null())
    assert captions.packed([])[0].shape == (0, WIDTH)


def test_no_tokens_needed_when_all_flags_are_off():
    captions = captions_of(3, ALL_OFF, chunk_num=2)
    bare = assemble_captions(
        *(captions.text[None, None], captions.text_mask[None].long(), captions.null_embedding, None, ALL_OFF, 2, 0)
    )
    assert torch.equal(bare.packed_cond(0), captions.packed_cond(0)) and numbers(bare.packed_cond(1)) == [-1, -2, -3]
    with pytest.raises(ValueError, match=r"\['pad_hq'\] need the special tokens"):
        flags = replace(ALL_OFF, pad_hq=True)
        assemble_captions(bare.text[None, None], bare.text_mask[None], bare.null_embedding, None, flags, 2, 0)


def test_wrong_sizes_are_refused():
    captions = captions_of(3, ALL_OFF, chunk_num=2)
    text, mask, null = captions.text[None, None], captions.text_mask[None], captions.null_embedding
    with pytest.raises(ValueError, match=r"\(1, 1, 60, 5\).*60 positions, 6 wide"):
        assemble_captions(text[..., :5], mask, null, None, ALL_OFF, 2, 0)
    with pytest.raises(ValueError, match="2 given chunks of 2"):
        assemble_captions(text, mask, null, None, ALL_OFF, 2, 2)
    with pytest.raises(ValueError, match="special tokens are 6 wide, the caption features 5"):
        assemble_captions(text[..., :5], mask, null[:, :5], numbered_tokens(), PromptFlags(), 2, 0)
    with pytest.raises(IndexError, match="chunk 2 does not exist in a video of 2 chunks"):
        captions.packed_cond(2)


def test_flags_from_published_switches():
    assert PromptFlags.from_switches({"PAD_HQ": "1", "PAD_DURATION": "YES"}) == PromptFlags()
    assert PromptFlags.from_switches({"PAD_HQ": "0", "NEG_PROMPT": "true"}) == replace(ALL_OFF, neg_prompt=True)
    with pytest.raises(ValueError, match="PAD_COLOUR"):
        PromptFlags.from_switches({"PAD_COLOUR": "1"})


def special_token_arrays(rows: int = 100) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = {"caption_token": (1, WIDTH), "logo_token": (1, WIDTH), "other_tokens": (rows, WIDTH)}
    return {name: generator.standard_normal(shape) for name, shape in shapes.items()}


def test_special_tokens_file(tmp_path):
    arrays = special_token_arrays()
    np.savez(tmp_path / "special_tokens.npz", **arrays)
    tokens = SpecialTokens.load(tmp_path / "special_tokens.npz", WIDTH)
    rows = {"transition": 0, "hq": 1, "static_first_frames": 2, "dynamic_first_frames": 3, "borderness": 4}
    rows |= {"three_d_model": 15, "two_d_anime": 16}
    for name, row in rows.items():
        rounded = torch.from_numpy(arrays["other_tokens"][row].astype(np.float16)).float()
        assert torch.equal(getattr(tokens, name), rounded)
    assert tokens.duration.dtype == torch.float32
    assert torch.equal(tokens.duration, torch.from_numpy(arrays["other_tokens"][7:15]).half().float())
    assert torch.equal(tokens.logo, torch.from_numpy(arrays["logo_token"][0]).half().float())


def test_bad_special_tokens_files(tmp_path):
    path = tmp_path / "special_tokens.npz"
    with pytest.raises(FileNotFoundError, match=r"copy special_tokens.npz from MAGI-1's code"):
        SpecialTokens.load(path, WIDTH)
    np.savez(path, **special_token_arrays())
    with pytest.raises(ValueError, match="are 6 wide, but the model's caption_channels is 8"):
        SpecialTokens.load(path, 8)
    np.savez(path, **special_token_arrays(rows=16))
    with pytest.raises(ValueError, match="at least \\(17, width\\)"):
        SpecialTokens.load(path, WIDTH)
    np.savez(path, **{**special_token_arrays(), "logo_token": np.array([{"an": "object"}])})
    with pytest.raises(ValueError, match=r"is not MAGI-1's special_tokens.npz"):
        SpecialTokens.load(path, WIDTH)
    for content in (b"text", b"", pickle.dumps({"caption_token": 1})):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is not MAGI-1's special_tokens.npz"):
            SpecialTokens.load(path, WIDTH)
    np.savez(path, caption_token=np.zeros((1, WIDTH)))
    with pytest.raises(ValueError, match="logo_token"):
        SpecialTokens.load(path, WIDTH)


def test_token_dictionary_names_what_is_missing():
    with pytest.raises(ValueError, match="missing: LOGO_TOKEN, TRANS_TOKEN"):
        SpecialTokens.from_dict({"CAPTION_TOKEN": torch.zeros(1, WIDTH)})
