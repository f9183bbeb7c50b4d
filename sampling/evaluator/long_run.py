"""Run by the evaluator's own Python: VBench-Long on one dimension, as its evaluate_long.sh asks for it.

Usage: long_run.py VIDEOS DIMENSION SAMPLES_PER_PROMPT STATIC_FILTER(0|1); the result goes to the working directory.
Knows nothing of ours: that environment has none of it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import vbench
import vbench2_beta_long


class AllClips(vbench2_beta_long.VBenchLong):
    """Judges the clips of every video.

    Left to itself it takes the suffix of whatever the folder of the videos lists first for that of all of them; where
    that is its own folder of clips, it judges nothing.
    """

    def build_full_info_json(
        self, videos_path: str, name: str, dimension_list: list[str], *others: Any, **settings: Any
    ) -> str:
        """Clips by prompt, as the file that the dimensions read; returns its path."""
        prompts = json.loads(Path(self.full_info_dir).read_text(encoding="utf-8"))
        chosen = [prompt for prompt in prompts if set(dimension_list) & set(prompt["dimension"])]
        for prompt in chosen:
            folders = (
                Path(videos_path, "split_clip", f"{prompt['prompt_en']}-{index}")
                for index in range(settings["num_of_samples_per_prompt"])
            )
            prompt["video_list"] = [str(clip) for folder in folders for clip in sorted(folder.glob("*.mp4"))]
        path = Path(self.output_path, f"{name}_full_info.json")
        path.write_text(json.dumps(chosen), encoding="utf-8")
        return str(path)


def main(videos: str, dimension: str, samples: str, static_filter: str) -> None:
    tables = Path(vbench2_beta_long.__file__).parent / "configs"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prompts = Path(vbench.__file__).with_name("VBench_full_info.json")
    AllClips(device, str(prompts), ".").evaluate(
        videos_path=videos,
        name="results_long",
        dimension_list=[dimension],
        mode="long_vbench_standard",
        # What evaluate_long.sh chooses by --dev_flag, and the defaults beside it.
        dev_flag=True,
        sb_clip2clip_feat_extractor="dinov2",
        bg_clip2clip_feat_extractor="dreamsim",
        w_inclip=1.0,
        w_clip2clip=0.0,
        use_semantic_splitting=False,
        imaging_quality_preprocessing_mode="longer",
        clip_length_config="clip_length_mix.yaml",
        slow_fast_eval_config=str(tables / "slow_fast_params.yaml"),
        sb_mapping_file_path=str(tables / "subject_mapping_table.yaml"),
        bg_mapping_file_path=str(tables / "background_mapping_table.yaml"),
        num_of_samples_per_prompt=int(samples),
        static_filter_flag=static_filter == "1",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
