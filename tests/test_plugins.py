import sys

import pytest

from onnxq import plugins
from onnxq.errors import DataError, PluginError
from onnxq.sources import open_source

CODE = """
import numpy as np
from onnxq.errors import DataError
from onnxq.samples import Samples

NUMBER = 3

def clips(count: int, scale: float = 1.0) -> Samples:
    return Samples("made", {"x": np.full((count, 2), scale, np.float32)})

def nothing() -> int:
    return 1

def refuses() -> Samples:
    raise DataError("the folder is empty", where="here")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with one module, gone from Python again after the test."""
    (tmp_path / "my_clips.py").write_text(CODE)
    (tmp_path / "broken_clips.py").write_text("1 / 0")
    (tmp_path / "needs_more.py").write_text("import a_package_of_an_extra")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("my_clips", "broken_clips", "needs_more"):
        sys.modules.pop(name, None)


def test_a_function_is_found_in_the_search_folder_and_called_with_its_options(folder):
    samples = open_source("my_clips:clips", {"count": 3, "scale": 2.0}, ("x",), folder)
    assert len(samples) == 3
    assert samples.row(0)["x"].tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("my_clips:clip", "did you mean `clips`"),
        ("my_clips:NUMBER", "has no `NUMBER`"),
        ("my_clip:clips", r"(?s)no module named `my_clip`.*python_path"),
        ("broken_clips:clips", "importing it failed: ZeroDivisionError"),
        ("needs_more:clips", r"(?s)no module named `a_package_of_an_extra`.*extra"),
        ("my_clips", "not of the form module:function"),
        ("my_clips:", "not of the form module:function"),
    ],
)
def test_what_cannot_be_found_is_told_in_words(folder, reference, says):
    with pytest.raises(PluginError, match=says):
        plugins.find(reference, folder)


@pytest.mark.parametrize("options", [{}, {"count": 1, "scales": 2.0}, {"number": 1}])
def test_options_that_do_not_fit_are_told_with_the_signature(folder, options):
    with pytest.raises(PluginError, match=r"takes \(count: int, scale: float = 1.0\)"):
        plugins.call("my_clips:clips", options, folder)


def test_a_function_must_return_samples(folder):
    with pytest.raises(PluginError, match=r"(?s)returned int.*return onnxq\.samples\.Samples"):
        open_source("my_clips:nothing", {}, ("x",), folder)


def test_an_error_that_the_function_raises_on_purpose_passes_through(folder):
    with pytest.raises(DataError, match="the folder is empty"):
        open_source("my_clips:refuses", {}, ("x",), folder)


@pytest.mark.parametrize(
    ("source", "is_function"),
    [("a:b", True), ("a.b:c", True), ("a.npz", False), ("folder/a:b.npz", False), ("a", False)],
)
def test_a_reference_is_told_from_a_path(source, is_function):
    assert plugins.is_reference(source) is is_function


def test_the_sources_of_a_plug_in_are_the_files_beside_it_and_it_is_not_run(folder):
    files = plugins.source_files("broken_clips:x", folder)
    assert [f.name for f in files] == ["broken_clips.py", "my_clips.py", "needs_more.py"]
    with pytest.raises(PluginError):
        plugins.source_files("not_there:x", folder)


def test_progress_is_given_to_a_function_that_has_a_name_for_it_and_to_no_other(tmp_path):
    (tmp_path / "slow_source.py").write_text(
        "def read(count, progress):\n    return list(progress(range(count), 'reading', count))\n"
        "def plain(count):\n    return list(range(count))\n"
    )
    shown = []

    def progress(items, what, total):
        shown.append((what, total))
        return items

    for name in ("read", "plain"):
        found = plugins.call(f"slow_source:{name}", {"count": 3}, tmp_path, {"progress": progress})
        assert found == [0, 1, 2]
    assert shown == [("reading", 3)]
