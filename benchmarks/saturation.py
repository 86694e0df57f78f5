"""The saturation detector against ONNX Runtime itself on an emulated x86 without VNNI.

    python -m benchmarks.saturation [--only NAME …] [--json FILE]

For every network its nodes are taken apart, and each is fed the integers that it gets on samples,
once here and once under ``qemu-x86_64 -cpu Haswell``: a node saturates in truth if an output
integer differs. The detector has seen neither run. Then the whole file, as it is and as the advice
has it (narrowed, with the steps ``rounding`` and ``bias``), on both processors, and what narrowing
costs where there is VNNI, on samples that were not calibrated on: plainly, with the same steps on
either side, and the advised file against the plain one. Needs a machine with VNNI, and the emulator
(fetched once into build/emulation).

``efficientnet`` needs efficientnet_lite0.onnx, calib.npz and eval.npz in the folder that
ONNXQ_CASES names, ``rppg`` the build folder of ``make rppg``; they are left out where these lack.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from benchmarks.saturation_networks import Case, cases
from onnxq.graph import load_model
from onnxq.plain.calibrate import Data
from onnxq.plain.quantize import quantize_file
from onnxq.provenance import cpu_flags
from onnxq.recipe import CalibrateSection, QuantizeSection, Step
from onnxq.runtime import Session, with_outputs
from onnxq.samples import Samples
from onnxq.target import load_target
from onnxq.verify.distances import Distance
from onnxq.verify.integer_products import products_of
from onnxq.verify.saturation import effect, saturation
from tools.emulation.guests import Guest, x86_guests
from tools.emulation.outputs import apart, outputs_on

__all__ = ["Result", "Truth", "judge", "truth_of"]

POSITIONS = 8192  # of every node, over all samples
_EMULATED = 2  # samples
_PLAIN, _REFINED, _NARROWED, _ADVISED = "plain", "refined", "narrowed", "advised"
_STEPS: tuple[Step, ...] = ("rounding", "bias")
_FILES = {
    _PLAIN: QuantizeSection(saturation="ignore", steps=()),
    _REFINED: QuantizeSection(saturation="ignore", steps=_STEPS),
    _NARROWED: QuantizeSection(saturation="narrow", steps=()),
    _ADVISED: QuantizeSection(saturation="narrow", steps=_STEPS),
}
_MOST_DB = 1.0  # that narrowing may cost where there is VNNI


@dataclass(frozen=True)
class Truth:
    """One node on both processors: the share of its output integers that differ, and whether those
    that the detector predicts for the other processor are its integers, at ``positions``."""

    differs: float
    predicted: bool
    positions: int


@dataclass(frozen=True)
class Result:
    """One network. SQNR in dB against FP32, on the samples that are emulated. ``whole``: the
    advised file gives the same bits on both processors.

    What narrowing costs on this one, on more samples: ``plain_loss_db`` without any steps,
    ``refined_loss_db`` with the same steps on either side, ``loss_db`` from the plain file to the
    advised one.
    """

    name: str
    nodes: int
    can: int
    does: int
    truly: int
    agree: int
    predicted: int
    here_db: float
    there_db: float
    advised_there_db: float
    u8_there_db: float
    plain_loss_db: float
    refined_loss_db: float
    loss_db: float
    whole: bool

    @property
    def holds(self) -> bool:
        """Whether the detector is right everywhere, and its advice costs little and mends all."""
        losses = (self.refined_loss_db, self.loss_db)
        return self.agree == self.nodes and self.whole and max(losses) < _MOST_DB


def truth_of(path: Path, samples: Samples, guest: Guest) -> dict[str, Truth]:
    """Every product of the file, by node, on this processor and on ``guest``."""
    model = load_model(path)
    products = {product.node: product for product in products_of(ir.from_proto(model))}
    names = list(products)
    if not names:
        return {}
    given = {node.name: node.input[0] for node in model.graph.node if node.name in products}
    fetched = sorted({*given.values(), *(product.tensor for product in products.values())})
    session = Session(with_outputs(model, fetched).SerializeToString(), optimization="none")
    runs = [session.run(row) for row in samples.rows()]
    rows = {name: np.stack([run[given[name]] for run in runs]) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "apart.onnx"
        onnx.save(apart(model, names), file)
        there = outputs_on(guest, file, rows)
        alone = Session(file)
        here = [alone.run({n: rows[n][i] for n in names}) for i in range(len(runs))]
    found = {}
    for name, product in products.items():
        ours = np.stack([run[f"{name}.out"] for run in here])
        theirs = there[f"{name}.out"]
        equal, positions = True, 0
        for run, made in zip(runs, theirs, strict=True):
            activations = product.unsigned(run[product.tensor])
            total = product.count(activations)
            chosen = np.unique(np.linspace(0, total - 1, POSITIONS // len(runs)).astype(np.int64))
            wanted = effect(product, activations, chosen).saturated
            flat = np.moveaxis(made, 1, -1) if product.window is not None else made
            flat = flat.reshape(total, -1)[chosen]
            if product.output is not None:
                steps = np.rint(flat / np.float32(product.output.scale))
                equal &= np.array_equal(steps + product.output.zero_point, wanted)
            positions += len(chosen)
        differs = float(np.mean(~np.isclose(ours, theirs, rtol=1e-5, atol=0)))
        found[name] = Truth(differs, equal, positions)
    return found


def judge(case: Case, folder: Path, guest: Guest) -> Result:
    """Quantize in all ways, and hold everything against the emulated processor."""
    files = _quantized(case, folder)
    samples = case.samples(_EMULATED)
    rows = saturation(files[_PLAIN], samples, positions=POSITIONS)
    truth = truth_of(files[_PLAIN], samples, guest)
    exact = _outputs(case.model, samples)
    here = {name: _outputs(files[name], samples) for name in (_PLAIN, _ADVISED)}
    inputs = {name: np.stack([row[name] for row in samples.rows()]) for name in samples.inputs}
    there = {name: outputs_on(guest, files[name], inputs) for name in here}
    as_u8 = outputs_on(guest, files[_PLAIN], inputs, ["session.x64quantprecision=1"])
    for name in (_NARROWED, _ADVISED):
        if any(row.channels for row in saturation(files[name])):
            raise AssertionError(f"{case.name}, {name}: a channel can still saturate")
    more = case.samples(case.judged)
    wanted = _outputs(case.model, more)
    quality = {name: _sqnr(wanted, _outputs(file, more)) for name, file in files.items()}
    return Result(
        name=case.name,
        nodes=len(rows),
        can=sum(row.verdict != "cannot" for row in rows),
        does=sum(row.verdict == "does" for row in rows),
        truly=sum(found.differs > 0 for found in truth.values()),
        agree=sum(bool(row.changed) == (truth[row.node].differs > 0) for row in rows),
        predicted=sum(found.predicted for found in truth.values()),
        here_db=_sqnr(exact, here[_PLAIN]),
        there_db=_sqnr(exact, there[_PLAIN]),
        advised_there_db=_sqnr(exact, there[_ADVISED]),
        u8_there_db=_sqnr(exact, as_u8),
        plain_loss_db=quality[_PLAIN] - quality[_NARROWED],
        refined_loss_db=quality[_REFINED] - quality[_ADVISED],
        loss_db=quality[_PLAIN] - quality[_ADVISED],
        whole=all(np.array_equal(here[_ADVISED][name], there[_ADVISED][name]) for name in exact),
    )


def _quantized(case: Case, folder: Path) -> dict[str, Path]:
    """The network's files, by name."""
    target, source = load_target(case.target), Data(str(case.calibration), {}, CalibrateSection())
    files = {name: folder / f"{name}.onnx" for name in _FILES}
    for name, section in _FILES.items():
        quantize_file(case.model, target, source, section, files[name])
    return files


def _outputs(file: Path, samples: Samples) -> dict[str, np.ndarray]:
    session = Session(file)
    runs = [session.run(row) for row in samples.rows()]
    return {name: np.stack([run[name] for run in runs]) for name in session.output_names}


def _sqnr(exact: dict[str, np.ndarray], given: dict[str, np.ndarray]) -> float:
    total = Distance()
    for name, values in exact.items():
        total += Distance.between(values, given[name])
    return total.sqnr_db


def table(results: Sequence[Result]) -> str:
    """Markdown."""
    heads = (
        "network", "products", "can", "does", "truly differ", "agree", "integers predicted",
        "SQNR here", "there", "advised there", "same bits", "u8 option there",
        "narrowing costs here (dB): plain", "with steps", "advised against plain",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one in results:
        lines.append(
            f"| {one.name} | {one.nodes} | {one.can} | {one.does} | {one.truly} | "
            f"{one.agree}/{one.nodes} | {one.predicted}/{one.nodes} | {one.here_db:.2f} | "
            f"{one.there_db:.2f} | {one.advised_there_db:.2f} | "
            f"{'yes' if one.whole else 'NO'} | {one.u8_there_db:.2f} | {one.plain_loss_db:.2f} | "
            f"{one.refined_loss_db:.2f} | {one.loss_db:.2f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run what is there; 1 if the detector is wrong anywhere, or an advised file is not whole or
    costs 1 dB."""
    parser = argparse.ArgumentParser(description="The saturation detector against the runtime.")
    parser.add_argument("--only", nargs="*", default=[], help="names of networks")
    parser.add_argument("--json", type=Path, help="where results go")
    given = parser.parse_args()
    if not {"avx512_vnni", "avx_vnni"} & set(cpu_flags()):
        print("this processor has no VNNI: there is nothing exact to compare with", file=sys.stderr)
        return 2
    (guest,) = x86_guests(Path("build/emulation"))
    results = []
    with tempfile.TemporaryDirectory() as work:
        named = os.environ.get("ONNXQ_CASES")
        for case in cases(Path(work), Path(named) if named else None, given.only):
            folder = Path(work) / f"{case.name}-files"
            folder.mkdir()
            results.append(judge(case, folder, guest))
            print(table(results[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(results))
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n")
    return int(not all(one.holds for one in results))


if __name__ == "__main__":
    sys.exit(main())
