"""The folder of temporary files: private, removed with the process, and safe to begin many at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from providers.spool import Spool


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
