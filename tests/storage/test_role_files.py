"""Passwords of roles come from files and go to files."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from storage.errors import FileUnsuitable
from storage.role_files import passwords, write_urls
from storage.roles import READER, WORKER


class TestFiles:
    """Passwords come from files and go to files."""

    def test_missing_ones_are_made_once(self, tmp_path: Path) -> None:
        folder = tmp_path / "new" / "roles"
        first = passwords(folder, [WORKER, READER])
        assert passwords(folder, [WORKER, READER]) == first
        assert first[WORKER] != first[READER]
        assert min(map(len, first.values())) >= 32
        (folder / WORKER).write_text("twelve characters\n")
        assert passwords(folder, [WORKER])[WORKER] == "twelve characters"
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} <= {0o600}

    @pytest.mark.parametrize(
        "content", ["", "short\n", "two lines\nof a password\n", "x" * 1025, "a" * 12 + "\x07"]
    )
    def test_what_is_no_password_is_refused(self, tmp_path: Path, content: str) -> None:
        (tmp_path / WORKER).write_text(content)
        with pytest.raises(FileUnsuitable, match="does not hold one line") as refused:
            passwords(tmp_path, [WORKER])
        assert not content or content not in str(refused.value)

    def test_bytes_that_are_no_text_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / WORKER).write_bytes(b"\xff" * 20)
        with pytest.raises(FileUnsuitable, match="is not text"):
            passwords(tmp_path, [WORKER])

    def test_urls_are_written_for_their_owner_alone(self, tmp_path: Path) -> None:
        written = write_urls(
            tmp_path, "postgresql://me:mine@host/things?sslmode=disable", {READER: "p@ss/word: ü"}
        )
        assert stat.S_IMODE(written[READER].stat().st_mode) == 0o600
        found = make_url(written[READER].read_text().strip())
        assert (found.username, found.password, found.host) == (READER, "p@ss/word: ü", "host")
        assert "mine" not in written[READER].read_text()
