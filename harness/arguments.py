"""The command line as our entry points read it: dashes or underscores in flags, commas or blanks in lists, and a hint
for a flag that is misspelt or another program's.
"""

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence

# What other programs of the field call it, with what it is here: a flag, or a sentence.
FOREIGN: Mapping[str, str] = {
    **dict.fromkeys(("--height", "--h"), "--video_size_h"),
    **dict.fromkeys(("--width", "--w"), "--video_size_w"),
    **dict.fromkeys(("--resolution", "--size", "--image_size"), "give --video_size_h and --video_size_w"),
    **dict.fromkeys(("--num_inference_steps", "--steps", "--sample_steps", "--infer_steps"), "--num_steps"),
    **dict.fromkeys(("--frames", "--frame_num", "--video_length", "--length"), "--num_frames"),
    **dict.fromkeys(("--duration", "--seconds"), "give --num_frames, 24 a second in the published configurations"),
    **dict.fromkeys(("--image", "--img", "--first_frame", "--input_image"), "--image_path"),
    **dict.fromkeys(("--video", "--video_path", "--input_video"), "--prefix_video_path"),
    **dict.fromkeys(("--output", "--out", "--save_path", "--save_file", "--output_dir", "--outdir"), "--output_path"),
    **dict.fromkeys(("--model", "--model_path", "--ckpt_dir", "--checkpoint", "--config"), "--config_file"),
    **dict.fromkeys(("--num_gpus", "--nproc", "--world_size"), "--gpus"),
    **dict.fromkeys(("--base_seed", "--random_seed"), "--seed"),
    **dict.fromkeys(("--task",), "--mode"),
    **dict.fromkeys(("--threshold", "--thresh", "--teacache_thresh", "--rel_l1_threshold"), "--rel_l1_thresh"),
    **dict.fromkeys(
        ("--offload", "--cpu_offload", "--offload_model"),
        "memory is decided by what is free; --stream_weights, --kv_offload and --offload_vae say otherwise",
    ),
    **dict.fromkeys(("--fps", "--frame_rate"), "the model makes the rate it was trained at, fps in runtime_config"),
    **dict.fromkeys(
        ("--negative_prompt", "--n_prompt"),
        "MAGI-1 has none: it is guided away from a null caption that it has learned",
    ),
    **dict.fromkeys(
        ("--guidance_scale", "--cfg_scale", "--cfg", "--guidance"),
        "guidance is text_scales and prev_chunk_scales in runtime_config, by noise level; distilled models have none",
    ),
    **dict.fromkeys(("--dtype", "--precision", "--bf16", "--fp16"), "params_dtype in model_config says it"),
    **dict.fromkeys(("--scheduler", "--sampler", "--shift"), "the schedule belongs to the model (docs/sampler.md)"),
    **dict.fromkeys(("--batch_size", "--num_videos"), "a run makes one video; scripts/sample.py makes many"),
}


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse ``argv`` with every flag spelled either way; an unknown one ends the program with what may be meant."""
    args, unknown = parser.parse_known_args(split_lists(parser, [with_underscores(argument) for argument in argv]))
    if unknown:
        known = set(re.findall(r"--\w+", parser.format_help()))
        parser.error(f"unknown argument {unknown[0]}{hint(unknown[0].partition('=')[0], known)}")
    return args


def hint(name: str, known: set[str]) -> str:
    """What was meant by the unknown flag ``name``: another program's word, or the closest of the ``known`` ones."""
    meant = FOREIGN.get(name)
    if meant is not None and set(re.findall(r"--\w+", meant)) <= known:
        return f"; here it is {meant}" if meant.startswith("--") else f"; {meant}"
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else "; --help lists all flags"


def with_underscores(argument: str) -> str:
    """``--num-frames=8`` as ``--num_frames=8``; values are left alone."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def split_lists(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """``--sizes a,b`` as ``--sizes a b``, where a flag takes several of a few words."""
    several = [action for action in parser._actions if action.nargs == "+" and action.choices]
    listing = {name for action in several for name in action.option_strings}
    found: list[str] = []
    inside = False
    for argument in argv:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            inside = name in listing
            found += [name, *value.split(",")] if inside and equals else [argument]
        else:
            found += [part for part in argument.split(",") if part] if inside else [argument]
    return found
