"""What ST's tool is given. It was not run: what is judged is that everything named is there."""

import itertools
import json
import re
import shlex
import subprocess

import onnx
import pytest

from handoff.records import samples
from onnxq.handoff.contract import contract
from onnxq.handoff.st_edge_ai import command_lines, st_commands, st_files
from onnxq.handoff.stage import hand_off
from onnxq.target import load_target

N6 = load_target("stm32n6")
USAGE = {  # options of the usage text of Core 4.0.1, as public notes give it
    "analyze": {"-m", "--target", "--st-neural-art"},
    "generate": {
        "-m", "--target", "--st-neural-art", "--input-data-type", "--output-data-type",
        "--inputs-ch-position", "--outputs-ch-position", "--name",
    },
}  # fmt: skip
USAGE["validate"] = (USAGE["generate"] - {"--name"}) | {"--mode", "-d", "-vi", "-vo"}


@pytest.fixture(scope="module")
def known(nets):
    model = onnx.load(nets["stm32n6"])
    return contract(model, None, None, name="net int8.onnx", sha256="0")


@pytest.fixture(scope="module")
def bundle(nets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("st") / "bundle"
    hand_off(
        model=nets["stm32n6"], target=N6, folder=folder, samples=samples(), allow_unverified=True
    )
    return folder


def options_of(command):
    return {word for word in shlex.split(command) if re.match(r"--?[a-z]", word)}


def value_of(command, option):
    words = shlex.split(command)
    return words[words.index(option) + 1] if option in words else None


def test_every_option_is_one_of_the_usage_text(known):
    commands = st_commands(known, N6)
    assert [shlex.split(command)[1] for command in commands] == list(USAGE)
    for command in commands:
        assert options_of(command) <= USAGE[shlex.split(command)[1]]


def test_types_and_layout_are_those_of_the_contract(known):
    _, generate, validate = st_commands(known, N6)
    for command in (generate, validate):
        assert value_of(command, "-m") == "net int8.onnx"
        assert value_of(command, "--input-data-type") == known.inputs[0].quantization.type
        assert value_of(command, "--output-data-type") == known.outputs[0].quantization.type
        assert value_of(command, "--inputs-ch-position") == "chfirst"
        assert value_of(command, "--outputs-ch-position") is None  # (1, 4) has no channels to move


def test_an_input_without_an_integer_form_stays_as_it_is_and_this_is_said(known):
    plain = known.inputs[0].model_copy(update={"quantization": None})
    changed = known.model_copy(update={"inputs": (plain,)})
    assert value_of(st_commands(changed, N6)[1], "--input-data-type") is None
    assert "keep the file's types" in "\n".join(command_lines(changed, N6))


def test_the_profile_that_the_commands_name_is_in_the_file_they_name(known):
    files = st_files(known, N6)
    for command in st_commands(known, N6):
        profile, _, file = value_of(command, "--st-neural-art").partition("@")
        entry = json.loads(files[file])["Profiles"][profile]
        assert entry["memory_pool"].removeprefix("./") in files


def test_the_memory_pools_are_those_of_the_profile_and_do_not_overlap(known):
    pools = json.loads(st_files(known, N6)["stm32n6.mpool"])["memory"]["mempools"]
    sizes = {pool["name"]: int(pool["size"]["value"]) for pool in pools}
    network = [pool for pool in N6.memory if pool.use != "application"]
    assert sizes == {pool.name: pool.size_bytes for pool in network}
    spans = sorted((int(pool["offset"]["value"], 16), int(pool["size"]["value"])) for pool in pools)
    for (start, size), (after, _) in itertools.pairwise(spans):
        assert start + size <= after
    assert {pool["name"] for pool in pools if pool["prop"]["rights"] == "ACC_READ"} == {"octoFlash"}


def test_the_script_holds_the_commands_and_is_a_shell_script(known, tmp_path):
    text = st_files(known, N6)["commands.sh"]
    (tmp_path / "commands.sh").write_text(text)
    assert subprocess.run(["sh", "-n", tmp_path / "commands.sh"], check=False).returncode == 0
    for command in st_commands(known, N6):
        assert command in text
    assert "ST's tool was not run" in text
    assert N6.tool_version in text


@pytest.mark.parametrize("version", ["2.0", "2.2", "3.0", "4.0"])
def test_the_commands_of_every_version_say_which_one(known, version):
    target = load_target(f"stm32n6@{version}")
    files = st_files(known, target)
    assert f"ST Edge AI Core {version}" in files["commands.sh"]
    assert "stm32n6.mpool" in files
    assert st_commands(known, target) == st_commands(known, N6)


def test_a_target_of_another_tool_gets_no_such_files(known):
    assert st_files(known, load_target("ort-x86")) == {}


def test_every_file_that_the_commands_name_lies_in_the_bundle_by_a_relative_path(bundle):
    text = (bundle / "commands.sh").read_text()
    named = re.findall(r"[\w.-]+\.(?:onnx|npz|json)\b", text)
    assert named
    for name in named:
        assert (bundle / name).is_file()
    pools = json.loads((bundle / "user_neuralart.json").read_text())["Profiles"]["onnxq"]
    assert (bundle / pools["memory_pool"]).is_file()
    assert not re.search(r"(?<![\w.])/(?!bin/sh)\w", text)
    assert json.loads((bundle / "memory.json").read_text())["label"].startswith("ESTIMATE")
