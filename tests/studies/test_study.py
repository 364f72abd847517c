"""Results of studies: made whole, vouched for, and as fresh as the module that measures."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest
from typer.testing import CliRunner

from sokmerge import inputs, studies
from sokmerge.cli import app
from sokmerge.errors import ArgumentError, FileError, UnknownNameError
from sokmerge.files import sha256
from sokmerge.studies import study


@pytest.fixture
def squares(monkeypatch, tmp_path):
    """A study that is known by the name of squares, whose results lie in a folder of their own."""
    module = ModuleType("sokmerge.studies.squares")
    module.STUDY = studies.Study("squares", lambda seed: [{"x": seed, "y": seed**2, "s": 0.1}],
                                 seeds=(0, 1, 2), varying=("s",))  # fmt: skip
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(study, "names", lambda: ("squares",))
    monkeypatch.setattr(studies, "names", lambda: ("squares",))
    monkeypatch.setattr(study, "SHIPPED", tmp_path)
    monkeypatch.setattr(study, "code_of", "the code of {}".format)
    monkeypatch.delenv("SOKMERGE_MASTER_SEED", raising=False)
    return module


@pytest.fixture
def made(squares):
    with ThreadPoolExecutor(1) as executor:
        return studies.make("squares", executor=executor)


def test_results_are_what_was_measured_and_the_read_is_recorded(made):
    table = studies.results("squares")
    assert table.to_dict("list") == {
        "seed": [0, 1, 2], "x": [0, 1, 2], "y": [0, 1, 4], "s": [0.1, 0.1, 0.1],
    }  # fmt: skip
    assert inputs.recorded()["squares.csv"] == sha256(made)
    told = study.describe("squares")
    assert told["command"] == "sokmerge results make squares" and told["seeds"] == [0, 1, 2]
    assert told["code"] == "the code of squares"


def test_an_altered_table_is_not_read(made):
    made.write_text(made.read_text() + "3,3,9,0.1\n")
    with pytest.raises(FileError, match=r"squares\.json vouches for.*results make squares"):
        studies.results("squares")


def test_results_that_are_not_there_are_named_with_the_command(squares):
    with pytest.raises(FileError, match="no such file.*sokmerge results make squares"):
        studies.results("squares")


def test_another_master_seed_has_results_of_its_own(made, monkeypatch, tmp_path):
    monkeypatch.setenv("SOKMERGE_MASTER_SEED", "1")
    monkeypatch.setenv("SOKMERGE_CACHE", str(tmp_path / "cache"))
    assert study.folder() == tmp_path / "cache" / "results"
    with pytest.raises(FileError, match="no such file"):
        studies.results("squares")


def test_rows_of_different_columns_are_refused(squares):
    squares.STUDY = studies.Study("squares", lambda seed: [{"x": 1}, {"y": 2}])
    with ThreadPoolExecutor(1) as executor, pytest.raises(ArgumentError, match="^study squares"):
        studies.make("squares", executor=executor)


def test_an_unknown_study_is_named_with_the_nearest(squares):
    with pytest.raises(UnknownNameError, match="found 'square'; expected one of squares"):
        studies.named("square")


def test_one_seed_again_is_compared(made, squares, monkeypatch):
    real = study.make

    def here(name, **how):
        with ThreadPoolExecutor(1) as executor:
            return real(name, executor=executor, **how)

    monkeypatch.setattr(studies, "make", here)
    again = CliRunner().invoke(app, ["results", "check", "--seed", "2"])
    assert again.exit_code == 0 and "squares, seed 2: 1 rows agree" in again.output
    other = squares.STUDY.rows
    squares.STUDY = studies.Study("squares", lambda s: [{**other(s)[0], "y": 7}], varying=("s",))
    again = CliRunner().invoke(app, ["results", "check", "--seed", "2"])
    assert again.exit_code == 1 and "column 'y': 4 there, 7 now" in again.output


def test_the_code_of_a_study_is_all_its_files(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "__file__", str(tmp_path / "study.py"))
    (tmp_path / "one_study.py").write_text("STUDY = 1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "__init__.py").write_text("STUDY = 2")
    assert studies.names() == ("one-study", "other")
    before = [study.code_of(name) for name in studies.names()]
    assert len(set(before)) == 2
    (tmp_path / "other" / "part.py").write_text("x = 1")
    after = [study.code_of(name) for name in studies.names()]
    assert after[0] == before[0] and after[1] != before[1]
    (tmp_path / "one_study.py").write_text('"""What\nit\ndoes."""\nSTUDY = 1')
    told = study.code_of("one-study")
    (tmp_path / "one_study.py").write_text('"""What it does."""\nSTUDY = 1')
    assert study.code_of("one-study") == told, "better words change no number"
    (tmp_path / "one_study.py").write_text('"""What it does."""\nSTUDY = 2')
    assert study.code_of("one-study") != told


def test_the_other_zoo_that_ships_gives_further_seeds(made, monkeypatch, tmp_path):
    monkeypatch.setattr(study, "OTHER", tmp_path / "other")
    with pytest.raises(FileError, match="no such file.*results make squares --into"):
        studies.results("squares", both=True)
    with ThreadPoolExecutor(1) as executor:
        studies.make("squares", executor=executor, into=study.OTHER)
    table = studies.results("squares", both=True)
    assert table["seed"].tolist() == [0, 1, 2, 1000, 1001, 1002]
    assert table["y"].tolist() == [0, 1, 4] * 2


@pytest.mark.parametrize("path", sorted(study.OTHER.glob("*.json")), ids=lambda path: path.stem)
def test_tables_of_the_other_zoo_are_made_by_the_module_as_it_is(path):
    told = json.loads(path.read_text(encoding="utf-8"))
    assert told["code"] == study.code_of(path.stem) and told["master seed"] == 1
    assert told["csv"] == sha256(path.with_suffix(".csv"))


@pytest.mark.parametrize("name", studies.names())
def test_every_study_is_made_by_the_module_as_it_is(name):
    told = json.loads((study.SHIPPED / f"{name}.json").read_text(encoding="utf-8"))
    assert told["code"] == study.code_of(name), f"make it again: sokmerge results make {name}"
    assert told["csv"] == sha256(study.SHIPPED / f"{name}.csv") and told["master seed"] == 0
    assert len(told["seeds"]) >= 5 and studies.named(name).name == name
