"""zstd compression of stored backups.

A compressed backup is a plain one in a zstd frame with a checksum: ``zstd -d`` makes the plain backup of it. Readers
recognise it by its first bytes, so both kinds can be read under any name.

The library is loaded when the first compressed backup is written or read: nodes do neither.
"""

from __future__ import annotations

from collections.abc import Generator
from io import BufferedReader
from typing import Any, Literal, Protocol

from raftkv.consensus.snapshot import CHUNK_BYTES
from raftkv.errors import CorruptData

COMPRESSED_SUFFIX = ".zst"
"""Suffix of the names of compressed backups."""

_LEVEL = 3
_FRAME_MAGIC = bytes.fromhex("28b52ffd")
"""What a zstd frame begins with (RFC 8878, section 3.1.1)."""


def is_compressed_name(name: str) -> bool:
    """Whether a backup is to be compressed that is written under a name."""
    return name.endswith(COMPRESSED_SUFFIX)


class BackupSource(Protocol):
    """A stored backup that can be read from its beginning, such as a ``Path``; ``str()`` names it in messages."""

    def open(self, mode: Literal["rb"], /) -> BufferedReader:
        """Open it for reading; reading blocks."""
        ...


def new_compressor() -> Any:
    """Return what compresses a backup, with ``compress`` for each piece and ``flush`` for the rest."""
    import zstandard  # noqa: PLC0415 - see the module's docstring

    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()


def plain_pieces(source: BackupSource) -> Generator[bytes, None, None]:
    """Yield the plain backup of a stored one, in pieces of bounded size.

    Raises:
        CorruptData: The compressed data does not check.
        OSError: Reading failed.
    """
    with source.open("rb") as file:
        if file.peek(len(_FRAME_MAGIC))[: len(_FRAME_MAGIC)] == _FRAME_MAGIC:
            yield from _decompressed(file, str(source))
        else:
            while piece := file.read(CHUNK_BYTES):
                yield piece


def _decompressed(file: BufferedReader, name: str) -> Generator[bytes, None, None]:
    import zstandard  # noqa: PLC0415 - see the module's docstring

    # Data behind the frame is read as well: it must not pass for a part of what is checked.
    with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False) as plain:
        read = 0
        while True:
            try:
                piece = plain.read(CHUNK_BYTES)
            except zstandard.ZstdError as error:
                raise CorruptData(name, read, f"the compressed data does not check ({error})") from error
            if not piece:
                return
            read += len(piece)
            yield piece
