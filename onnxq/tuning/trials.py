"""Measuring graphs, and keeping what was measured: each trial is a file, written whole or not."""

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float64, Shaped

from onnxq.artifacts import Trial, TrialKind
from onnxq.errors import DataError, StaleRecordError
from onnxq.graph import save_model
from onnxq.provenance import cpu_flags, versions
from onnxq.runtime import Session, in_parallel
from onnxq.samples import Samples
from onnxq.store import digest_of, load_record, save_record, sha256_of_file

__all__ = ["Meter", "TrialBook"]

_GRID = 2.0**45  # errors are whole multiples of its inverse, so that sums and differences are exact


class Meter:
    """How far a graph's outputs are from FP32's on the same samples, computed as graphs say."""

    def __init__(self, original: onnx.ModelProto, samples: Samples, batch: int, count: int) -> None:
        """At most ``count`` samples, in runs of ``batch``. Raises DataError without a whole run."""
        runs = min(count, len(samples)) // batch
        if not runs:
            raise DataError(
                f"{len(samples)} samples make no run of {batch}",
                where=samples.name,
                do="give more samples",
            )
        self.samples = samples.thinned(runs * batch)
        self._batch, self._runs = batch, runs
        self._exact = [self._outputs(self._session(original), index) for index in range(runs)]

    def exact(self, index: int) -> Mapping[str, Shaped[np.ndarray, "..."]]:
        """FP32's outputs in run ``index``."""
        return self._exact[index]

    def error(self, model: onnx.ModelProto) -> float:
        """Mean over the outputs of Σ (FP32 − its)² / Σ FP32², to a multiple of 2⁻⁴⁵."""
        session = self._session(model)

        def sums(index: int) -> Float64[np.ndarray, "outputs 2"]:
            exact, got = self._exact[index], self._outputs(session, index)
            pairs = [(exact[name].astype(np.float64), got[name]) for name in exact]
            return np.array([[np.square(a - b).sum(), np.square(a).sum()] for a, b in pairs])

        totals = sum(in_parallel(sums, self._runs), np.zeros((len(self._exact[0]), 2)))
        shares = totals[:, 0] / np.maximum(totals[:, 1], np.finfo(float).tiny)
        return float(np.rint(np.mean(shares) * _GRID) / _GRID)

    def _session(self, model: onnx.ModelProto) -> Session:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trial.onnx"
            save_model(model, path)
            return Session(path, optimization="none")

    def _outputs(self, session: Session, index: int) -> Mapping[str, Shaped[np.ndarray, "..."]]:
        return session.run(self.samples.batch(index * self._batch, self._batch))


class TrialBook:
    """What was measured before, in ``folder``: a JSON file for each trial, named by its digest.

    The digest is over the graph, the samples, and the versions and processor that computed it.
    """

    def __init__(self, folder: Path, meter: Meter, fp32: Path) -> None:
        self._folder, self._meter = folder, meter
        self._made_by = {
            "fp32": sha256_of_file(fp32),
            "samples": meter.samples.digest,
            "packages": versions(),
            "cpu": cpu_flags(),
        }
        self.measured = 0  # trials that were not known before

    def measure(self, kind: TrialKind, layer: str, model: onnx.ModelProto) -> Trial:
        """The trial of ``model``, from its file if there is one."""
        graph = model.SerializeToString(deterministic=True)
        key = digest_of({**self._made_by, "graph": hashlib.sha256(graph).hexdigest()})
        path = self._folder / f"{key[:32]}.json"
        if path.exists():
            known = load_record(Trial, path)
            if known.key != key:
                raise StaleRecordError("is of another trial", where=str(path), do="remove it")
            return known.model_copy(update={"kind": kind, "layer": layer})
        trial = Trial(
            key=key,
            kind=kind,
            layer=layer,
            error=self._meter.error(model),
            samples=len(self._meter.samples),
        )
        save_record(trial, path)
        self.measured += 1
        return trial
