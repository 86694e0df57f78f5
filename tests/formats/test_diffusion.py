import h5py
import numpy as np
import pytest
import torch

from onnxq.errors import DataError
from onnxq.sample_checks import check_samples
from onnxq.samples import Samples
from onnxq.sources import open_source

from .readers import facts, opened, values

STEPS, COUNT = (801, 401, 1), 4
RANDOM = np.random.default_rng(0)
XS = RANDOM.standard_normal((3, COUNT, 2, 5, 5)).astype(np.float32)
TS = np.repeat(np.array(STEPS)[:, None], COUNT, axis=1)
CS, UCS = (RANDOM.standard_normal((3, COUNT, 7, 6)).astype(np.float32) for _ in range(2))
NAMES = {"xs": "sample", "ts": "timestep", "cs": "encoder_hidden_states"}
INPUTS = (
    facts("sample", "float32", "b", 2, 5, 5),
    facts("timestep", "int64", "b"),
    facts("encoder_hidden_states", "float32", "b", "length", 6),
)


def lists(*arrays: np.ndarray) -> list[list[torch.Tensor]]:
    return [[torch.from_numpy(step) for step in array] for array in arrays]


@pytest.fixture
def saved(tmp_path):
    """Every way in which the same steps may be kept, conditional or not."""

    def save(form: str, *, conditional: bool = True):
        arrays = dict(zip(("xs", "ts", "cs", "ucs"), (XS, TS, CS, UCS), strict=True))
        if not conditional:
            arrays = {name: arrays[name] for name in ("xs", "ts")}
        flat = {name: a.reshape(-1, *a.shape[2:]) for name, a in arrays.items()}
        kind, _, suffix = form.partition(".")
        path = tmp_path / form
        if kind == "lists":
            torch.save(dict(zip(arrays, lists(*arrays.values()), strict=True)), path)
            return path
        arrays = flat if kind == "plain" else arrays
        if suffix == "pt":
            torch.save({name: torch.from_numpy(a) for name, a in arrays.items()}, path)
        elif suffix == "npz":
            np.savez(path, **arrays)
        else:
            with h5py.File(path, "w") as file:
                for name, array in arrays.items():
                    file[name] = array
        return path

    return save


FORMS = ["lists.pt", "stacked.pt", "stacked.npz", "stacked.h5", "plain.pt", "plain.npz"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("known", [(), INPUTS], ids=["names", "facts"])
def test_every_form_gives_the_rows_of_all_steps_with_and_without_condition(saved, form, known):
    options = {"layout": "diffusion", "inputs": NAMES}
    found = open_source(str(saved(form)), options, tuple(NAMES.values()), inputs=known)
    xs, cs, ucs = (a.reshape(-1, *a.shape[2:]) for a in (XS, CS, UCS))
    np.testing.assert_array_equal(values(found, "sample"), np.concatenate([xs, xs]))
    np.testing.assert_array_equal(values(found, "encoder_hidden_states"), np.concatenate([cs, ucs]))
    np.testing.assert_array_equal(values(found, "timestep"), np.tile(TS.reshape(-1), 2))
    np.testing.assert_array_equal(found.timesteps, np.tile(TS.reshape(-1), 2))
    assert any("used twice" in note for note in found.notes)
    check_samples(found, INPUTS)


def test_the_rows_are_those_that_q_diffusion_makes(saved):
    """Its own sequence of operations, on the same lists."""
    xs, ts, cs, ucs = lists(XS, TS, CS, UCS)
    wanted_xs, wanted_ts = torch.cat(xs + xs), torch.cat(ts + ts)
    found = opened(saved("lists.pt"), tuple(NAMES.values()), layout="diffusion", inputs=NAMES)
    np.testing.assert_array_equal(values(found, "sample"), wanted_xs)
    np.testing.assert_array_equal(found.timesteps, wanted_ts)
    np.testing.assert_array_equal(values(found, "encoder_hidden_states"), torch.cat(cs + ucs))


def test_names_may_be_given_by_position_and_that_is_said(saved):
    found = opened(saved("lists.pt", conditional=False), ("x", "t"), layout="diffusion")
    assert list(found.inputs) == ["x", "t"]
    assert "by position: xs is `x`, ts is `t`" in found.notes[0]
    assert len(found) == 12
    with pytest.raises(DataError, match=r"(?s)xs, ts, cs for the inputs x, t.*inputs: \{xs:"):
        opened(saved("lists.pt"), ("x", "t"), layout="diffusion")


def test_names_may_be_given_as_on_a_command_line(saved):
    path = saved("lists.pt", conditional=False)
    found = opened(path, ("x", "t"), layout="diffusion", inputs=["xs=t", "ts=x"])
    np.testing.assert_array_equal(found.timesteps, values(found, "x"))


def test_conditions_that_no_input_takes_are_left_out_and_that_is_said(saved):
    names = {"xs": "x", "ts": "t"}
    found = opened(saved("lists.pt"), ("x", "t"), layout="diffusion", inputs=names)
    assert len(found) == 12
    assert "`cs` and `ucs` are left out" in found.notes[0]


@pytest.mark.parametrize(
    ("dtype", "steps", "exact"),
    [
        ("float32", STEPS, True),
        ("int64", (801.0, 401.0, 1.0), True),
        ("float16", (2049, 1, 0), False),  # 2049 is no float16
        ("int64", (0.5, 1.0, 2.0), False),
        ("uint8", STEPS, False),
    ],
)
def test_timesteps_become_their_inputs_type_if_that_is_exact(tmp_path, dtype, steps, exact):
    ts = np.repeat(np.array(steps)[:, None], COUNT, axis=1)
    np.savez(tmp_path / "a.npz", xs=XS, ts=ts)
    known = (facts("x", "float32", "b", 2, 5, 5), facts("t", dtype, "b"))
    source, options = str(tmp_path / "a.npz"), {"layout": "diffusion"}
    found = open_source(source, options, ("x", "t"), inputs=known)
    assert any("timesteps are converted" in note for note in found.notes) is exact
    np.testing.assert_array_equal(values(found, "t"), ts.reshape(-1))
    if exact:
        check_samples(found, known)
    else:
        with pytest.raises(DataError, match=r"(?s)input `t`: is .*nothing is cast on the quiet"):
            check_samples(found, known)


def test_timesteps_take_the_axes_of_their_input(saved):
    known = (facts("x", "float32", "b", 2, 5, 5), facts("t", "float32", "b", 1))
    path = saved("lists.pt", conditional=False)
    found = open_source(str(path), {"layout": "diffusion"}, ("x", "t"), inputs=known)
    check_samples(found, known)
    assert found.timesteps.shape == (12,)


def test_a_step_whose_samples_share_a_timestep_is_given_it_for_all(tmp_path):
    xs = lists(XS)[0]
    xs[1] = xs[1][:2]
    torch.save({"xs": xs, "ts": [torch.tensor(t) for t in STEPS]}, tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", xs=XS, ts=np.array(STEPS))
    found = opened(tmp_path / "a.pt", ("x", "t"), layout="diffusion")
    assert found.timesteps.tolist() == [801] * 4 + [401] * 2 + [1] * 4
    known = (facts("x", "float32", "b", 2, 5, 5), facts("t", "int64", "b"))
    source, options = str(tmp_path / "a.npz"), {"layout": "diffusion"}
    stacked = open_source(source, options, ("x", "t"), inputs=known)
    assert stacked.timesteps.tolist() == TS.reshape(-1).tolist()


def test_timesteps_go_with_the_samples_that_are_taken(saved):
    found = opened(saved("stacked.npz", conditional=False), ("x", "t"), layout="diffusion")
    taken: Samples = found.take(np.array([11, 0]))
    assert taken.timesteps.tolist() == [1, 801]
    np.testing.assert_array_equal(taken.row(0)["x"][0], XS[2, 3])


X1, T1 = XS[0], TS[0]


@pytest.mark.parametrize(
    ("arrays", "options", "says"),
    [
        ({"xs": X1}, {}, r"has no `ts`; there are: xs"),
        ({"xs": X1, "ts": T1, "ucs": CS[0]}, {}, r"has no `cs`"),
        ({"xs": X1, "ts": T1, "tx": T1}, {}, r"array `tx` in a diffusion layout; known: `cs`"),
        ({"xs": X1, "ts": T1[:3]}, {}, r"`xs` has 4 rows, `ts` 3"),
        ({"xs": X1, "ts": X1}, {}, r"`ts` has shape \[4, 2, 5, 5\]"),
        ({"xs": X1, "ts": np.array(list("abcd"))}, {}, r"`ts` is <U1"),
        (
            {"xs": X1, "ts": T1},
            {"inputs": {"xz": "x", "ts": "t"}},
            r"names `xz`; known: `ts`, `xs`",
        ),
        ({"xs": X1, "ts": T1}, {"inputs": {"xs": "x"}}, r"must name xs and ts"),
        ({"xs": X1, "ts": T1}, {"inputs": {"xs": "x", "ts": "x"}}, r"gives one input two arrays"),
        ({"xs": X1, "ts": T1}, {"inputs": {"xs": "x", "ts": "tt"}}, r"`tt` is no input"),
        ({"xs": X1, "ts": T1}, {"layout": "plain"}, r"(?s)`xs` is no input.*layout: diffusion"),
        (
            {"xs": X1, "ts": T1, "cs": CS[0], "ucs": CS[0, :, :3]},
            {"inputs": {"xs": "x", "ts": "t", "cs": "c"}},
            r"`cs` and `ucs`: part 1 holds",
        ),
    ],
)
def test_what_does_not_fit_the_layout_is_told(tmp_path, arrays, options, says):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=says):
        opened(tmp_path / "a.npz", ("x", "t"), **({"layout": "diffusion"} | options))
