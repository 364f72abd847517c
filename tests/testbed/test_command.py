"""``sokmerge zoo``: what it prints, how it exits."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from sokmerge.cli import app
from sokmerge.testbed import zoo


def run(*arguments: str):
    return CliRunner().invoke(app, ["zoo", *arguments])


def test_list_shows_every_family():
    result = run("list")
    assert result.exit_code == 0
    names = [line.split()[0] for line in result.output.splitlines()[1:]]
    assert tuple(names) == zoo.families()


def test_list_shows_the_networks_of_a_family():
    result = run("list", "cnn")
    assert result.exit_code == 0 and "cnn-s4" in result.output and "23,946" in result.output


def test_retrain_list_and_verify_agree(cache, tiny_family):
    assert "0 of 5" in run("list", "--master-seed", "1").output
    result = run("retrain", "tiny")
    assert result.exit_code == 0, result.output
    assert "1 of 1" in run("list", "tiny-s3").output
    assert "5 networks checked, 0 problems" in run("verify", "tiny").output


def test_verify_names_what_is_wrong_and_fails(cache, tiny_family):
    run("retrain", "tiny")
    path = cache / tiny_family[2].file_name
    path.write_bytes(b"spoiled")
    (cache / "stray.safetensors").touch()
    result = run("verify", "tiny")
    assert result.exit_code == 1 and "5 networks checked, 2 problems" in result.output
    assert f"{path}: found 7 bytes" in result.output and "stray.safetensors" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verify", "mlp-widht-32"), "found 'mlp-widht-32'; expected one of mlp-width-32"),
        (("retrain",), "found neither names nor --all"),
        (("retrain", "cnn", "--all"), "found names and --all together"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.output.startswith("error: ") and message in result.output
    assert len(result.output.splitlines()) == 1
