"""The command line beside a running gateway: two processes, one SQLite file."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from openai import OpenAI

from tests.e2e.live import LiveGateway, open_shell, serve
from tests.e2e.pictures import png


def test_keys_made_while_it_serves_leave_the_database_whole(tmp_path: Path):
    """Keys made by other processes work at once, while edits are written, and the file is sound afterwards."""
    shell = open_shell(tmp_path / "gateway")
    with serve(shell) as live, ThreadPoolExecutor(8) as threads:
        for round_number in range(3):
            edits = [threads.submit(edit_once, live, live.key) for _ in range(8)]
            made = shell.make_key(f"tenant-{round_number}")
            assert [edit.result() for edit in edits] == [1] * 8
            assert edit_once(live, made["key"]) == 1

    with sqlite3.connect(tmp_path / "gateway" / "var" / "gateway.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT count(*) FROM job").fetchone() == (27,)
    database.close()


def edit_once(live: LiveGateway, key: str) -> int:
    """One edit with the official client; how many pictures came back."""
    with OpenAI(base_url=live.api, api_key=key, max_retries=0) as client:
        response = client.images.edit(model="detail-upscaler", prompt="", image=("a.png", png(), "image/png"))
    return len(response.data or [])
