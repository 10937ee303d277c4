"""Real time and randomness behind their ports."""

from __future__ import annotations

import random
import secrets
import time


class RealClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Return seconds since an arbitrary start."""
        return time.monotonic()


class RealRandomness:
    """Randomness seeded by the operating system."""

    def __init__(self) -> None:
        self._generator = random.Random(secrets.randbits(128))

    def random(self) -> float:
        """Return a number in [0, 1)."""
        return self._generator.random()

    def token(self) -> str:
        """Return 16 random hexadecimal digits."""
        return secrets.token_hex(8)
