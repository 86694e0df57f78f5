"""Sampling plans: which samples of a source are taken."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from onnxq.calibrate.facets import (
    Facet,
    facets_of,
    group_facet,
    label_facet,
    plural,
    some,
    timestep_facet,
)
from onnxq.errors import DataError
from onnxq.recipe import CalibrateSection, Stratify
from onnxq.samples import Samples

__all__ = ["Draw", "choose"]

_MOST_EMPTY = 100  # cells of one kind that are recorded though nothing was drawn from them


@dataclass(frozen=True)
class Draw:
    """What was drawn from a source, by which plan.

    ``bins`` is how many were drawn from each label bin or class, timestep and group: the kind, a
    space and the cell's name. ``edges`` are those of the bins, by kind. ``notes`` say what could
    not be filled.
    """

    indices: Int[np.ndarray, " count"]
    plan: str
    seed: int
    bins: dict[str, int]
    edges: dict[str, tuple[float, ...]]
    notes: tuple[str, ...]


def choose(samples: Samples, section: CalibrateSection) -> Draw:
    """Draw ``section.samples`` samples without repeating one.

    Cells are label bins or classes, within them timesteps, within these groups. The outermost cells
    take turns, and within each its own cells take turns, until enough are drawn; what is drawn from
    a cell is random by the seed, and so is the order of the result. So the numbers drawn from two
    outermost cells differ by more than one only if the smaller one was used up. ``plan: first``
    takes the first samples as they lie.
    Raises DataError if there are too few samples or what the plan needs is not known of them.
    """
    if len(samples) == 0:
        raise DataError("holds no sample", where=samples.name, do="give at least one")
    planned = _planned(samples, section.stratify)
    if len(samples) < section.samples:
        raise DataError(
            f"holds {len(samples)} samples, {section.samples} were asked for{_filled(planned)}",
            where=samples.name,
            do=f"give more data, or ask for {len(samples)} (`samples:` or --samples)",
        )
    kinds = {facet.kind for facet in planned}
    known = (*planned, *(facet for facet in facets_of(samples) if facet.kind not in kinds))
    if section.plan == "first":
        taken = np.arange(section.samples)
        plan, notes = f"the first {section.samples}", _notes_of_first(samples, known, taken)
    else:
        random = np.random.default_rng(section.seed)
        order = random.permutation(len(samples))
        taken = random.permutation(_in_turns(order, planned)[: section.samples])
        words = " and ".join(facet.word for facet in planned)
        plan = f"stratified by {words}, shuffled" if words else "random"
        notes = _notes(planned, taken)
    return Draw(
        indices=taken,
        plan=plan,
        seed=section.seed,
        bins=_drawn(known, taken),
        edges={facet.kind: facet.edges for facet in known if facet.edges},
        notes=notes,
    )


def _planned(samples: Samples, stratify: Stratify) -> tuple[Facet, ...]:
    """What the plan draws evenly over, outermost first."""
    facets = []
    if stratify.label_edges:
        facets.append(label_facet(samples, stratify.label_edges))
    if stratify.by_label:
        facets.append(_classes(samples))
    if stratify.by_timestep:
        facets.append(timestep_facet(samples, most=stratify.timestep_bins))
    if stratify.by_group:
        facets.append(group_facet(samples))
    return tuple(facets)


def _classes(samples: Samples) -> Facet:
    labels = samples.labels
    if labels is not None and np.issubdtype(labels.dtype, np.floating):
        raise DataError(
            f"its labels are {labels.dtype} numbers, no classes",
            where=samples.name,
            do="give `label_edges` in place of `by_label`, or integers or text as labels",
        )
    return label_facet(samples)


def _in_turns(order: Int[np.ndarray, " n"], facets: Sequence[Facet]) -> Int[np.ndarray, " n"]:
    """``order`` rearranged so that cells take turns, and within each its own cells do."""
    for depth in range(len(facets), 0, -1):
        keys = np.zeros(len(order), np.int64)
        for facet in facets[:depth]:
            joined = keys * len(facet.names) + facet.cells[order]
            keys = np.unique(joined, return_inverse=True)[1]
        order = order[np.argsort(_running_number(keys), kind="stable")]
    return order


def _running_number(keys: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """How many times each key has occurred before."""
    by_key = np.argsort(keys, kind="stable")
    counts = np.bincount(keys)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    numbers = np.empty(len(keys), np.int64)
    numbers[by_key] = np.arange(len(keys)) - starts
    return numbers


def _drawn(facets: Sequence[Facet], taken: Int[np.ndarray, " m"]) -> dict[str, int]:
    """Numbers drawn by cell; where there are very many, of the cells with any."""
    return {
        f"{facet.kind} {name}": int(count)
        for facet in facets
        for name, count in zip(facet.names, facet.counted(taken), strict=True)
        if count or len(facet.names) <= _MOST_EMPTY
    }


# --- what could not be filled -------------------------------------------------------------------


def _filled(planned: Sequence[Facet]) -> str:
    """``: 5 label bins of 35``, for the outermost cells."""
    if not planned:
        return ""
    held, names = planned[0].held, planned[0].names
    each = f" of {held[0]}" if np.all(held == held[0]) else f": {_listed(names, held)}"
    return f"; {_plural(planned[0], len(names))}{each}"


def _notes(planned: Sequence[Facet], taken: Int[np.ndarray, " m"]) -> tuple[str, ...]:
    """Cells without samples, cells that were used up before they had their share, and cells of
    which nothing was drawn."""
    notes = []
    for depth, facet in enumerate(planned):
        held, drawn = facet.held, facet.counted(taken)
        empty = [name for name, count in zip(facet.names, held, strict=True) if not count]
        if empty:
            notes.append(f"no calibration sample has a {facet.kind} in {some(empty)}")
        occupied = int(np.count_nonzero(held))
        share = len(taken) / occupied
        short = np.flatnonzero((held > 0) & (held < int(share)))
        if depth == 0 and len(short):
            cells = _listed([facet.names[cell] for cell in short], held[short])
            notes.append(
                f"{len(short)} of {_plural(facet, occupied)} hold fewer samples than "
                f"their share of {int(share)}, and the others make up for it: {cells}"
            )
        left = [facet.names[cell] for cell in np.flatnonzero((held > 0) & (drawn == 0))]
        if left:
            notes.append(
                f"{len(taken)} samples leave out {len(left)} of "
                f"{_plural(facet, occupied)}: {some(left)}"
            )
    return tuple(notes)


def _notes_of_first(
    samples: Samples, known: Sequence[Facet], taken: Int[np.ndarray, " m"]
) -> tuple[str, ...]:
    """Why it is a risk to take the first samples of a source, and what is left out by it here."""
    if len(taken) == len(samples):
        return ()
    notes = [
        f"the first {len(taken)} of {len(samples)} samples were taken as they lie: where a source "
        "is ordered, by label, subject or time, they are no cross-section of it (`plan: random` is)"
    ]
    for facet in known:
        held, drawn = (
            int(np.count_nonzero(counts)) for counts in (facet.held, facet.counted(taken))
        )
        if drawn < held:
            notes.append(f"the first {len(taken)} samples hold {drawn} of {_plural(facet, held)}")
    return tuple(notes)


def _plural(facet: Facet, count: int) -> str:
    return f"{count} {plural(facet.word, count)}"


def _listed(names: Sequence[str], held: Int[np.ndarray, " cells"]) -> str:
    return some([f"{name} {count}" for name, count in zip(names, held, strict=True)])
