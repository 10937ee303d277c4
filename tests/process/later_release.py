"""A later release: a copy of the package with one more command, one more field in the handshake and in two messages.

The copy supports the cluster version after this release's. What it adds:

- a command ``Stamp`` of kind 77, which needs the new version: a put below ``STAMPED`` is proposed as one, and a read
  shows ``STAMP`` before the value;
- a field ``zone`` in every handshake message;
- a field ``origin`` of ``ReadPing``, with a default, and a field behind those of ``AppendEntries``;
- a kind of message that this release does not know, sent before each ``ReadPing``;
- a format of journal, store, snapshot and backup, written from the new version on: the journal's header and the store
  have one field more, which their readers require;
- short segments of the journal, so that a new one begins soon.
"""

from __future__ import annotations

import shutil
from dataclasses import astuple, dataclass
from pathlib import Path

import raftkv
from raftkv.consensus.records import JOURNAL_FORMATS
from raftkv.consensus.snapshot import SNAPSHOT_FORMATS
from raftkv.runtime.backups import BACKUP_FORMATS
from raftkv.store.bookkeeping import STORE_FORMATS
from raftkv.versions import SUPPORTED_VERSIONS, ClusterVersion

THIS_VERSION = SUPPORTED_VERSIONS.highest
LATER_VERSION = ClusterVersion(THIS_VERSION.major, THIS_VERSION.minor + 1)
STAMPED = b"stamped/"
STAMP = b"stamp:"


@dataclass(frozen=True)
class WrittenFormats:
    """Numbers of the formats that a node writes."""

    journal: int
    store: int
    snapshot: int
    backup: int


THESE_FORMATS = WrittenFormats(
    *(each.written_at(THIS_VERSION) for each in (JOURNAL_FORMATS, STORE_FORMATS, SNAPSHOT_FORMATS, BACKUP_FORMATS))
)
LATER_FORMATS = WrittenFormats(*(number + 1 for number in astuple(THESE_FORMATS)))

_LATER = f"ClusterVersion({LATER_VERSION.major}, {LATER_VERSION.minor})"

_REPLACED = {
    "versions.py": (
        "SUPPORTED_VERSIONS = SupportedVersions(FIRST_VERSION, FIRST_VERSION)",
        f"SUPPORTED_VERSIONS = SupportedVersions(FIRST_VERSION, {_LATER})",
    ),
    "__init__.py": ('"0.1.0"', '"0.2.0"'),
    "consensus/segments.py": ("SEGMENT_BYTES = 16_777_216", "SEGMENT_BYTES = 65_536"),
}

_APPENDED = {
    "store/commands.py": f"""

@dataclass(frozen=True, slots=True)
class Stamp:
    key: bytes
    value: bytes


REQUIRED_VERSIONS[Stamp] = {_LATER}
_earlier_fields, _earlier_command = _fields, _command


def _fields(command):
    return (77, command.key, command.value) if isinstance(command, Stamp) else _earlier_fields(command)


def _command(item):
    if type(item) is tuple and len(item) == 3 and item[0] == 77:
        return Put(item[1], {STAMP!r} + item[2])
    return _earlier_command(item)
""",
    "service/kv.py": f"""

from raftkv.store.commands import Stamp

_earlier_put = KeyValues.put


async def _put(self, key, value, condition=None, **rest):
    if key.startswith({STAMPED!r}):
        return await self._writes.apply(Stamp(key, value))
    return await _earlier_put(self, key, value, condition, **rest)


KeyValues.put = _put
""",
    "runtime/framing.py": """

_earlier_handshake = encode_handshake


def encode_handshake(message):
    named = msgpack.unpackb(_earlier_handshake(message)[_LENGTH.size :])
    return encode_frame(msgpack.packb({**named, "zone": "eu-1"}))
""",
    "consensus/messages.py": """

_earlier_encode = encode


def encode(message):
    encoded = _earlier_encode(message)
    if type(message) is AppendEntries:
        return _pack([*msgpack.unpackb(encoded), "a later field"])
    return encoded
""",
    "runtime/transport.py": """

import msgpack
from raftkv.consensus.messages import ReadPing

_earlier_send = Transport.send


def _send(self, peer, message):
    link = self._links.get(peer)
    if isinstance(message, ReadPing) and link is not None and link.connection is not None:
        link.connection.write(encode_frame(msgpack.packb([99, "of a later release"])))
    return _earlier_send(self, peer, message)


Transport.send = _send
""",
    "consensus/snapshot.py": f"""

from raftkv.versions import ClusterVersion

SNAPSHOT_FORMATS.add({LATER_FORMATS.snapshot}, Format(_read_2, {_LATER}))
""",
    "consensus/records.py": f"""


def _read_later(fields):
    if fields.pop() != "later":
        raise BadRecord("the later field is missing")
    return _read_1(fields)


JOURNAL_FORMATS.add({LATER_FORMATS.journal}, Format(_read_later, {_LATER}))
_earlier_header = encode_segment_header


def encode_segment_header(header, cluster_version):
    record = _earlier_header(header, cluster_version)
    if cluster_version < {_LATER}:
        return record
    return encode_record(RecordType.SEGMENT, msgpack.packb([*msgpack.unpackb(record[HEADER_BYTES:]), "later"]))
""",
    "store/bookkeeping.py": f"""


def _read_later(view):
    if view.view(Space.META).get(b"later") is None:
        raise ValueError("the later field is missing")
    return STORE_FORMATS.read({THESE_FORMATS.store}, view)


STORE_FORMATS.add({LATER_FORMATS.store}, Format(_read_later, {_LATER}))
_earlier_write_info = write_info


def write_info(transaction, info, version_at_rest=None):
    _earlier_write_info(transaction, info, version_at_rest)
    if info.cluster_version >= {_LATER}:
        transaction.tree(Space.META).put(b"later", b"")
""",
    "runtime/backups.py": f"""

BACKUP_FORMATS.add({LATER_FORMATS.backup}, Format(_read_1, {_LATER}))
""",
}


class LaterRelease:
    """A copy of the package, changed as a later release would be.

    Args:
        directory: Where the copy is made.
    """

    def __init__(self, directory: Path) -> None:
        package = directory / "raftkv"
        shutil.copytree(Path(raftkv.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
        for name, (before, after) in _REPLACED.items():
            text = (package / name).read_text()
            assert text.count(before) == 1, f"{name} has {text.count(before)} times {before}"
            (package / name).write_text(text.replace(before, after))
        for name, code in _APPENDED.items():
            with (package / name).open("a") as file:
                file.write(code)
        _add_field_to_read_ping(package / "consensus/messages.py")
        self._directory = directory

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which ``python -m raftkv`` runs it: the working directory must not win over it."""
        return {"PYTHONPATH": str(self._directory), "PYTHONSAFEPATH": "1"}


def _add_field_to_read_ping(path: Path) -> None:
    text = path.read_text()
    replacements = {
        '    """A leader asks whether it still leads ``term``."""\n\n    term: int\n    round: int\n': (
            '    """A leader asks whether it still leads ``term``."""\n\n    term: int\n    round: int\n'
            '    origin: str = "a later release"\n'
        ),
        "(ReadPing, (_N, _N))": "(ReadPing, (_N, _N, _T))",
    }
    for before, after in replacements.items():
        assert text.count(before) == 1, f"{path} has {text.count(before)} times {before}"
        text = text.replace(before, after)
    path.write_text(text)
