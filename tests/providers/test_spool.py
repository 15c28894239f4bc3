"""The folder of temporary files: private, removed with the process, and safe to begin many at once."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from providers.spool import Spool, SpoolUnsafe, append_to_file, create_file


def test_many_may_start_at_once(tmp_path: Path):
    """A folder that has just been made is not taken for a dead process's."""
    with ThreadPoolExecutor(16) as threads:
        spools = list(threads.map(lambda _: Spool(tmp_path), range(64)))

    assert all(spool.folder.is_dir() for spool in spools)
    for spool in spools:
        spool.close()
    assert list(tmp_path.iterdir()) == []


def test_a_dead_folder_is_removed_by_the_next_start(tmp_path: Path):
    """Nobody holds its lock any more."""
    dead = tmp_path / "spool-dead"
    dead.mkdir()
    (dead / "picture").write_bytes(b"left behind")

    spool = Spool(tmp_path)

    assert not dead.exists()
    spool.close()


def _link(place: Path) -> None:
    (place.parent / "elsewhere").mkdir()
    place.symlink_to(place.parent / "elsewhere")


def _shared(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


@pytest.mark.parametrize("plant", [_link, _shared, Path.touch, os.mkfifo])
def test_a_folder_that_others_planted_is_not_used(tmp_path: Path, plant: Callable[[Path], object]):
    """In a shared /tmp anybody can make something by the spool's name first."""
    plant(tmp_path / "spools")

    with pytest.raises(SpoolUnsafe, match="TMPDIR"):
        Spool(tmp_path / "spools")


def test_a_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its owner could look in and swap files."""
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)

    with pytest.raises(SpoolUnsafe):
        Spool(tmp_path)


def test_what_is_no_folder_is_left_alone(tmp_path: Path):
    """A pipe by the name of a dead folder does not hang the start, and a link is not followed."""
    os.mkfifo(tmp_path / "spool-pipe")
    (tmp_path / "kept").mkdir()
    (tmp_path / "spool-link").symlink_to(tmp_path / "kept")

    Spool(tmp_path).close()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "spool-link", "spool-pipe"]


def test_files_are_made_where_nothing_lies(tmp_path: Path):
    """Neither a file nor a link is written through."""
    (tmp_path / "link").symlink_to(tmp_path / "target")
    create_file(tmp_path / "file", b"a")
    append_to_file(tmp_path / "file", b"b")

    assert (tmp_path / "file").read_bytes() == b"ab"
    for name in ("file", "link"):
        with pytest.raises(FileExistsError):
            create_file(tmp_path / name)
    with pytest.raises(OSError, match="symbolic links"):
        append_to_file(tmp_path / "link", b"x")
    assert not (tmp_path / "target").exists()
