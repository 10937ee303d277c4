"""``python -m tests.golden.update``: renew the golden files of today's formats; those of earlier formats stay.

The test fails when a writer produces something else. If that was meant, either give it a new format number, and the
file of the earlier format stays as what the release before wrote; or, while no release has written the format, renew
the file and review the difference. Of messages and commands the earlier encodings of a format are kept too, since a
release may add fields to them; ``--replace`` drops the last one instead, for encodings that no release has sent.

The files ``typed-…`` hold content types of values, an optional field of the formats. The others hold none, and were
written before there was the field.

A file whose format has no reader any more is removed by hand.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path

from tests.golden.cases import FILES, encoded, read_only, written


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.update", description=__doc__)
    parser.add_argument("--replace", action="store_true", help="drop today's encodings before the new ones")
    replaces = parser.parse_args().replace
    FILES.mkdir(exist_ok=True)
    for name, content in written():
        _write(FILES / name, content)
    for name, content in read_only():
        path = FILES / name
        if not path.exists() or zlib.decompress(path.read_bytes()) != zlib.decompress(content):
            _write(path, content)
    for name, today in encoded():
        path = FILES / name
        kept: dict[str, list[str]] = json.loads(path.read_bytes()) if path.exists() else {}
        _write(path, json.dumps(merged(kept, today, replaces=replaces), indent=1).encode() + b"\n")


def merged(kept: dict[str, list[str]], today: dict[str, str], *, replaces: bool) -> dict[str, list[str]]:
    """Return encodings with today's at the end of each list."""
    result = dict(kept) if not replaces else {}
    for name, encoding in today.items():
        earlier = [each for each in kept.get(name, []) if each != encoding]
        result[name] = [*(earlier[:-1] if replaces else earlier), encoding]
    return result


def _write(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        print("changed" if path.exists() else "new", path.name)
        path.write_bytes(content)


if __name__ == "__main__":
    main()
