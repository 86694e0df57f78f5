import numpy as np
import pytest
import torch
from conftest import recording
from safetensors import safe_open

from models.rppg.bank import augmented, bank_of, gathered, magnified, shrunk
from models.rppg.network import UltraLightRPPG
from models.rppg.train import SHIPPED, STRIDE, FeatureNoise, Plan, load, predict, save, train
from onnxq.errors import CheckpointError, DataError

PLAN = Plan(stride=2, small_epochs=2, full_epochs=1, small_px=6, batches=2, batch=4)


def interrupted_after(epochs: int):
    def progress(items, what, total):
        for number, item in enumerate(items):
            if number == epochs:
                raise KeyboardInterrupt
            yield item

    return progress


def test_resumed_training_ends_in_the_very_weights_of_an_undisturbed_one(tmp_path):
    bank = bank_of([recording(60, "subject1", 1), recording(60, "subject2", 2)], PLAN.stride)
    undisturbed = train(bank, PLAN)
    with pytest.raises(KeyboardInterrupt):
        train(bank, PLAN, tmp_path / "state.pt", interrupted_after(1))
    resumed = train(bank, PLAN, tmp_path / "state.pt")
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_state_of_another_plan_and_damaged_state_are_refused(tmp_path):
    bank, state = bank_of([recording(60)], 2), tmp_path / "state.pt"
    train(bank, Plan(stride=2, small_epochs=1, full_epochs=0, batches=1, batch=2), state)
    with pytest.raises(CheckpointError, match="other settings"):
        train(bank, PLAN, state)
    state.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        train(bank, PLAN, state)


def test_bank_holds_the_tempos_of_half_to_twice_and_plausible_labels():
    one = recording(200)
    bank = bank_of([one], stride=4)
    steps = np.unique(bank.rows[:, 1] - bank.rows[:, 0])
    assert steps.tolist() == [2, 3, 4, 5, 6, 7, 8]
    start, step = bank.rows[:, 0], bank.rows[:, 1] - bank.rows[:, 0]
    np.testing.assert_allclose(bank.bpm, one.bpm[start + 4 * step] * step / 4)
    assert bank.bpm.min() >= 40
    assert bank.bpm.max() <= 160


def test_every_ten_bpm_are_drawn_equally_often():
    bank = bank_of([recording(200)], stride=4)
    share = np.bincount(((bank.bpm - 40) / 10).astype(int), bank.weights)
    np.testing.assert_allclose(share[share > 0], 1 / (share > 0).sum())


def test_rows_of_the_second_subject_point_at_its_own_frames():
    first, second = recording(60, "subject1", 1, (7,)), recording(60, "subject2", 2)
    bank = bank_of([first, second], stride=1)
    assert bank.rows.max() == 59 + 60 - 1
    assert torch.equal(bank.pixels[59], torch.from_numpy(second.patches.pixels[0]))
    assert bank.rows[(bank.rows >= 59).all(axis=1)].min() == 59
    assert not ((bank.rows < 59).any(axis=1) & (bank.rows >= 59).any(axis=1)).any()


def test_bank_without_windows_is_refused():
    with pytest.raises(DataError, match="no window to train on"):
        bank_of([recording(5)], stride=1)


def test_shrunk_patches_keep_the_mean_colour():
    pixels = torch.from_numpy(recording(10).patches.pixels)
    small = shrunk(pixels, 6)
    assert small.shape == (10, 3, 6, 6, 3)
    torch.testing.assert_close(small.mean((2, 3)), pixels.float().mean((2, 3)))
    with pytest.raises(DataError, match="cannot be averaged"):
        shrunk(pixels, 7)


def test_augmentation_changes_all_frames_of_a_window_alike():
    still = torch.rand(4, 1, 3, 6, 6, 3).expand(4, 8, 3, 6, 6, 3)
    changed = augmented(still)
    assert not torch.equal(changed, still)
    assert torch.equal(changed, changed[:, :1].expand_as(changed))
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_magnification_multiplies_the_departure_from_the_mean_colour():
    pixels = torch.from_numpy(recording(20).patches.pixels)
    windows = 0.4 + 0.2 * gathered(pixels, np.array([[0, 1, 2, 3, 4, 5, 6, 7]]))
    larger = magnified(windows, 3.0)

    def departure(values):
        colour = values.mean((3, 4))
        return colour - colour.mean(1, keepdim=True)

    torch.testing.assert_close(departure(larger), 3 * departure(windows), atol=1e-4, rtol=1e-3)
    assert magnified(windows, 1.0) is windows


def test_feature_noise_is_as_wide_as_it_says_and_absent_in_evaluation():
    noise, features = FeatureNoise(1.5), torch.rand(100, 16, 1, 1)
    assert not list(noise.state_dict())
    moved = (noise(features) - features).abs().max()
    step = features.max() / 255
    assert 1.3 * step < moved <= 1.5 * step * 1.01
    assert noise.eval()(features) is features


def test_saved_weights_come_back_with_their_story(tmp_path):
    network, path = UltraLightRPPG().eval(), tmp_path / "rppg.safetensors"
    save(network, path, {"saw": "nothing"})
    window = torch.rand(1, 8, 3, 36, 36, 3)
    assert torch.equal(load(path)(window), network(window))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"saw": "nothing"}


def test_shipped_weights_say_that_their_subjects_are_synthetic():
    with safe_open(SHIPPED, "pt") as file:
        story = file.metadata()
    assert story["saw"] == "16 subjects, 16 of them synthetic"
    assert story["stride"] == str(STRIDE)
    assert 45 < float(story["train_mean_bpm"]) < 155


def test_prediction_pairs_windows_with_their_labels():
    one = recording(80)
    found, true = predict(UltraLightRPPG().eval(), [one], stride=2, hop=4, px=36)
    assert found.shape == true.shape == (17,)
    np.testing.assert_array_equal(true, one.bpm[4 * np.arange(17) + 8])
