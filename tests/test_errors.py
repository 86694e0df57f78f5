import inspect
import pickle

import pytest

from onnxq import errors
from onnxq.errors import JudgedError, OnnxqError, RecipeError, nearest

ALL = [
    kind for name, kind in vars(errors).items() if inspect.isclass(kind) and name in errors.__all__
]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_stands_in_the_tree_and_in_the_public_names(kind):
    assert issubclass(kind, OnnxqError)
    assert kind.__name__ in (errors.__doc__ or "")
    assert kind.__name__ in errors.__all__


@pytest.mark.parametrize("kind", ALL)
def test_only_a_judgement_ends_with_1(kind):
    assert kind.exit_code == (1 if issubclass(kind, JudgedError) else 2)


def test_a_message_says_where_what_and_what_to_do():
    assert str(RecipeError("is empty", where="a.yaml:3", do="fill it")) == (
        "a.yaml:3: is empty\n  → fill it"
    )


def test_a_typo_gets_the_nearest_word_and_nonsense_gets_them_all():
    assert nearest("wieghts", ["weights", "samples"]) == "did you mean `weights`?"
    assert nearest("zzz", ["weights", "samples"]) == "known: `samples`, `weights`"


def test_all_error_classes_are_public():
    made_here = {
        k for k, v in vars(errors).items() if inspect.isclass(v) and v.__module__ == errors.__name__
    }
    assert made_here <= set(errors.__all__)


@pytest.mark.parametrize("kind", ALL)
def test_an_error_comes_from_another_process_as_it_was_raised(kind):
    sent = kind("is negative", where="x.npz, sample 7", do="look at it")
    come = pickle.loads(pickle.dumps(sent))
    assert type(come) is kind
    assert (come.what, come.where, come.do) == ("is negative", "x.npz, sample 7", "look at it")
    assert str(come) == str(sent)
