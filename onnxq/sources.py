"""Where samples come from: a file, or a user's ``module:function``."""

from collections.abc import Mapping
from pathlib import Path

from onnxq import plugins
from onnxq.errors import DataError, PluginError
from onnxq.progress import Progress, silent
from onnxq.samples import Samples, load_samples

__all__ = ["open_source"]


def open_source(
    source: str,
    options: Mapping[str, object],
    input_names: tuple[str, ...],
    search: Path | None = None,
    progress: Progress = silent,
) -> Samples:
    """Samples of ``source``; a function's module is looked for in ``search`` first.

    A function with a parameter ``progress`` is given one, as reading videos may take minutes.

    Raises DataError and PluginError, the latter also if the function does not return ``Samples``.
    """
    if not plugins.is_reference(source):
        if options:
            raise DataError("a file takes no options", where=source, do="remove `options`")
        return load_samples(Path(source), input_names)
    samples = plugins.call(source, options, search, {"progress": progress})
    if not isinstance(samples, Samples):
        raise PluginError(
            f"returned {type(samples).__name__}", where=source, do="return onnxq.samples.Samples"
        )
    return samples
