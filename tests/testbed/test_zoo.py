"""The zoo: what ships is sound, what is not sound is named, what is interrupted goes on."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import pytest
import torch
from typer.testing import CliRunner

from sokmerge import files
from sokmerge import inputs as reading
from sokmerge.cli import app
from sokmerge.errors import ArgumentError, FileError
from sokmerge.testbed import checkpoint, models, training, zoo
from sokmerge.testbed.adapters import Tangent
from sokmerge.testbed.recipes import FAMILIES, Recipe

SHIPPED = [recipe for name in zoo.families() for recipe in zoo.family(name, master=0)]

# One more family, whose last network is slow enough to be interrupted; the command line with it.
FAMILY = """lambda family, seed: Recipe(
    family, MLP(4), seed=seed, order_seed=seed, limit=1000, epochs=150 if seed == 4 else 10
)"""
SLOW_COMMAND = f"""
from sokmerge.cli import app
from sokmerge.testbed.models import MLP
from sokmerge.testbed.recipes import FAMILIES, Recipe

FAMILIES["tiny"] = {FAMILY}
app()
"""


# What ships


@pytest.mark.parametrize("recipe", SHIPPED, ids=lambda recipe: recipe.name)
def test_every_recipe_ships_and_is_sound(recipe):
    assert zoo.folder_of(recipe) == zoo.SHIPPED
    zoo.verify(recipe)


def test_nothing_else_ships_and_all_is_small():
    names = {path.name for path in zoo.SHIPPED.glob("*.safetensors")}
    assert (
        names == {recipe.file_name for recipe in SHIPPED} == set(checkpoint.manifest(zoo.SHIPPED))
    )
    assert sum(path.stat().st_size for path in zoo.SHIPPED.iterdir()) < 42_000_000


@pytest.mark.parametrize("family", zoo.families())
def test_the_manifest_tells_the_truth(family):
    recipe = zoo.family(family, master=0)[0]
    module, params = zoo.load(recipe)
    judged = module
    if isinstance(recipe.adapter, Tangent):  # it is its first-order model that was trained
        judged = recipe.adapter.adapt(zoo.load(recipe.start)[0], recipe.seed)
        judged.network.load_state_dict(params)
    score = training.score(judged, *training.inputs_of(recipe, "test"))
    listed = zoo.entry(recipe)
    assert score.accuracy == pytest.approx(listed.test.accuracy, abs=1e-3)
    assert score.loss == pytest.approx(listed.test.loss, rel=1e-3)
    assert not module.training and listed.parameters == sum(p.numel() for p in params.values())
    for name, parameter in module.named_parameters():
        assert params[name].dtype == torch.float32 and torch.equal(params[name], parameter)
        assert torch.equal(params[name], params[name].half().float())


def test_what_is_loaded_is_recorded():
    recipe = SHIPPED[0]
    zoo.load(recipe)
    name = f"testbed/checkpoints/{recipe.file_name}"
    assert reading.recorded()[name] == zoo.entry(recipe).sha256


# Loading


@pytest.fixture
def made(cache, tiny_family):
    """The first tiny recipe and the path of its checkpoint."""
    recipe = tiny_family[0]
    zoo.retrain([recipe])
    return recipe, cache / recipe.file_name


def test_a_checkpoint_comes_back_as_it_was_trained(tiny, cache):
    recipe = tiny(arch=models.ResidualCNN(norm="batch", channels=(4, 6)))
    zoo.retrain([recipe])
    trained, (module, _) = training.train(recipe), zoo.load(recipe)
    assert module.state_dict().keys() == trained.state.keys()
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == trained.state[name].dtype
        assert torch.equal(tensor, trained.state[name])


def test_a_missing_checkpoint_says_how_to_make_it(cache, tiny_family, tiny):
    with pytest.raises(FileError, match=r"found no such file.*: sokmerge zoo retrain tiny-s0\."):
        zoo.load(tiny_family[0])
    with pytest.raises(FileError, match=r"found no such file.*: zoo\.retrain\(\[recipe\]\)\."):
        zoo.load(tiny("of-my-own"))
    assert not cache.exists()


def test_a_truncated_checkpoint_is_named(made):
    recipe, path = made
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FileError, match=rf"{path.name}: found .* bytes.*sokmerge zoo retrain tiny"):
        zoo.load(recipe)


def test_an_altered_byte_is_seen(made):
    recipe, path = made
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match=f"{path.name}: found"):
        zoo.verify(recipe)


def test_an_unlisted_checkpoint_is_not_used(made):
    recipe, path = made
    (path.parent / checkpoint.MANIFEST).unlink()
    with pytest.raises(FileError, match="found no entry in manifest.json"):
        zoo.load(recipe)


def relist(folder: Path, source: Path, recipe) -> None:
    """Put a file in the place of a recipe's checkpoint and list its bytes as right."""
    path = folder / recipe.file_name
    listed = (folder / checkpoint.MANIFEST).read_text()
    old = checkpoint.manifest(folder)[path.name].sha256
    shutil.copy(source, path)
    (folder / checkpoint.MANIFEST).write_text(listed.replace(old, files.sha256(path)))


def test_the_network_of_another_recipe_is_refused(tiny, made):
    recipe, path = made
    other = tiny(arch=models.MLP(width=5, depth=1))
    zoo.retrain([other])
    relist(path.parent, path.parent / other.file_name, recipe)
    with pytest.raises(FileError, match='found the network of another recipe.*"width":5'):
        zoo.load(recipe)


def test_a_foreign_architecture_is_refused(made, tmp_path):
    recipe, path = made
    wider = models.build(models.MLP(width=5, depth=1)).state_dict()
    checkpoint._save(wider, tmp_path / "forged", {"recipe": recipe.canonical})
    relist(path.parent, tmp_path / "forged", recipe)
    with pytest.raises(FileError, match=r"tensor 'head\.weight': found shape \(10, 5\); expected"):
        zoo.load(recipe)


def test_values_that_are_not_finite_are_refused(made, tmp_path):
    recipe, path = made
    state = zoo.load(recipe)[0].state_dict()
    state["head.bias"][0] = torch.nan
    checkpoint._save(state, tmp_path / "forged", {"recipe": recipe.canonical})
    relist(path.parent, tmp_path / "forged", recipe)
    with pytest.raises(FileError, match=r"'head\.bias': found values that are not finite"):
        zoo.load(recipe)


def test_a_pickle_is_never_opened(made, tmp_path):
    recipe, path = made
    torch.save(zoo.load(recipe)[0].state_dict(), tmp_path / "pickle")
    relist(path.parent, tmp_path / "pickle", recipe)
    with pytest.raises(FileError, match="found no safetensors file"):
        zoo.load(recipe)


def test_a_spoiled_manifest_is_named(made):
    recipe, path = made
    for spoiled in ("{", "[]", '{"a": {"sha256": "0"}}'):
        (path.parent / checkpoint.MANIFEST).write_text(spoiled)
        with pytest.raises(FileError, match=r"manifest\.json: found"):
            zoo.load(recipe)


# Retraining


def test_two_trainings_write_the_same_bytes(tiny, tmp_path):
    recipes = [tiny(), tiny(arch=models.ResidualCNN(channels=(4, 6)))]
    first, second = (zoo.retrain(recipes, into=tmp_path / name) for name in "ab")
    assert [e.sha256 for e in first.values()] == [e.sha256 for e in second.values()]


def test_what_is_sound_is_kept_and_what_is_not_is_made_again(made, tiny_family):
    recipe, path = made
    digest, written = files.sha256(path), path.stat().st_mtime_ns
    zoo.retrain(tiny_family[:2])
    assert path.stat().st_mtime_ns == written and zoo.entry(tiny_family[1])
    path.write_bytes(b"")
    zoo.retrain(tiny_family[:2])
    assert files.sha256(path) == digest
    written = path.stat().st_mtime_ns
    zoo.retrain([recipe], again=True)
    assert path.stat().st_mtime_ns > written and files.sha256(path) == digest


def test_an_executor_may_be_given(cache, tiny_family):
    seen = []
    with ThreadPoolExecutor(2) as executor:
        entries = zoo.retrain(tiny_family, executor=executor, done=lambda r, e: seen.append(r))
        assert executor.submit(int).result() == 0  # still open
    assert set(entries) == set(seen) == set(tiny_family)
    for recipe in tiny_family:
        zoo.verify(recipe)


def test_a_recipe_another_process_trains_is_waited_for(tiny, cache):
    recipe = tiny()
    cache.mkdir(parents=True)
    with (
        ThreadPoolExecutor(1) as executor,
        filelock.FileLock(cache / f".{recipe.file_name}.lock"),
    ):
        waiting = executor.submit(zoo.retrain, [recipe])
        time.sleep(0.3)
        assert not waiting.done() and not (cache / recipe.file_name).exists()
        elsewhere = training.train(recipe)
        entry = checkpoint.write(cache, recipe, elsewhere, seconds=1234.5)
    assert waiting.result() == {recipe: entry}


@pytest.mark.parametrize(
    ("owner", "function"), [(checkpoint, "save_file"), (os, "fsync"), (checkpoint, "_list")]
)
def test_a_full_disk_leaves_what_was_there(made, tiny_family, monkeypatch, owner, function):
    recipe, path = made
    before = {e.name: files.sha256(e) for e in path.parent.iterdir() if e.suffix != ".lock"}

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(owner, function, full)
        for each in tiny_family[:2]:
            with pytest.raises(
                FileError, match=rf"{each.name}.*No space left on device.*untouched"
            ):
                zoo.retrain([each], again=True)
    after = {e.name: files.sha256(e) for e in path.parent.iterdir() if e.suffix != ".lock"}
    assert after == before
    zoo.verify(recipe)


def test_a_folder_that_cannot_be_written_is_named(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SOKMERGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(FileError, match="found a folder that cannot be written.*SOKMERGE_CACHE"):
        zoo.retrain([tiny()])


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_cache_is_named(tiny, cache):
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    with pytest.raises(FileError, match="found a folder that cannot be written.*Permission"):
        zoo.retrain([tiny()])


def test_a_read_only_disk_is_named(tiny, cache, monkeypatch):
    def read_only(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(filelock.FileLock, "acquire", read_only)
    with pytest.raises(FileError, match="found a folder that cannot be written.*Read-only"):
        zoo.retrain([tiny()])


def test_a_wrong_number_of_jobs_is_named():
    with pytest.raises(ArgumentError, match="^jobs: found 0"):
        zoo.retrain([], jobs=0)


def finished(folder: Path) -> dict[str, int]:
    """The checkpoints that stand and are listed, each with the time it was written."""
    paths = [folder / name for name in checkpoint.manifest(folder)]
    return {path.name: path.stat().st_mtime_ns for path in paths if path.exists()}


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(tmp_path, monkeypatch, jobs):
    command = ["zoo", "retrain", "tiny", f"--into={tmp_path}"]
    first = subprocess.Popen(
        [sys.executable, "-c", SLOW_COMMAND, *command, f"--jobs={jobs}"],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not finished(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does: to every process at once
    messages = first.communicate(timeout=60)[1]
    assert first.returncode == 130, messages
    assert "the same command goes on" in messages
    assert "Traceback" not in messages or jobs > 1  # a process that is still starting says more
    kept = finished(tmp_path)
    assert 1 <= len(kept) < 5

    # In this process, which has read what another would have to read first.
    monkeypatch.setitem(FAMILIES, "tiny", eval(FAMILY, {"Recipe": Recipe, "MLP": models.MLP}))
    second = CliRunner().invoke(app, command)
    assert second.exit_code == 0, second.output
    assert len(finished(tmp_path)) == 5 and kept.items() <= finished(tmp_path).items()
