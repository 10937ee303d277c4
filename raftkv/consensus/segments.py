"""The durable half of the journal: append-only segments of checked records, and their recovery.

Promises: a record is durable when ``SegmentedLog.write`` has returned; nothing durable is ever rewritten; old segments
are removed whole. Every segment begins with the state that its predecessors left, so they can go.

Each write is one frame (``frames.py``), and is synced before the next one. Recovery cuts only what a crash can leave: a
last frame of which sectors are missing, with nothing behind it. Everything else that does not check is an error that
names file and offset, and the node does not start: a silent cut could take acknowledged entries or a vote with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar
from zlib import crc32

from raftkv.consensus.frames import (
    FRAME_HEADER_BYTES,
    DamagedFrame,
    Frame,
    TornFrame,
    encode_frame,
    read_frames,
    seed_of,
)
from raftkv.consensus.journal import Batch, RecoveredLog
from raftkv.consensus.messages import Entry
from raftkv.consensus.records import (
    HEADER_BYTES,
    BadRecord,
    LogState,
    RecordType,
    SegmentHeader,
    encode_segment_header,
    parse_command,
    parse_header,
    parse_index,
    parse_index_term,
    parse_pair,
    parse_promise,
    parse_segment_header,
)
from raftkv.errors import CorruptData, ForeignData, StorageFailed, UnsupportedVersion
from raftkv.formats import UnknownFormat
from raftkv.ports import AppendFile, Directory
from raftkv.types import ClusterId, Index, Term
from raftkv.versions import FIRST_VERSION, ClusterVersion

SEGMENT_BYTES = 16_777_216

_SUFFIX = ".log"

Result = TypeVar("Result")


class SegmentedLog:
    """Writes batches to segments. Its methods block; after an error every further call fails too.

    Args:
        directory: Where the segments are.
        cluster_id: The cluster they belong to.
        recovered: What ``recover`` found there.
        segment_bytes: A segment is followed by a new one when it has reached this size.
        cluster_version: Returns the cluster's version, which the format of a new segment follows.

    Raises:
        StorageFailed: The directory could not be prepared.
    """

    def __init__(
        self,
        directory: Directory,
        cluster_id: ClusterId,
        recovered: RecoveredLog,
        segment_bytes: int = SEGMENT_BYTES,
        cluster_version: Callable[[], ClusterVersion] = lambda: FIRST_VERSION,
    ) -> None:
        self._directory = directory
        self._cluster_id = cluster_id
        self._segment_bytes = segment_bytes
        self._cluster_version = cluster_version
        self._state = recovered.state_at_rest.copy()
        self._segments = list(recovered.segments)
        self._size = recovered.tail_bytes
        self._seed = recovered.tail_seed
        self._failure: StorageFailed | None = None
        self._file = self._guarded("opening the journal", lambda: self._open(recovered))

    def _open(self, recovered: RecoveredLog) -> AppendFile:
        if recovered.torn_segment is not None:
            self._directory.remove(_name(recovered.torn_segment))
            self._directory.sync()
        if not self._segments:
            return self._create(1)
        # What was read may be in the page cache only: an earlier life was killed before its sync, or its sync failed,
        # after which the cache passes for clean. From here on it counts as durable, so it is written anew.
        name = _name(self._segments[-1][0])
        self._directory.replace(name, self._directory.read_range(name, 0, self._size))
        return self._directory.open_append(name, self._size)

    def write(self, batches: Sequence[Batch]) -> None:
        """Append batches with one write and one sync.

        Raises:
            StorageFailed: The disk refused; what the page cache holds now cannot be trusted, so nothing is retried.
        """
        self._guarded("writing the journal", lambda: self._write(batches))

    def _write(self, batches: Sequence[Batch]) -> None:
        if self._size >= self._segment_bytes:
            self._file.close()
            self._file = self._create(self._segments[-1][0] + 1)
        data = encode_frame((batch.data for batch in batches), self._size, self._seed)
        self._file.append(data)
        self._file.sync()
        self._size += len(data)
        self._state = batches[-1].state
        number, highest = self._segments[-1]
        self._segments[-1] = (number, max(highest, *(batch.state.last_index for batch in batches)))

    def remove_before(self, index: Index) -> None:
        """Remove the oldest segments that hold no entry beyond an index; the last segment stays.

        Raises:
            StorageFailed: The disk refused.
        """
        self._guarded("removing old journal segments", lambda: self._remove_before(index))

    def _remove_before(self, index: Index) -> None:
        removed = False
        while len(self._segments) > 1 and self._segments[0][1] <= index:
            self._directory.remove(_name(self._segments[0][0]))
            del self._segments[0]
            removed = True
        if removed:
            self._directory.sync()

    def close(self) -> None:
        """Release the last segment."""
        self._file.close()

    def _create(self, number: int) -> AppendFile:
        file = self._directory.create(_name(number))
        header = encode_segment_header(SegmentHeader(self._cluster_id, number, self._state), self._cluster_version())
        frame = encode_frame([header], 0, 0)
        file.append(frame)
        file.sync()
        self._directory.sync()
        self._segments.append((number, self._state.last_index))
        self._size, self._seed = len(frame), seed_of(frame)
        return file

    def _guarded(self, what: str, action: Callable[[], Result]) -> Result:
        if self._failure is not None:
            raise self._failure
        try:
            return action()
        except OSError as error:
            self._failure = StorageFailed(f"{what} in {self._directory.path} failed: {error}")
            raise self._failure from error


@dataclass(slots=True)
class _Log:
    """The log while it is being rebuilt: entries from ``first`` on are known, those before it are not."""

    first: int
    entries: list[Entry]
    state: LogState

    def add(self, command: bytes, index: int, term: int) -> None:
        if index != self.state.last_index + 1:
            raise BadRecord(f"entry {index} follows entry {self.state.last_index}")
        if term < self.state.last_term:
            raise BadRecord(f"entry {index} of term {term} follows one of term {self.state.last_term}")
        self.entries.append((command, index, term))
        self.state.last_index, self.state.last_term = index, term

    def truncate(self, from_index: int) -> None:
        if not 0 < from_index <= self.state.last_index:
            raise BadRecord(f"truncation from index {from_index} of a log that ends at {self.state.last_index}")
        del self.entries[max(0, from_index - self.first) :]
        self.first = min(self.first, from_index)
        self.state.last_index = from_index - 1
        self.state.last_term = self.entries[-1][2] if self.entries else 0

    def reset(self, index: int, term: int) -> None:
        self.first = index + 1
        self.entries.clear()
        self.state.last_index, self.state.last_term = index, term

    def set_hard_state(self, term: int, vote: str | None) -> None:
        if term < self.state.term:
            raise BadRecord(f"term {term} follows term {self.state.term}")
        self.state.term, self.state.vote = term, vote

    def term_at(self, index: int) -> int | None:
        offset = index - self.first
        if 0 <= offset < len(self.entries):
            return self.entries[offset][2]
        return self.state.last_term if index == self.state.last_index and not self.entries else None


def recover(directory: Directory, cluster_id: ClusterId, snapshot: tuple[Index, Term] | None) -> RecoveredLog:
    """Read the journal of a node that is starting.

    Args:
        directory: Where the segments are.
        cluster_id: The cluster they must belong to.
        snapshot: Last index that the newest snapshot covers, and its term; None without a snapshot.

    Raises:
        CorruptData: Something does not check; file and offset are named.
        ForeignData: The journal belongs to another cluster.
    """
    numbers = _segment_numbers(directory)
    log: _Log | None = None
    segments: list[tuple[int, int]] = []
    tail_bytes = cut_bytes = tail_seed = 0
    torn_segment = None
    for number in numbers:
        reader = _SegmentReader(directory, number, is_last=number == numbers[-1])
        if reader.is_torn_at_birth:
            torn_segment = number
            break
        log = reader.replay(log, cluster_id)
        segments.append((number, reader.highest_index))
        tail_bytes, cut_bytes, tail_seed = reader.valid_bytes, reader.cut_bytes, reader.seed
    if log is None:
        if snapshot is not None:
            raise CorruptData(directory.path, 0, "there is a snapshot but no journal: votes and entries are gone")
        log = _Log(first=2, entries=[], state=LogState())
    state_at_rest = log.state.copy()
    recovered = _rebase(directory, log, snapshot)
    return RecoveredLog(
        recovered.base_index,
        recovered.base_term,
        recovered.entries,
        recovered.state,
        segments,
        tail_bytes,
        cut_bytes,
        torn_segment,
        recovered.needs_reset and bool(segments),
        state_at_rest,
        tail_seed,
    )


def _rebase(directory: Directory, log: _Log, snapshot: tuple[Index, Term] | None) -> RecoveredLog:
    """Let the log begin behind the snapshot; entries go only where the snapshot covers or contradicts them."""
    base_index, base_term = snapshot if snapshot is not None else (Index(1), Term(0))
    term = log.term_at(base_index)
    is_superseded = base_index > log.state.last_index or (term is not None and term != base_term)
    if is_superseded:
        state = log.state
        state.last_index, state.last_term = base_index, base_term
        if base_term > state.term:
            state.term, state.vote = base_term, None
        return RecoveredLog(base_index, base_term, [], state, [], needs_reset=True)
    if log.first > base_index + 1:
        raise CorruptData(
            directory.path,
            0,
            f"the journal begins at entry {log.first}, "
            f"{'the snapshot ends at' if snapshot else 'there is no snapshot and nothing before it is known but'} "
            f"entry {base_index}",
        )
    return RecoveredLog(base_index, base_term, log.entries[base_index + 1 - log.first :], log.state, [])


class _SegmentReader:
    """Reads one segment."""

    def __init__(self, directory: Directory, number: int, *, is_last: bool) -> None:
        self._path = f"{directory.path}/{_name(number)}"
        self._number = number
        self._is_last = is_last
        self._data = directory.read(_name(number))
        self.highest_index = 0
        self.valid_bytes = 0
        self.cut_bytes = 0
        self.seed = 0

    @property
    def is_torn_at_birth(self) -> bool:
        """Whether a crash came before the segment's first frame was on the disk; nothing follows it then."""
        return self._is_last and next(self._frames(), None) is None

    def replay(self, log: _Log | None, cluster_id: ClusterId) -> _Log:
        """Apply the segment's records to a log; None begins with the segment's own header."""
        records = self._records()
        first = next(records, None)
        if first is None:
            raise self._corrupt(0, "the segment is empty, and it is not the last")
        log = self._check_header(first, log, cluster_id)
        self.highest_index = log.state.last_index
        for offset, record_type, body in records:
            try:
                _replay_record(log, record_type, body)
            except BadRecord as error:
                raise self._corrupt(offset, str(error)) from error
            self.highest_index = max(self.highest_index, log.state.last_index)
        return log

    def _check_header(self, record: tuple[int, int, bytes], log: _Log | None, cluster_id: ClusterId) -> _Log:
        _offset, record_type, body = record
        if record_type != RecordType.SEGMENT:
            raise self._corrupt(0, "the segment does not begin with its header")
        try:
            header = parse_segment_header(body)
        except UnknownFormat as error:
            raise UnsupportedVersion(f"{self._path}: {error}; the data was left as it is") from error
        except BadRecord as error:
            raise self._corrupt(0, str(error)) from error
        if header.cluster_id != cluster_id:
            raise ForeignData(f"{self._path} belongs to cluster {header.cluster_id}, not to {cluster_id}")
        if header.number != self._number:
            raise self._corrupt(0, f"it is segment {header.number} under the name of {self._number}")
        if log is None:
            return _Log(first=header.state.last_index + 1, entries=[], state=header.state)
        if (header.state.last_index, header.state.term) != (log.state.last_index, log.state.term):
            raise self._corrupt(
                0,
                f"it follows entry {header.state.last_index} of term {header.state.term}, "
                f"its predecessor ends with entry {log.state.last_index} of term {log.state.term}",
            )
        return log

    def _records(self) -> Iterator[tuple[int, int, bytes]]:
        for frame in self._frames():
            yield from self._records_of(frame)
            if frame.offset == 0:
                self.seed = seed_of(self._data[: frame.end])
            self.valid_bytes = frame.end

    def _frames(self) -> Iterator[Frame]:
        try:
            yield from read_frames(self._data)
        except TornFrame as torn:
            if not self._is_last:
                raise self._corrupt(torn.offset, "an incomplete frame, and the segment is not the last") from torn
            self.cut_bytes = len(self._data) - torn.offset
        except DamagedFrame as damaged:
            raise self._corrupt(damaged.offset, damaged.reason) from damaged

    def _records_of(self, frame: Frame) -> Iterator[tuple[int, int, bytes]]:
        data = self._data
        offset = frame.offset + FRAME_HEADER_BYTES
        while offset < frame.body_end:
            if frame.body_end - offset < HEADER_BYTES:
                raise self._corrupt(offset, "a record does not end with its frame")
            header = parse_header(data, offset)
            if header is None:
                raise self._corrupt(offset, "the header of a record does not match its checksum")
            record_type, length, checksum = header
            end = offset + HEADER_BYTES + length
            body = data[offset + HEADER_BYTES : end]
            if end > frame.body_end or crc32(body) != checksum:
                raise self._corrupt(offset, "the body of a record does not match its checksum")
            yield offset, record_type, body
            offset = end

    def _corrupt(self, offset: int, reason: str) -> CorruptData:
        return CorruptData(self._path, offset, reason)


def _replay_record(log: _Log, record_type: int, body: bytes) -> None:
    if record_type == RecordType.ENTRY:
        log.add(parse_command(body), *parse_index_term(body))
    elif record_type == RecordType.HARD_STATE:
        log.set_hard_state(*parse_pair(body))
    elif record_type == RecordType.TRUNCATE:
        log.truncate(parse_index(body))
    elif record_type == RecordType.COMMIT:
        log.state.commit = parse_index(body)
    elif record_type == RecordType.RESET:
        log.reset(*parse_index_term(body))
    elif record_type == RecordType.MEMBER_STORAGE:
        name, storage_id = parse_pair(body)
        log.state.member_storage[name] = storage_id
    elif record_type == RecordType.PROMISE:
        member_id, promise = parse_promise(body)
        log.state.promises[member_id] = promise
    else:
        raise BadRecord(f"a record of unknown type {record_type}")


def _segment_numbers(directory: Directory) -> list[int]:
    names = [name for name in directory.names() if name.endswith(_SUFFIX)]
    numbers = sorted(int(name.removesuffix(_SUFFIX)) for name in names)
    for before, after in pairwise(numbers):
        if after != before + 1:
            raise CorruptData(f"{directory.path}/{_name(before + 1)}", 0, "the segment is missing")
    return numbers


def _name(number: int) -> str:
    return f"{number:016d}{_SUFFIX}"
