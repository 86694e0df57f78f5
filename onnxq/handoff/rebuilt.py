"""Two bundles compared byte by byte, and what is otherwise than when the first one was made."""

import json
from collections.abc import Iterator
from pathlib import Path

from onnxq.artifacts import Bundle, Finding, Origin, Provenance, RebuildCheck
from onnxq.errors import StoreError
from onnxq.store import sha256_of_file

__all__ = ["changes_since", "compare_bundles", "listed_files"]

SUMS_FILE = "SHA256SUMS"


def listed_files(folder: Path) -> dict[str, str]:
    """Name and SHA-256 of every file that the bundle's SHA256SUMS lists. Raises StoreError."""
    path = folder / SUMS_FILE
    if not path.is_file():
        raise StoreError(f"holds no {SUMS_FILE}", where=str(folder), do="give a bundle's folder")
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def compare_bundles(old: Path, new: Path, reasons: tuple[Finding, ...]) -> RebuildCheck:
    """The bundle ``new``, made again, against ``old``: every file that either of them lists."""
    wanted, made = listed_files(old), listed_files(new)
    differences = []
    for name in (*sorted({*wanted, *made}), SUMS_FILE):
        mine, again = old / name, new / name
        if not mine.is_file():
            what = "is not made again" if not again.is_file() else "is missing, and is made again"
        elif not again.is_file():
            what = "is not made again"
        elif mine.read_bytes() == again.read_bytes():
            continue
        else:
            what = _difference(mine, again)
            if name in wanted and sha256_of_file(mine) != wanted[name]:
                what = f"was changed after the hand-off; {what}"
        differences.append(Finding(where=name, what=what))
    return RebuildCheck(
        files=len({*wanted, *made}) + 1, differences=tuple(differences), reasons=reasons
    )


def changes_since(bundle: Bundle, now: Provenance, again: Origin | None) -> tuple[Finding, ...]:
    """What is otherwise than when ``bundle`` was made: versions, processor, code, ingredients.

    ``again`` is the origin of the bundle that was made again; None if there is none.
    """
    return tuple(_changes(bundle, now, again))


def _changes(bundle: Bundle, now: Provenance, again: Origin | None) -> Iterator[Finding]:
    then = bundle.provenance
    versions = ({"onnxq": p.onnxq} | p.packages for p in (then, now))
    before, after = versions
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            what = f"{before.get(name, 'absent')} then, {after.get(name, 'absent')} now"
            yield Finding(where=name, what=what, do="install what constraints.txt pins")
    if then.cpu_flags != now.cpu_flags:
        what = f"{' '.join(then.cpu_flags)} then, {' '.join(now.cpu_flags)} now"
        yield Finding(where="processor", what=what, do="rebuild on such a processor")
    if then.machine != now.machine:
        yield Finding(where="machine", what=f"{then.machine} then, {now.machine} now")
    if bundle.origin is None or again is None:
        return
    if bundle.origin.code_sha256 != again.code_sha256 and then.onnxq == now.onnxq:
        yield Finding(where="onnxq", what="its own code changed within this version")
    digests = {item.what: item for item in again.ingredients}
    for item in bundle.origin.ingredients:
        found = digests.get(item.what)
        if found is None or found.sha256 != item.sha256:
            yield Finding(where=f"{item.what} `{item.name}`", what="is not what it was then")


def _difference(old: Path, new: Path) -> str:
    """What differs, in a few words."""
    if old.suffix == ".json":
        try:
            left, right = (json.loads(p.read_text(encoding="utf-8")) for p in (old, new))
        except ValueError:
            return "is no JSON"
        places = list(_places(left, right, ""))
        shown = ", ".join(places[:4]) + (f" and {len(places) - 4} more" if places[4:] else "")
        return f"differs in {shown}" if places else "differs in its spelling only"
    sizes = old.stat().st_size, new.stat().st_size
    if sizes[0] != sizes[1]:
        return f"differs: {sizes[0]} bytes, made again {sizes[1]}"
    pairs = zip(old.read_bytes(), new.read_bytes(), strict=True)
    first = next(index for index, (a, b) in enumerate(pairs) if a != b)
    return f"differs from byte {first} on"


def _places(left: object, right: object, path: str) -> Iterator[str]:
    """Paths of the values that differ, as ``a.b.0``."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted({*left, *right}):
            yield from _places(left.get(key), right.get(key), f"{path}.{key}" if path else key)
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            yield from _places(a, b, f"{path}.{index}")
    elif left != right:
        yield path
