"""The fuzzers of both ports, for a minute together; ``make soak`` runs them for an hour."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

SECONDS = int(os.environ.get("TEST_FUZZ_SECONDS", "60"))


def test_strangers_and_hostile_clients_find_nothing():
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", str(SECONDS)]
    if "TEST_SEED" in os.environ:
        command += ["--seed", os.environ["TEST_SEED"]]
    result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 240, check=False)
    print(result.stdout)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-3000:]
