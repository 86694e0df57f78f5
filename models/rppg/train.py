"""Train the network on recordings, or compare strides.

::

    python -m models.rppg.train --data build/data/rppg/train
    python -m models.rppg.train --data build/data/rppg/train --stride-study 1 2 3 4 5 6 7 8
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from models.rppg.bank import Bank, augmented, bank_of, gathered, magnified, shrunk
from models.rppg.data import CACHE, read_recordings
from models.rppg.network import UltraLightRPPG
from models.rppg.shell import progress_on, run
from models.rppg.ubfc import Recording, subject_folders
from models.rppg.window_shape import CHANNELS, PATCH_PX, ROIS
from models.rppg.windows import samples_of
from onnxq.errors import CheckpointError, DataError
from onnxq.progress import Progress, silent
from onnxq.store import atomic_file, digest_of

__all__ = ["SHIPPED", "STRIDE", "FeatureNoise", "Plan", "load", "main", "predict", "save", "train"]

SHIPPED = Path(__file__).parent / "checkpoints" / "rppg.safetensors"
STRIDE = 5
VALIDATION_EVERY = 4  # of the training subjects, one in four judges the strides
STUDY_HOP = 8
WARM_UP = 100  # steps
DIFFERENCE_GAIN = 5.0


class FeatureNoise(nn.Module):
    """Uniform noise of ± ``steps`` steps of an 8-bit quantizer over the input's range.

    Only while training; in evaluation it hands its input on. A network that learns with it puts
    the pulse, a small modulation, well above the rounding of an INT8 file.
    """

    def __init__(self, steps: float) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, features: Tensor) -> Tensor:
        """Features of any shape, all in one range with zero."""
        if not self.training:
            return features
        step = features.detach().amax() / 255
        return features + step * torch.empty_like(features).uniform_(-self.steps, self.steps)


@dataclass(frozen=True)
class Plan:
    """Everything that decides which weights come out."""

    stride: int = STRIDE
    seed: int = 0
    small_epochs: int = 12  # on patches averaged to `small_px`
    full_epochs: int = 3  # then on 36 x 36
    small_px: int = 12
    batches: int = 100  # an epoch
    batch: int = 64
    rate: float = 3e-3
    magnification: float = 8.0  # of the pulse at the start; it falls to 1
    magnified_share: float = 0.6  # of the training
    noise_steps: float = 1.5

    @property
    def epochs(self) -> int:
        """Epochs on patches of both sizes."""
        return self.small_epochs + self.full_epochs


def train(
    bank: Bank, plan: Plan, state_file: Path | None = None, progress: Progress = silent
) -> UltraLightRPPG:
    """Train by Adam on smooth L1, rate falling as a cosine; returns the network in evaluation mode.

    After every epoch the state is written to ``state_file``; a later call with it goes on from
    there and ends in the very weights of a run without interruption, as every epoch has its own
    seed. Raises CheckpointError if the file belongs to another plan.
    """
    torch.manual_seed(plan.seed)
    network = UltraLightRPPG()
    _begin_with_differences(network)
    network.pooled_features = FeatureNoise(plan.noise_steps)
    # torch's stubs leave this form of `to` out
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), lr=plan.rate)
    done = _resume(network, optimizer, plan, state_file)
    small = shrunk(bank.pixels, plan.small_px) if done < plan.small_epochs else bank.pixels
    for epoch in progress(range(done, plan.epochs), "training, epochs", plan.epochs - done):
        _train_epoch(network, optimizer, bank, small, plan, epoch)
        if state_file is not None:
            with atomic_file(state_file) as temporary:
                torch.save(_state(network, optimizer, plan, epoch + 1), temporary)
    network.pooled_features = nn.Identity()
    return network.eval()


@torch.no_grad()
def _begin_with_differences(network: UltraLightRPPG) -> None:
    """Make the first temporal layer blind to what does not change, and sensitive to what does.

    The pulse is a hundredth of a feature, the subject's looks are the rest: from an ordinary
    beginning Adam stays at the mean heart rate for thousands of steps.
    """
    first = next(module for module in network.temporal if isinstance(module, nn.Conv1d))
    first.weight.sub_(first.weight.mean(dim=-1, keepdim=True)).mul_(DIFFERENCE_GAIN)


def _train_epoch(
    network: UltraLightRPPG,
    optimizer: torch.optim.Optimizer,
    bank: Bank,
    small: Tensor,
    plan: Plan,
    epoch: int,
) -> None:
    torch.manual_seed(plan.seed * 100_003 + epoch)
    rng = np.random.default_rng([plan.seed, epoch])
    chosen = rng.choice(len(bank.rows), (plan.batches, plan.batch), p=bank.weights)
    pixels = small if epoch < plan.small_epochs else bank.pixels
    network.train()
    for number, batch in enumerate(chosen):
        step = epoch * plan.batches + number
        for group in optimizer.param_groups:
            group["lr"] = _rate(plan, step)
        wanted = torch.from_numpy(bank.bpm[batch]).float()
        windows = augmented(gathered(pixels, bank.rows[batch]))
        found = network(magnified(windows, _gain(plan, step)))[:, 0]
        loss = nn.functional.smooth_l1_loss(found / 10, wanted / 10)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()


def _rate(plan: Plan, step: int) -> float:
    """Learning rate: up in 100 steps, then down as a cosine to 0."""
    share = step / (plan.epochs * plan.batches)
    return plan.rate * min(1, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * share))


def _gain(plan: Plan, step: int) -> float:
    """Magnification of the pulse: from the plan's straight down to 1."""
    share = step / (plan.epochs * plan.batches)
    return 1 + (plan.magnification - 1) * max(0.0, 1 - share / plan.magnified_share)


def _state(
    network: UltraLightRPPG, optimizer: torch.optim.Optimizer, plan: Plan, epochs: int
) -> dict[str, object]:
    return {
        "plan": dataclasses.asdict(plan),
        "epochs": epochs,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


def _resume(
    network: UltraLightRPPG,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    state_file: Path | None,
) -> int:
    """Epochs that are done already, their state loaded."""
    if state_file is None or not state_file.exists():
        return 0
    try:
        state = torch.load(state_file, weights_only=True)
        if state["plan"] != dataclasses.asdict(plan):
            raise CheckpointError(
                "belongs to a training with other settings", where=str(state_file), do="delete it"
            )
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["epochs"])
    except (OSError, EOFError, UnpicklingError, RuntimeError, LookupError, TypeError) as fault:
        raise CheckpointError(
            f"cannot be resumed from: {type(fault).__name__}",
            where=str(state_file),
            do="delete it to start anew",
        ) from fault


def predict(
    network: UltraLightRPPG, recordings: Sequence[Recording], stride: int, hop: int, px: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Predicted and true heart rates in BPM of the recordings' windows, at patches of ``px``."""
    samples = samples_of("evaluation", recordings, stride, hop)
    if samples.labels is None:
        raise DataError("has no labels", where=samples.name)
    found = []
    with torch.inference_mode():
        for first in range(0, len(samples), 32):
            rows = [samples.row(i)["input"] for i in range(first, min(first + 32, len(samples)))]
            pixels = torch.from_numpy(np.concatenate(rows) * 255).flatten(0, 1)
            windows = shrunk(pixels, px).reshape(len(rows), -1, ROIS, px, px, CHANNELS) / 255
            found.append(network(windows)[:, 0].numpy())
    return np.concatenate(found).astype(np.float64), samples.labels


def save(network: UltraLightRPPG, path: Path, metadata: dict[str, str]) -> None:
    """Write the weights, nothing else, as safetensors; ``metadata`` says what they saw."""
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    with atomic_file(path) as temporary:
        temporary.write_bytes(to_bytes(weights, metadata))


def load(path: Path = SHIPPED) -> UltraLightRPPG:
    """The network with the weights of a file, in evaluation mode. Raises CheckpointError."""
    network = UltraLightRPPG()
    try:
        network.load_state_dict(load_file(path), strict=True)
    except Exception as fault:  # safetensors and torch raise several kinds
        raise CheckpointError(
            f"does not fit the network: {fault}",
            where=str(path),
            do="train it again: python -m models.rppg.train",
        ) from fault
    return network.eval()


def study(
    recordings: Sequence[Recording],
    unseen: Sequence[Recording],
    plan: Plan,
    folder: Path,
    progress: Progress,
) -> str:
    """One line of the stride table: train on three quarters of the subjects, judge on the rest."""
    judges = recordings[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]
    pupils = [recording for recording in recordings if recording not in judges]
    network = train(bank_of(pupils, plan.stride), plan, _state_file(folder, plan, pupils), progress)
    px = plan.small_px if plan.full_epochs == 0 else PATCH_PX
    cells = [f"{plan.stride}", f"{7 * plan.stride / 30:.2f}", f"{15 / plan.stride * 60:.0f}"]
    for group in (judges, unseen):
        if not group:
            cells += ["-", "-"]
            continue
        found, true = predict(network, group, plan.stride, STUDY_HOP, px)
        mean = samples_of("train", pupils, plan.stride, STUDY_HOP).labels
        guess = float(np.mean(mean)) if mean is not None else math.nan
        cells += [f"{np.abs(found - true).mean():.2f}", f"{np.abs(guess - true).mean():.2f}"]
    return "| " + " | ".join(cells) + " |"


def _state_file(folder: Path, plan: Plan, recordings: Sequence[Recording]) -> Path:
    facts = {**dataclasses.asdict(plan), "subjects": [recording.name for recording in recordings]}
    return folder / f"stride{plan.stride}-{digest_of(facts)[:12]}.pt"


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.rppg.train", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of subject*/ to learn")
    parser.add_argument("--unseen", type=Path, help="folder of subject*/ to report on, never used")
    parser.add_argument("--subjects", nargs="+", help="only these folders of --data")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="weights to write")
    parser.add_argument("--state", type=Path, default=Path("build/rppg-training"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stride-study", type=int, nargs="+", metavar="STRIDE")
    for field in dataclasses.fields(Plan):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(field.default), default=field.default)
    return parser.parse_args(arguments)


def _recordings(
    root: Path | None, subjects: Sequence[str] | None, progress: Progress
) -> list[Recording]:
    if root is None:
        return []
    folders = subject_folders(root)
    chosen = [folder for folder in folders if subjects is None or folder.name in subjects]
    if not chosen:
        raise DataError(
            "holds none of the subjects asked for",
            where=str(root),
            do="run: python -m models.rppg.synthesize --out build/data/rppg --splits train",
        )
    return read_recordings(chosen, root / CACHE, progress)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Ctrl-C loses at most one epoch: the same command goes on."""
    chosen = _arguments(arguments)
    torch.set_num_threads(chosen.threads)
    console = Console()
    show = progress_on(console)
    plan = Plan(**{field.name: getattr(chosen, field.name) for field in dataclasses.fields(Plan)})
    recordings = _recordings(chosen.data, chosen.subjects, show)
    unseen = _recordings(chosen.unseen, None, show)
    if chosen.stride_study:
        for stride in chosen.stride_study:
            one = dataclasses.replace(plan, stride=stride)
            console.print(study(recordings, unseen, one, chosen.state, show), soft_wrap=True)
        return
    state_file = _state_file(chosen.state, plan, recordings)
    network = train(bank_of(recordings, plan.stride), plan, state_file, show)
    found, true = predict(network, recordings, plan.stride, STUDY_HOP, PATCH_PX)
    save(network, chosen.out, _metadata(plan, recordings, float(true.mean())))
    console.print(f"training subjects: MAE {np.abs(found - true).mean():.2f} BPM -> {chosen.out}")
    if unseen:
        found, other = predict(network, unseen, plan.stride, STUDY_HOP, PATCH_PX)
        guess = np.abs(true.mean() - other).mean()
        console.print(
            f"unseen subjects: MAE {np.abs(found - other).mean():.2f} BPM; "
            f"the training mean as the prediction: {guess:.2f} BPM"
        )


def _metadata(plan: Plan, recordings: Sequence[Recording], mean_bpm: float) -> dict[str, str]:
    made = sum(recording.synthetic for recording in recordings)
    return {
        "saw": f"{len(recordings)} subjects, {made} of them synthetic",
        "subjects": " ".join(recording.name for recording in recordings),
        "train_mean_bpm": f"{mean_bpm:.3f}",
        **{name: str(value) for name, value in dataclasses.asdict(plan).items()},
    }


if __name__ == "__main__":
    run(main)
