"""Known answers: inputs and what plain ONNX Runtime makes of them, to be replayed bit for bit."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from onnxq import sample_checks
from onnxq.artifacts import AnswerCheck, Manifest, ValueFacts
from onnxq.errors import DataError
from onnxq.handoff.contract import Contract, InputOutput
from onnxq.provenance import cpu_flags
from onnxq.runtime import Optimization, Session
from onnxq.samples import Samples
from onnxq.splitting.manifest import MANIFEST, PartsSession
from onnxq.store import load_record
from onnxq.target import Target

__all__ = ["made_up_samples", "make_answers", "replay"]

Array = Shaped[np.ndarray, "..."]
LEVELS: dict[Optimization, str] = {"full": "ORT_ENABLE_ALL", "none": "ORT_DISABLE_ALL"}
THREADS = 1
ABOUT, INPUT, OUTPUT, OTHER = "about", "input", "output", "other"


def make_answers(
    model: Path, contract: Contract, target: Target, samples: Samples, count: int
) -> dict[str, Array]:
    """Arrays of ``known_answers.npz`` for ``count`` samples, spread evenly over ``samples``.

    ``input.<name>`` and ``output.<name>`` hold one vector per row, with the model's own shape
    behind; ``other.<name>`` the outputs under the other level of optimization, where they differ in
    any bit; ``index``, ``labels`` and ``groups`` what is known of each; ``about`` says in JSON how
    the answers were made. ``model`` may be the manifest of a graph in parts, and ``contract`` that
    of the whole. Raises DataError if there is no sample, RuntimeFailureError.
    """
    if not len(samples):
        raise DataError("holds no sample for the known answers", where=samples.name)
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).round())
    indices = chosen.astype(np.int64)
    taken = samples.take(indices)
    rows = [_filling_batch(row, contract) for row in taken.rows()]
    level = target.judged_level
    other: Optimization = "none" if level == "full" else "full"
    outputs = _run(model, level, target, rows)
    others = _run(model, other, target, rows)
    names = [value.name for value in contract.outputs]
    kinds = {OUTPUT: level} | ({} if _same(outputs, others) else {OTHER: other})
    arrays = {f"{INPUT}.{name}": np.stack([row[name] for row in rows]) for name in rows[0]}
    arrays |= {f"{OUTPUT}.{name}": np.stack([row[name] for row in outputs]) for name in names}
    if OTHER in kinds:
        arrays |= {f"{OTHER}.{name}": np.stack([row[name] for row in others]) for name in names}
    arrays["index"] = indices
    for name, known in (("labels", taken.labels), ("groups", taken.groups)):
        if known is not None:
            arrays[name] = np.asarray(known).astype(str) if known.dtype == object else known
    about = {
        "model": contract.model,
        "sha256": contract.sha256,
        "target": target.name,
        "vectors": len(rows),
        "inputs": list(rows[0]),
        "outputs": names,
        "levels": {kind: LEVELS[value] for kind, value in kinds.items()},
        "intra_op_num_threads": THREADS,
        "session_options": dict(target.session_options),
        "onnxruntime": metadata.version("onnxruntime"),
        "cpu": list(cpu_flags()),
        "source": samples.name,
        "made_up": samples.made_up,
    }
    return arrays | {ABOUT: np.array(json.dumps(about, indent=1))}


def replay(model: Path, answers: Mapping[str, Array], target: Target) -> AnswerCheck:
    """Run the inputs of ``answers`` through ``model`` again and compare every bit."""
    about = json.loads(str(answers[ABOUT]))
    count = int(about["vectors"])
    rows = [
        {name: answers[f"{INPUT}.{name}"][row] for name in about["inputs"]} for row in range(count)
    ]
    levels = {name: level for level, name in LEVELS.items()}
    exact = True
    for kind, level in about["levels"].items():
        wanted = [
            {name: answers[f"{kind}.{name}"][row] for name in about["outputs"]}
            for row in range(count)
        ]
        exact = exact and _same(_run(model, levels[level], target, rows), wanted)
    return AnswerCheck(vectors=count, optimization=target.judged_level, bit_exact=exact)


def made_up_samples(contract: Contract, count: int) -> Samples:
    """Random numbers in the range of every input, for a model that came without data.

    They replay a file; they say nothing of its accuracy, and the bundle says that they are none.
    """
    values = [
        ValueFacts(name=v.name, dtype=v.dtype, shape=v.shape, domain=_span(v))
        for v in contract.inputs
    ]
    made_up = sample_checks.made_up_samples(values, count, seed=0)
    return replace(made_up, name="made-up numbers (no data was given)")


def _span(value: InputOutput) -> tuple[float, float]:
    """Where an input's values lie: its domain, else what its Q can hold; integers are all 0."""
    if np.dtype(value.dtype).kind != "f":
        return 0.0, 0.0
    known = value.quantization
    return value.domain or ((known.real_low, known.real_high) if known else (-1.0, 1.0))


def _filling_batch(row: Mapping[str, Array], contract: Contract) -> dict[str, Array]:
    """The row repeated along axis 0 where the file's batch is fixed at more than one."""
    batch = {value.name: value.shape[0] for value in contract.inputs if value.shape}
    return {
        name: np.repeat(array, size, axis=0)
        if isinstance(size := batch.get(name), int) and size > 1 and array.shape[0] == 1
        else array
        for name, array in row.items()
    }


def _run(
    model: Path, level: Optimization, target: Target, rows: Sequence[Mapping[str, Array]]
) -> list[dict[str, Array]]:
    config = target.session_options
    session: Session | PartsSession
    if model.name == MANIFEST:
        manifest = load_record(Manifest, model)
        session = PartsSession(manifest, model.parent, optimization=level, config=config)
    else:
        session = Session(model, optimization=level, threads=THREADS, config=config)
    return [session.run(row) for row in rows]


def _same(left: Sequence[Mapping[str, Array]], right: Sequence[Mapping[str, Array]]) -> bool:
    """True if every array agrees in type and in every bit."""
    return all(
        a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes()
        for a, b in zip(left, right, strict=True)
        for name in b
    )
