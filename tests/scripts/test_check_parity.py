"""scripts/check_parity.py: the reference data of this checkout pass, and whatever is changed in them is noticed."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.loading import load_script
from tests.paths import ROOT
from tests.warm.start import warm_python

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "scripts" / "check_parity.py"
GOLDEN = ROOT / "tests" / "golden"
FAMILIES = (
    *("published_configs", "checkpoint_keys", "fp8_linear", "text", "kvcompress", "dit_forward"),
    *("vae", "tiling", "misc", "sample", "flowcache"),
)
MODEL = ("dit_base_weights.safetensors", "dit_distill_config.json")

Check = Callable[[Path], tuple[int, str]]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    """Status and output of the script for a directory, in this process."""
    module = load_script("check_parity")

    def run(directory: Path) -> tuple[int, str]:
        capsys.readouterr()
        return module.main([str(directory)]), capsys.readouterr().out

    return run


def misses(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("MISS")]


def read_index(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def write_index(directory: Path, name: str, content: dict[str, Any]) -> None:
    (directory / name).write_text(json.dumps(content), encoding="utf-8")


def copy_case(directory: Path, family: str, case: str, *others: str) -> Path:
    """One case of a family with its part of the index; gives its file."""
    name = f"{family}_{case}.safetensors"
    for file in (name, *others):
        shutil.copy(GOLDEN / file, directory)
    write_index(directory, f"{family}_index.json", {case: read_index(f"{family}_index.json")[case]})
    return directory / name


def changed(tensor: Tensor, place: int) -> Tensor:
    """The tensor with one number replaced: in a mask by its opposite, otherwise by the largest, of the other sign."""
    values = tensor.clone().float().flatten()
    if set(values.unique().tolist()) <= {0.0, 1.0}:
        values[place] = 1 - values[place]
    else:
        largest = values.abs().max()
        values[place] = -largest if values[place] >= 0 else largest
    return values.reshape(tensor.shape).to(tensor.dtype)


def unnoticed(check: Check, file: Path, case: str, keys: list[str]) -> list[str]:
    """Those of ``keys`` in ``file`` of which one number can be changed without a miss of ``case``.

    Of inputs it is the first number, of everything else the last: numbers that do take part.
    """
    tensors = {name: tensor.clone() for name, tensor in load_file(GOLDEN / file.name).items()}
    passed = []
    for key in keys:
        place = 0 if key.startswith("in.") and key not in ("in.query", "in.noise") else -1
        file.unlink()
        save_file(tensors | {key: changed(tensors[key], place)}, file)
        status, output = check(file.parent)
        if status != 1 or not any(case in line for line in misses(output)):
            passed.append(key)
    return passed


def test_the_whole_checkout_passes() -> None:
    """As a user runs it, once: all other tests here take parts of the data."""
    result = subprocess.run(
        [warm_python(), str(SCRIPT), str(GOLDEN)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert not misses(result.stdout) and "0 missed, 0 files unrecognised" in lines[-1]
    for family in FAMILIES:
        assert any(line.split()[:2] == ["ok", family] for line in lines), f"nothing of {family}"
        assert f" {family} " in lines[-2]
    for index in GOLDEN.glob("*_index.json"):
        for case in json.loads(index.read_text(encoding="utf-8")):
            assert any(line.split()[2] == case for line in lines[:-2]), f"nothing of {case}"


def test_results_replace_nothing_but_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, results = load_script("check_parity"), tmp_path / "results.json"
    data = tmp_path / "data"
    data.mkdir()
    for suffix in ("json", "safetensors"):
        shutil.copy(GOLDEN / f"fp8_linear.{suffix}", data)
    before = (data / "fp8_linear.json").read_bytes()
    with pytest.raises(SystemExit):
        module.main([str(data), "--json", str(data / "fp8_linear.json")])
    assert "fp8_linear.json would be replaced, but this program has not left it" in capsys.readouterr().err
    assert (data / "fp8_linear.json").read_bytes() == before
    for _ in range(2):
        assert module.main([str(data), "--json", str(results)]) == 0
    assert all(one["passed"] for one in json.loads(results.read_text(encoding="utf-8")))


def test_every_number_of_an_fp8_layer_counts(check: Check, tmp_path: Path) -> None:
    for suffix in ("json", "safetensors"):
        shutil.copy(GOLDEN / f"fp8_linear.{suffix}", tmp_path)
    assert check(tmp_path)[0] == 0
    file = tmp_path / "fp8_linear.safetensors"
    assert unnoticed(check, file, "fp8_linear", sorted(load_file(GOLDEN / file.name))) == []


def test_every_number_of_a_compression_counts(check: Check, tmp_path: Path) -> None:
    file = copy_case(tmp_path, "kvcompress", "token_hard_code")
    assert check(tmp_path)[0] == 0
    assert unnoticed(check, file, "token_hard_code", sorted(load_file(GOLDEN / file.name))) == []
    copy_case(tmp_path, "kvcompress", "token_hard_code")
    for parameter, value in (("mix_lambda", 0.9), ("score_weighting_method", "no_weight"), ("budget_tokens", 71)):
        index = read_index("kvcompress_index.json")["token_hard_code"] | {parameter: value}
        write_index(tmp_path, "kvcompress_index.json", {"token_hard_code": index})
        assert check(tmp_path)[0] == 1, parameter


@pytest.mark.parametrize(
    ("family", "case", "unused"),
    [
        ("flowcache", "reuse_eager_i2v", {"DURATION_TOKEN_5"}),
        ("sample", "distill_v2v_partial", {"DURATION_TOKEN_4", "DURATION_TOKEN_5"}),
    ],
)
def test_every_number_of_a_run_counts(check: Check, tmp_path: Path, family: str, case: str, unused: set[str]) -> None:
    file = copy_case(tmp_path, family, case, *MODEL)
    assert check(tmp_path)[0] == 0
    tokens = {"HQ_TOKEN", *(f"DURATION_TOKEN_{number}" for number in range(1, 6))} - unused
    keys = sorted(load_file(GOLDEN / file.name))
    used = [key for key in keys if not key.startswith("in.token.") or key.removeprefix("in.token.") in tokens]
    assert unnoticed(check, file, case, used) == []


def test_a_changed_threshold_and_a_changed_weight_count(check: Check, tmp_path: Path) -> None:
    copy_case(tmp_path, "flowcache", "reuse_eager_i2v", *MODEL)
    index = read_index("flowcache_index.json")["reuse_eager_i2v"]
    index["flowcache"]["rel_l1_thresh"] = 0.01  # accumulated distances reach 0.04
    write_index(tmp_path, "flowcache_index.json", {"reuse_eager_i2v": index})
    assert any("reuse_eager_i2v" in line and "reuse_map" in line for line in misses(check(tmp_path)[1]))
    file = copy_case(tmp_path, "flowcache", "reuse_eager_i2v", *MODEL).parent / MODEL[0]
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    name = next(name for name in tensors if name.endswith("layers.1.mlp.linear_fc1.weight"))
    file.unlink()
    save_file(tensors | {name: changed(tensors[name], 0)}, file)
    assert check(tmp_path)[0] == 1


def test_a_changed_prompt_counts(check: Check, tmp_path: Path) -> None:
    content = read_index("text_clean.json")
    write_index(tmp_path, "text_clean.json", content)
    assert check(tmp_path)[0] == 0
    content["items"][3]["expected"] += "x"
    write_index(tmp_path, "text_clean.json", content)
    status, output = check(tmp_path)
    assert status == 1 and len(misses(output)) == 1 and "prompt 3" in misses(output)[0]


@pytest.mark.parametrize("family", ["dit_forward", "vae_small", "tiling", "misc"])
def test_a_changed_result_of_a_model_counts(check: Check, tmp_path: Path, family: str) -> None:
    if family == "dit_forward":
        index = read_index("dit_forward_index.json")
        case = "dit_forward_distill_onechunk"
        write_index(tmp_path, "dit_forward_index.json", {case: index[case]})
        for name in (f"{case}.safetensors", index[case]["weights"], index[case]["config"]):
            shutil.copy(GOLDEN / name, tmp_path)
        file, key = tmp_path / f"{case}.safetensors", "out"
    else:
        for suffix in ("json", "safetensors"):
            shutil.copy(GOLDEN / f"{family}.{suffix}", tmp_path)
        file = tmp_path / f"{family}.safetensors"
        case, quantity = {
            "vae_small": ("proj_ln/image", "decoded"),
            "tiling": ("f_image", "dec"),
            "misc": ("uint8", "f32_out"),
        }[family]
        key = f"{case}/{quantity}"
    assert check(tmp_path)[0] == 0
    assert unnoticed(check, file, case.split("/")[0], [key]) == []


def test_every_changed_number_of_a_configuration_counts(check: Check, tmp_path: Path) -> None:
    configs, keys = read_index("published_configs.json"), read_index("checkpoint_keys.json")
    configs["4.5B_base_config.json"]["runtime_config"]["seed"] += 1
    keys["4.5B_distill_quant"]["other_layers"]["mlp.linear_fc2.input_scale"]["shape"] = [2]
    keys["4.5B_distill"]["parameters"] += 1
    keys["7B_base"] = keys.pop("4.5B_base")  # no configuration describes it
    kept = {name: keys[name] for name in ("4.5B_distill", "4.5B_distill_quant", "7B_base")}
    write_index(tmp_path, "published_configs.json", configs)
    write_index(tmp_path, "checkpoint_keys.json", kept)
    status, output = check(tmp_path)
    assert status == 1 and len(misses(output)) == 4
    for case in ("4.5B_base_config.json", "4.5B_distill_quant", "4.5B_distill ", "7B_base"):
        assert any(case in line for line in misses(output)), case


def test_an_unknown_file_is_a_miss(check: Check, tmp_path: Path) -> None:
    write_index(tmp_path, "text_clean.json", read_index("text_clean.json"))
    (tmp_path / "README.md").write_text("prose", encoding="utf-8")
    assert check(tmp_path)[0] == 0
    (tmp_path / "more").mkdir()
    for name in ("teacache_index.json", "more/sample_a.bin"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
        status, output = check(tmp_path)
        assert status == 1 and misses(output) == [f"MISS  {name}: no check recognises this file"]
        (tmp_path / name).unlink()


@pytest.mark.parametrize("family", ["kvcompress", "flowcache"])
def test_an_index_and_its_files_must_agree(check: Check, tmp_path: Path, family: str) -> None:
    case, others = {"kvcompress": ("token_qframe", ()), "flowcache": ("reuse_eager_i2v", MODEL)}[family]
    file = copy_case(tmp_path, family, case, *others)
    index = read_index(f"{family}_index.json")
    write_index(tmp_path, f"{family}_index.json", {case: index[case], "lost": index[case]})
    status, output = check(tmp_path)
    assert status == 1 and len(misses(output)) == 1 and "lost" in misses(output)[0]
    write_index(tmp_path, f"{family}_index.json", {case: index[case]})
    shutil.copy(file, tmp_path / f"{family}_extra.safetensors")
    status, output = check(tmp_path)
    assert status == 1 and len(misses(output)) == 1 and "extra" in misses(output)[0]


def test_a_file_that_cannot_be_read_is_a_miss_of_its_family_alone(check: Check, tmp_path: Path) -> None:
    copy_case(tmp_path, "kvcompress", "token_qframe")
    (tmp_path / "text_clean.json").write_text("{", encoding="utf-8")
    status, output = check(tmp_path)
    assert status == 1 and len(misses(output)) == 1 and "text" in misses(output)[0]
    assert any(line.startswith("ok") and "token_qframe" in line for line in output.splitlines())


def test_nothing_to_check_is_a_miss(check: Check, tmp_path: Path) -> None:
    status, output = check(tmp_path)
    assert status == 1 and f"nothing to check in {tmp_path}" in output
    with pytest.raises(SystemExit) as ended:
        check(tmp_path / "absent")
    assert ended.value.code == 2


def test_numbers_that_are_not_numbers_are_a_miss(check: Check, tmp_path: Path) -> None:
    file = copy_case(tmp_path, "kvcompress", "token_qframe")
    tensors = {name: tensor.clone() for name, tensor in load_file(GOLDEN / file.name).items()}
    file.unlink()
    save_file(tensors | {"mid.importance": torch.full_like(tensors["mid.importance"], torch.nan)}, file)
    status, output = check(tmp_path)
    assert status == 1 and any("mid.importance" in line for line in misses(output))
