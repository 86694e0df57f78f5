import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from onnxq.errors import CheckpointError
from onnxq.export.checkpoint import load_checkpoint
from onnxq.recipe import Waiver

from .networks import SmallPulse, randomized


@pytest.fixture
def network() -> nn.Module:
    return SmallPulse().eval()


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return randomized(SmallPulse(), seed=7).state_dict()


def assert_filled(network: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize("nest", [None, "model_state_dict", "state_dict", "model", "ema"])
def test_weights_are_found_where_training_scripts_put_them(network, weights, tmp_path, nest):
    path = tmp_path / "best.pth"
    torch.save({"epoch": 3, nest: weights} if nest else weights, path)
    facts, findings = load_checkpoint(network, path)
    assert facts.nested_under == nest
    assert facts.tensors == len(weights)
    assert facts.file.size_bytes == path.stat().st_size
    assert not findings
    assert_filled(network, weights)


def test_safetensors_are_read(network, weights, tmp_path):
    save_file(weights, tmp_path / "w.safetensors")
    facts, _ = load_checkpoint(network, tmp_path / "w.safetensors")
    assert facts.nested_under is None
    assert_filled(network, weights)


def test_weights_of_one_training_lie_deeper(network, weights, tmp_path):
    torch.save({"best": {"net": weights}}, tmp_path / "w.pt")
    facts, _ = load_checkpoint(network, tmp_path / "w.pt", weights_key="best.net")
    assert facts.nested_under == "best.net"
    assert_filled(network, weights)


def test_a_mistyped_weights_key_is_corrected(network, weights, tmp_path):
    torch.save({"best": weights}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="did you mean `best`"):
        load_checkpoint(network, tmp_path / "w.pt", weights_key="bets")


def test_of_raw_and_averaged_weights_the_raw_are_taken_and_it_is_said(network, weights, tmp_path):
    averaged = {name: tensor * 2 for name, tensor in weights.items()}
    torch.save({"ema": averaged, "state_dict": weights}, tmp_path / "w.pt")
    facts, findings = load_checkpoint(network, tmp_path / "w.pt")
    assert facts.nested_under == "state_dict"
    assert "`ema`" in findings[0].what
    assert "weights_key: ema" in findings[0].do
    assert_filled(network, weights)
    load_checkpoint(network, tmp_path / "w.pt", weights_key="ema")
    assert_filled(network, averaged)


def test_the_prefix_of_data_parallel_is_dropped_and_it_is_said(network, weights, tmp_path):
    torch.save({f"module.{name}": tensor for name, tensor in weights.items()}, tmp_path / "w.pt")
    _, findings = load_checkpoint(network, tmp_path / "w.pt")
    assert "`module.`" in findings[0].what
    assert_filled(network, weights)


def spoiled(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One missing, one unexpected, one mis-shaped, one not finite, one of integers."""
    wrong = dict(weights)
    wrong["head.wieght"] = wrong.pop("head.weight")
    wrong["temporal.bias"] = torch.zeros(5)
    wrong["spatial.0.bias"] = torch.full_like(wrong["spatial.0.bias"], torch.nan)
    wrong["head.bias"] = torch.ones(1, dtype=torch.int64)
    return wrong


def test_keys_that_do_not_fit_stand_in_one_aligned_table(network, weights, tmp_path):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.save(spoiled(weights), tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(network, tmp_path / "w.pt")
    table = caught.value.what.splitlines()
    assert table[0].endswith("1 not finite, 2 mis-shaped, 1 missing, 1 unexpected")
    assert (
        len({line.find(word) for line, word in zip(table[2:], words_of(table), strict=True)}) == 1
    )
    assert any("head.weight" in row and "missing" in row for row in table)
    assert any("head.wieght" in row and "unexpected" in row for row in table)
    assert any("float32 [5]" in row and "float32 [4]" in row for row in table)
    assert_filled(network, before)


def words_of(table: list[str]) -> list[str]:
    """The problem named in every row."""
    kinds = ("missing", "unexpected", "mis-shaped", "not finite")
    return [next(kind for kind in kinds if kind in row) for row in table[2:]]


def test_a_long_table_is_cut_and_counted(network, tmp_path):
    torch.save({f"layer{i}": torch.zeros(1) for i in range(40)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="… and") as caught:
        load_checkpoint(network, tmp_path / "w.pt")
    assert len(caught.value.what.splitlines()) == 1 + 1 + 20 + 1


def test_waived_keys_pass_and_are_recorded_with_their_reason(network, weights, tmp_path):
    weights["optimizer_step"] = torch.zeros(1)
    torch.save(weights, tmp_path / "w.pt")
    waiver = Waiver(name="optimizer_step", reason="a counter of the trainer")
    facts, _ = load_checkpoint(network, tmp_path / "w.pt", waivers=[waiver])
    assert [(w.key, w.reason) for w in facts.waived] == [(waiver.name, waiver.reason)]
    del weights["optimizer_step"]
    assert_filled(network, weights)


def test_a_waiver_that_matches_nothing_is_an_error(network, weights, tmp_path):
    weights["optimizer_step"] = torch.zeros(1)
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="did you mean `optimizer_step`"):
        load_checkpoint(
            network, tmp_path / "w.pt", waivers=[Waiver(name="optimiser_step", reason="x")]
        )


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("save", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_a_file_that_would_run_code_is_refused_and_runs_none(network, weights, tmp_path, save):
    save({"state_dict": weights, "x": Bomb(tmp_path / "boom")}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="could run any code: refused") as caught:
        load_checkpoint(network, tmp_path / "w.pt")
    assert "mkdir" in caught.value.what or save is not torch.save
    assert "state_dict()" in caught.value.do
    assert not (tmp_path / "boom").exists()


def truncated(path: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.save(weights, path)
    path.write_bytes(path.read_bytes()[:-500])


FOREIGN = {
    "absent.pt": lambda path, weights: None,
    "empty.pt": lambda path, weights: path.touch(),
    "picture.png": lambda path, weights: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64)),
    "model.onnx": lambda path, weights: path.write_bytes(b"\x08\x08\x12\x07pytorch" + bytes(64)),
    "half.pt": truncated,
    "half.safetensors": lambda path, weights: path.write_bytes(
        b"\xff\x00\x00\x00\x00\x00\x00\x00{"
    ),
    "list.pt": lambda path, weights: torch.save([1, 2], path),
    "config.pt": lambda path, weights: torch.save({"config": {"lr": 0.1}}, path),
    "folder.pt": lambda path, weights: path.mkdir(),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_no_checkpoint_is_named_with_a_way_out(network, weights, tmp_path, name):
    path = tmp_path / name
    FOREIGN[name](path, weights)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(network, path)
    assert str(path) in caught.value.where
    assert caught.value.what
    assert caught.value.do
