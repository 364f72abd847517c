"""A file is written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import stat

import pytest

from sokmerge.errors import FileError
from sokmerge.files import sha256, write_atomically


@pytest.mark.parametrize("content", ["ä\n", b"\x00\xff", lambda path: path.write_bytes(b"made")])
def test_what_was_given_is_there_and_nothing_else(tmp_path, content):
    path = tmp_path / "new" / "folder" / "file.bin"
    assert write_atomically(path, content) == path
    expected = {str: "ä\n".encode(), bytes: b"\x00\xff"}.get(type(content), b"made")
    assert path.read_bytes() == expected
    assert os.listdir(path.parent) == ["file.bin"]
    assert sha256(path) == hashlib.sha256(expected).hexdigest()


def test_the_file_is_as_readable_as_any_other(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("x")
    ours = write_atomically(tmp_path / "ours", "x")
    assert stat.S_IMODE(ours.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_the_temporary_file_keeps_the_suffix_by_which_libraries_choose_a_format(tmp_path):
    seen = []
    write_atomically(tmp_path / "a.npz", lambda path: (seen.append(path), path.write_text("x")))
    assert seen[0].suffix == ".npz" and seen[0].parent == tmp_path


def _full_disk(path):
    path.write_bytes(b"the first ha")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_content_and_no_rubbish(tmp_path):
    path = write_atomically(tmp_path / "file", "old")
    with pytest.raises(FileError, match="No space left on device") as caught:
        write_atomically(path, _full_disk)
    assert caught.value.subject == str(path) and "untouched" in caught.value.do
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_a_failure_of_another_kind_is_passed_on_and_leaves_the_old_content(tmp_path):
    path = write_atomically(tmp_path / "file", "old")

    def interrupted(temporary):
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_a_failed_replacement_leaves_no_rubbish(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(FileError, match="Permission denied"):
        write_atomically(tmp_path / "file", "new")
    assert os.listdir(tmp_path) == []


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(FileError, match="taken/below"):
        write_atomically(tmp_path / "taken" / "below", "new")
    assert (tmp_path / "taken").read_text() == "a file"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FileError, match="cannot be written"):
        write_atomically(tmp_path / "file", "new")
