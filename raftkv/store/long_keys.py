"""Keys of up to 4096 bytes in trees whose keys end at 511.

A key is cut into pieces of ``PIECE_BYTES``, and a last one of at most so many. A key of one piece is a tree key as it
is. Of a longer key, each piece but the last leads to a node, by its tree key: the piece followed by a zero byte. The
tree keys of a node begin with its number; they are the pieces that follow, in keys that share all pieces before. So an
operation on a key takes at most nine steps, however many keys share their first bytes.

Order is kept in each node, and so in all. Let P be a piece of ``PIECE_BYTES`` that leads to a node. Its tree key P + 00
sorts after the last piece P. Any other piece K > P differs from P within its first ``PIECE_BYTES`` (K is not longer
than P, and P is no proper prefix of it), so K is also greater than everything that begins with P, and than P + 00.
Likewise for K < P. Hence P + 00 stands exactly where its keys belong.
"""

from __future__ import annotations

PIECE_BYTES = 500

NODE_BYTES = 8
"""Of the number of a node, at the beginning of its tree keys."""

_LEADS_ON = b"\0"


def is_direct(key: bytes) -> bool:
    """Whether a key is a tree key as it is."""
    return len(key) <= PIECE_BYTES


def pieces_of(key: bytes) -> tuple[list[bytes], bytes]:
    """Return the pieces that lead to nodes, as tree keys have them, and the last piece."""
    last = max(0, len(key) - 1) // PIECE_BYTES * PIECE_BYTES
    return [key[at : at + PIECE_BYTES] + _LEADS_ON for at in range(0, last, PIECE_BYTES)], key[last:]


def first_piece(key: bytes) -> bytes:
    """Return the piece of a node that a key begins with, or would begin with."""
    return key if is_direct(key) else key[:PIECE_BYTES] + _LEADS_ON


def shared_piece(piece: bytes) -> bytes | None:
    """Return what all keys behind a piece that leads to a node begin with; None for a last piece."""
    return piece[:PIECE_BYTES] if len(piece) > PIECE_BYTES else None
