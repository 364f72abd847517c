"""Glued numbers: the same record as myst-nb's, shown by myst-nb itself."""

import json

import nbformat
import numpy as np
import pytest
from docutils.core import publish_doctree
from myst_nb.docutils_ import Parser

from sokmerge.errors import ArgumentError
from sokmerge.reader import Estimate, glue, records


@pytest.fixture
def shown(monkeypatch):
    bundles = []
    monkeypatch.setattr(records, "show", lambda data, meta=None: bundles.append((data, meta)))
    return bundles


def test_record_is_that_of_myst_nb(shown, monkeypatch):
    import myst_nb.ext.glue as theirs

    made = []
    monkeypatch.setattr(theirs, "ipy_display", lambda data, **rest: made.append((data, rest)))
    theirs.glue("barrier", "0.123", display=False)
    glue("barrier", 0.123456)
    assert shown == [(made[0][0], made[0][1]["metadata"])]


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.123456, 3, "0.123"),
        (0.123456, 4, "0.1235"),
        (np.float32(2.5), 3, "2.5"),
        (4000, 3, "4000"),
        ("cuda or cpu", 3, "cuda or cpu"),
        (Estimate.of([1.0, 2.0, 3.0, 4.0, 5.0], unit="nats"), 3, "3.0 [1.0, 5.0] nats"),
    ],
)
def test_the_page_shows_the_rounded_value(shown, value, digits, text):
    glue("it", value, digits)
    [(data, metadata)] = shown
    output = nbformat.v4.new_output("display_data", data=data, metadata=metadata)
    cells = [
        nbformat.v4.new_markdown_cell("It is {glue:text}`it` here."),
        nbformat.v4.new_code_cell("glue('it', value)", outputs=[output], execution_count=1),
    ]
    language = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    source = json.dumps(nbformat.v4.new_notebook(cells=cells, metadata=language))
    settings = {"nb_execution_mode": "off", "report_level": 2, "halt_level": 2}
    document = publish_doctree(source, parser=Parser(), settings_overrides=settings)
    assert f"It is {text} here." in document.astext()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("The barrier", 1.0), "name: found 'The barrier'"),
        (("barrier", float("nan")), "value: found nan"),
        (("barrier", 1.0, 5), "digits: found 5"),
        (("barrier", [1.0]), "value: found list"),
    ],
)
def test_what_cannot_be_quoted_is_refused(arguments, told):
    with pytest.raises(ArgumentError, match=told):
        glue(*arguments)
