"""Pages in a real browser: headless Chromium, from a file, without a network."""

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium), which is not on this machine"
)
TIMEOUT_S = 60


def dump_dom(address: str, profile: Path, width: int) -> str:
    """The DOM of a page after five seconds of its own time; fails on any word in the console."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        f"--user-data-dir={profile}",
        f"--window-size={width},1600",
        "--virtual-time-budget=5000",
        "--enable-logging=stderr",
        "--dump-dom",
        address,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
    return done.stdout
