"""Keys of up to 4096 bytes in a tree whose keys end at 511.

A key of at most ``DIRECT_BYTES`` is a tree key as it is. All longer keys that share their first ``DIRECT_BYTES`` live
in one bucket, whose tree key is these bytes followed by a zero byte; it lists (suffix, record number) in order, and the
records themselves are kept by number, so that a value is not rewritten with its bucket.

Order is kept. Let P be the first ``DIRECT_BYTES`` of a long key. The bucket P + 00 sorts after the direct key P. Any
other direct key K > P differs from P within its first ``DIRECT_BYTES`` (K is not longer than P, and P is no proper
prefix of it), so K is also greater than every key that begins with P, and than P + 00. Likewise for K < P. Hence the
bucket stands exactly where its keys belong.
"""

from __future__ import annotations

from bisect import bisect_left

import msgpack

DIRECT_BYTES = 500

Bucket = list[tuple[bytes, int]]


def is_direct(key: bytes) -> bool:
    """Whether a key is a tree key as it is."""
    return len(key) <= DIRECT_BYTES


def bucket_key(key: bytes) -> bytes:
    """Return the tree key of the bucket that a long key belongs to."""
    return key[:DIRECT_BYTES] + b"\0"


def is_bucket(tree_key: bytes) -> bool:
    """Whether a tree key is that of a bucket."""
    return len(tree_key) > DIRECT_BYTES


def decode_bucket(data: bytes | None) -> Bucket:
    """Return the (suffix, record number) pairs of a bucket, in order; an absent bucket is empty."""
    return [] if data is None else [(suffix, number) for suffix, number in msgpack.unpackb(data, use_list=False)]


def encode_bucket(bucket: Bucket) -> bytes:
    """Return a bucket as it is stored."""
    return bytes(msgpack.packb(bucket))


def find(bucket: Bucket, key: bytes) -> tuple[int, bool]:
    """Return where a long key stands in its bucket, or would stand, and whether it is there."""
    suffix = key[DIRECT_BYTES:]
    position = bisect_left(bucket, suffix, key=lambda item: item[0])
    return position, position < len(bucket) and bucket[position][0] == suffix
