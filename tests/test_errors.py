"""Every error has four parts, is caught by its ordinary class, and travels between processes."""

from __future__ import annotations

import pickle

import pytest

from sokmerge.errors import ArgumentError, FileError, SokmergeError, UnknownNameError

CLASSES = [(ArgumentError, ValueError), (FileError, OSError), (UnknownNameError, LookupError)]


@pytest.mark.parametrize(("kind", "ordinary"), CLASSES)
def test_message_is_made_of_the_four_parts(kind, ordinary):
    error = kind("alphas", found="one number", expected="two or more", do="Give both ends.")
    assert str(error) == "alphas: found one number; expected two or more. Give both ends."
    assert (error.subject, error.found, error.expected, error.do) == (
        "alphas", "one number", "two or more", "Give both ends.",
    )  # fmt: skip
    assert isinstance(error, ordinary) and isinstance(error, SokmergeError)


def test_what_to_do_may_be_obvious():
    assert str(ArgumentError("n", found="0", expected="1")) == "n: found 0; expected 1."


@pytest.mark.parametrize(("kind", "_"), CLASSES)
def test_an_error_survives_the_way_between_processes(kind, _):
    error = kind("a", found="b", expected="c", do="D.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), vars(again)) == (str(error), vars(error))
