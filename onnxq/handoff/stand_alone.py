"""What makes a bundle runnable where there is no onnxq: scripts, and the versions they need."""

from importlib import resources
from pathlib import Path

from onnxq.provenance import versions

__all__ = ["SCRIPTS", "write_scripts"]

SCRIPTS = ("contract.py", "run.py", "selftest.py")
_NEEDED = ("numpy", "onnxruntime")


def write_scripts(folder: Path, *, parts: bool = False) -> None:
    """The scripts of ``runner/`` and ``requirements.txt`` in ``folder``.

    With ``parts`` also the module by which ``run.py`` moves values between the parts of a model.
    """
    runner = resources.files("onnxq.handoff") / "runner"
    sources = [runner / name for name in SCRIPTS]
    if parts:
        sources.append(resources.files("onnxq.splitting") / "routing.py")
    for source in sources:
        (folder / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    found = versions()
    pinned = "".join(f"{name}=={found[name]}\n" for name in _NEEDED)
    (folder / "requirements.txt").write_text(pinned, encoding="utf-8")
