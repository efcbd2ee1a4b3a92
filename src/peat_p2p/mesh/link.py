"""One link between two sidecars, without any I/O.

Owns the conversation: hello, batches, acknowledgements, summaries, pings, goodbye. Events come in as method calls with
the time, effects go out as frozen dataclasses. Keeps these rules: nothing is sent to a peer that has it; a cursor moves
only over what is durable at the receiver; anything malformed ends the link and changes nothing; a peer that is silent
for too long (`pulse`) is given up. After an Apply effect the caller must report `applied` before the next `received`.
Must not know about sockets, certificates or the replica's inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from peat_p2p.core.errors import InvalidInputError
from peat_p2p.documents.types import Outcome, Verdict
from peat_p2p.mesh.copies import Copies
from peat_p2p.mesh.effects import (
    Ahead,
    Apply,
    CaughtUp,
    Effect,
    End,
    Forget,
    Greeted,
    MoveCursor,
    Offered,
    Rejected,
    Send,
)
from peat_p2p.mesh.frames import (
    DIGEST,
    Ack,
    Batch,
    Express,
    Frame,
    FrameError,
    Goodbye,
    Heads,
    Hello,
    Listing,
    Ping,
    Pong,
    Purged,
    Reason,
    Resume,
    Summary,
    Want,
    decode_frame,
    encode_frame,
)
from peat_p2p.mesh.lanes import Lane, Linger, Outbox
from peat_p2p.mesh.pace import FIRST_WINDOW, Pacer, Patience
from peat_p2p.mesh.past import Past, remember
from peat_p2p.mesh.ports import Key, Store, Update
from peat_p2p.mesh.pulse import Pulse, Sign
from peat_p2p.mesh.reach import Reach
from peat_p2p.mesh.summary import Repair, UnaskedError, VersionTree, fingerprint_of

_HEADS_EVERY = 5.0
_MAX_KEYS = 65536
_MAX_RESENDS = 4
_AHEAD_OF_ANSWER = 12 * 1024  # bytes: with the hello they are what TCP sends in its first round (RFC 6928)
# An honest node compares four trees with at most 70 questions each; what else it says follows what is sent to it.
_QUESTIONS = (1024.0, 16.0)
_FRAMES = (20_000.0, 2_000.0)


@dataclass(frozen=True, slots=True)
class _Applying:
    """A batch at the replica: its updates and their refs, in order, and the refs that name no part known here."""

    batch: Batch
    updates: tuple[Update, ...]
    refs: tuple[int, ...]
    unknown: tuple[int, ...]


class LinkCore:
    """The state of one link. `dialled`: whether this side called."""

    def __init__(
        self,
        store: Store,
        peer_id: str,
        hello: Hello,
        trees: Sequence[VersionTree],
        *,
        dialled: bool,
        now: float,
        budget: float | None = None,
        linger: Linger | None = None,
        copies: Copies | None = None,
        past: Past | None = None,
    ) -> None:
        self._store = store
        self._hello = hello
        self._dialled = dialled
        self._trees = trees
        self._pulse = Pulse(now, dialled=dialled)
        self._past = past
        self.pacer = Pacer(budget, now, FIRST_WINDOW if past is None else past.window)
        self.outbox = Outbox(store, peer_id, linger or Linger())
        self.peer: Hello | None = None
        self.ended: End | None = None
        self.copies = copies or Copies(store)
        self._resumed = False
        self._claimed: dict[int, int] = {}
        self._effects: list[Effect] = []
        self._arrived = now
        self._heads_at = now
        self._flying: dict[int, tuple[Lane, int | None]] = {}
        self._keys: list[Key | int] = []
        self._resent: dict[Key, int] = {}
        self._applying: _Applying | None = None
        self._reach = Reach()
        self._questions = Patience(*_QUESTIONS, now)
        self._frames = Patience(*_FRAMES, now)

    # -- events ------------------------------------------------------------------------------------------------------

    def start(self) -> list[Effect]:
        """The connection is up and authenticated. Who was called lets the caller speak first, and answers in one go."""
        if self._dialled:
            self._claimed = dict(self._hello.holds)
            self._send(self._hello)
            if self._past is not None and self._past.held:
                self.outbox.guess(self._past.held)
                self._fill(self._pulse.began, _AHEAD_OF_ANSWER)
        return self._take()

    def past(self) -> Past | None:
        """What the next link to the peer may begin with."""
        held = self.outbox.surely_held if self._resumed and not self._flying else self.outbox.lanes[0].base
        return remember(self.pacer, held, self._past)

    def received(self, record: bytes, now: float, arrived: float | None = None) -> list[Effect]:
        """A record came in (`arrived`: it has waited since then to be looked at)."""
        self._pulse.heard(now)
        self._arrived = now if arrived is None else arrived
        if self.ended is not None:
            return []
        if self._applying is not None:
            raise RuntimeError("a record was given to the link before the last batch was reported applied")
        try:
            self._handle(decode_frame(record), now)
        except (FrameError, InvalidInputError, UnaskedError, IndexError) as error:
            self._end(Reason.PROTOCOL, f"malformed frame: {error}"[:200], fault=True)
        return self._take()

    def resume(self, cursors: Mapping[int, int]) -> list[Effect]:
        """What is held of the database the peer's hello named (the answer to Greeted)."""
        if self.peer is None:
            raise RuntimeError("the peer has not said hello")
        holds = tuple(sorted(cursors.items()))
        if not self._dialled:
            self._claimed = dict(cursors)
            self._send(replace(self._hello, holds_epoch=self.peer.epoch, holds=holds))
        elif self._hello.holds_epoch != self.peer.epoch:
            self._claimed = dict(cursors)
            self._send(Resume(holds))
        if self.peer.holds_epoch == self._store.epoch:
            self._resume(dict(self.peer.holds))
        return self._take()

    def reoffer(self) -> list[Effect]:
        """The peer may have forgotten what it acknowledged: compare everything anew."""
        for lane in self.outbox.lanes:
            self._compare(lane)
        return self._take()

    def applied(self, number: int, outcomes: Sequence[Outcome], now: float) -> list[Effect]:
        """The batch `number` of the last Apply is durable, with these outcomes."""
        applying = self._applying
        if applying is None or applying.batch.number != number:
            raise RuntimeError(f"batch {number} is not being applied")
        self._applying = None
        try:
            self._settle(applying, outcomes, now)
        except FrameError as error:
            self._end(Reason.PROTOCOL, str(error), fault=True)
        return self._take()

    def poll(self, now: float, room: int | None = None) -> list[Effect]:
        """Time has passed or the replica has changed: send what may be sent, batches up to about `room` bytes.

        What is handed over cannot be overtaken any more, not even by an acknowledgement for which the peer waits.
        """
        if self.ended is None:
            self._check_alive(now)
        if self.ended is None and self._resumed:
            offer = self.copies.offer(self.peer, self.pacer.round_trip)
            if offer is not None:
                self._send(offer)
            if room is None or room > 0:
                self._fill(now, room)
        return self._take()

    def copied(self, record: bytes, now: float) -> list[tuple[Key, Update]]:
        """A datagram brought a copy of an urgent batch: what is to be applied now. Report it `heard`.

        The batch itself follows on the link and is what counts, so nothing is wrong with a copy that cannot be used.
        """
        if not self._resumed or self.ended is not None or not self._frames.take(now):
            return []
        return self.copies.read(record)

    def heard(self, parts: Sequence[tuple[Key, Update]], outcomes: Sequence[Outcome]) -> None:
        """What `copied` told is applied, with these outcomes."""
        for (key, update), outcome in zip(parts, outcomes, strict=True):
            if outcome.verdict in (Verdict.APPLIED, Verdict.STALE):
                self._heard_of(key, update)

    def purged(self, floors: Sequence[tuple[Key, int]]) -> list[Effect]:
        """Parts were forgotten here on the word of another peer: pass it on."""
        if self._resumed and self.ended is None:
            self._send(Purged(tuple((self._store.encode_key(key), floor) for key, floor in floors)))
        return self._take()

    def stop(self, reason: Reason, detail: str = "") -> list[Effect]:
        """End the link on purpose."""
        if self.ended is None:
            if self._resumed and (heads := self._heads()):
                self._send(Pong(0, heads))
            self._send(Goodbye(reason, detail))
            self._end(reason, detail)
        return self._take()

    def deadline(self, now: float, *, room: bool = True) -> float:
        """When `poll` must be called at the latest, if nothing else happens. Without `room` no batch can be sent."""
        at = self._pulse.deadline(greeted=self._resumed)
        due = [lane for lane in self.outbox.lanes if self.outbox.due(lane)] if room and self._resumed else []
        if due and self.pacer.may_send(now, urgent=bool(due[0].klass == 0)):
            at = min(at, *(self.outbox.ready_at(lane) for lane in due))
        elif due and (allowed := self.pacer.next_allowed(now)) is not None:
            at = min(at, allowed)
        return at

    # -- what comes in -----------------------------------------------------------------------------------------------

    def _handle(self, frame: Frame, now: float) -> None:
        if not self._frames.take(now) or (isinstance(frame, Want | Ping | Purged) and not self._questions.take(now)):
            raise FrameError("more frames than an honest node sends")
        if self.peer is None:
            if isinstance(frame, Goodbye):
                self._end(frame.reason, frame.detail)
                return
            if not isinstance(frame, Hello):
                raise FrameError("the first frame is not a hello")
            self.peer = frame
            self._effects.append(Greeted(frame))
            return
        match frame:
            case Resume():
                self._resume(dict(frame.cursors))
            case Batch():
                self._take_batch(frame)
            case Ack():
                self._take_ack(frame, now)
            case Ping():
                self._move_heads(frame.heads)
                self._send(Pong(frame.nonce, self._heads()))
            case Pong():
                # The first answers the hello and comes before any batch that was sent after it can be in its way.
                if (round_trip := self._pulse.answered(frame.nonce, now)) is not None:
                    self.pacer.unloaded(round_trip, now)
                current = [(klass, seq) for klass, seq in self._claimed.items() if frame.current >> klass & 1]
                self._move_heads((*current, *frame.heads))
            case Goodbye():
                self._end(frame.reason, frame.detail)
            case Want():
                self._send(self._trees[frame.klass].answer(frame))
            case Summary():
                self._take_summary(frame)
            case Listing():
                self._take_listing(frame)
            case Purged():
                self._effects.append(Forget(tuple((self._store.decode_key(k), floor) for k, floor in frame.floors)))
            case Express():
                self.copies.wanted = True
                self._effects.append(Offered(frame))
            case Hello():
                raise FrameError("a second hello")

    def _resume(self, cursors: dict[int, int]) -> None:
        if self._resumed:
            raise FrameError("a second resume")
        self._resumed = True
        self.outbox.know()
        for lane in self.outbox.lanes:
            cursor = cursors.get(lane.klass)
            if cursor is not None and cursor <= self._store.head(lane.klass):
                lane.held = lane.base = lane.told = cursor
            else:
                self._compare(lane)
        self.outbox.skim()
        current = sum(1 << lane.klass for lane in self.outbox.lanes if lane.settled and lane.told == lane.held)
        self._send(Pong(0, self._heads(), current))

    def _compare(self, lane: Lane) -> None:
        """Find by summaries what the peer lacks; what changes from now on is sent meanwhile."""
        self.outbox.forget_class(lane)
        lane.held = self._store.head(lane.klass)
        repair = Repair(self._trees[lane.klass], lane.klass)
        wants = repair.begin()
        if wants:
            lane.repair = repair
            for want in wants:
                self._send(want)

    def _take_batch(self, batch: Batch) -> None:
        if batch.reset_refs:
            self._keys.clear()
        for data in batch.new_keys:
            if len(self._keys) >= _MAX_KEYS:
                raise FrameError("too many keys without a reset")
            self._keys.append(self._named(batch.klass, data))
        refs = []
        updates = []
        unknown = []
        for ref, body in batch.items:
            key = self._keys[ref]
            if isinstance(key, int):
                self._reach.owe(batch.klass, key)
                unknown.append(ref)
            elif body:
                refs.append(ref)
                updates.append(self._store.decode(key, body))
            else:
                self._pay(batch.klass, key)
        self._applying = _Applying(batch, tuple(updates), tuple(refs), tuple(unknown))
        self._effects.append(Apply(batch.number, self._applying.updates))

    def _named(self, klass: int, name: bytes) -> Key | int:
        """The part that the peer names, in full or by fingerprint; the fingerprint if there is no such part here."""
        if len(name) != DIGEST:
            return self._store.decode_key(name)
        fingerprint = int.from_bytes(name, "big")
        return self._trees[klass].find(fingerprint) or fingerprint

    def _pay(self, klass: int, key: Key) -> None:
        """The part that was owed has come, or never will."""
        if self._reach.owes(klass):
            self._reach.pay(klass, key, fingerprint_of(self._store.encode_key(key)))

    def _settle(self, applying: _Applying, outcomes: Sequence[Outcome], now: float) -> None:
        batch = applying.batch
        need_full = list(applying.unknown)
        need_certificate: list[int] = []
        purged: list[tuple[int, int]] = []
        for ref, update, outcome in zip(applying.refs, applying.updates, outcomes, strict=True):
            key = self._keys[ref]
            if isinstance(key, int):
                raise RuntimeError("an update of an unknown part was applied")
            match outcome.verdict:
                case Verdict.NEED_FULL:
                    self._reach.owe(batch.klass, key)
                    need_full.append(ref)
                    continue
                case Verdict.NEED_CERTIFICATE:
                    self._reach.owe(batch.klass, key)
                    need_certificate.append(ref)
                    continue
                case Verdict.PURGED:
                    purged.append((ref, outcome.floor))
                case Verdict.REJECTED:
                    self._effects.append(Rejected(key, outcome.reason))
                case Verdict.APPLIED | Verdict.STALE:
                    self._heard_of(key, update)
            self._pay(batch.klass, key)
        self._move(batch.klass, batch.through, whole=not batch.more)
        heads: Heads = ()
        if now - self._heads_at >= _HEADS_EVERY:
            heads = self._heads()
            self._heads_at = now
        held = min(60_000, int(1000 * (now - self._arrived)))
        self._send(Ack(batch.number, tuple(need_full), heads, tuple(need_certificate), tuple(purged), held))

    def _heard_of(self, key: Key, update: Update) -> None:
        """What the peer sent need not be sent back; what is here may be newer."""
        version = self._store.version_of(update)
        if version is not None:
            self.outbox.peer_has(key, version)

    def _take_ack(self, ack: Ack, now: float) -> None:
        if ack.number not in self._flying:
            raise FrameError("ack of a batch that was not sent")
        lane, _ = self._flying[ack.number]
        for number in [n for n in self._flying if n <= ack.number]:
            sender, through = self._flying.pop(number)
            if through is not None and not ack.need_full:
                sender.base = max(sender.base, through)
        self.pacer.acked(ack.number, now, ack.held_ms / 1000)
        for ref in ack.need_full:
            self._resend(lane, self.outbox.peer_lacks(ref))
        for ref in ack.need_certificate:
            key = self.outbox.peer_lacks(ref)
            certificate = self._store.certificate_key(key)
            if certificate is not None:
                lane.forced[certificate] = None
            self._resend(lane, key)
        if ack.purged:
            self._effects.append(Forget(tuple((self.outbox.key_of(ref), floor) for ref, floor in ack.purged)))
        self._move_heads(ack.heads)

    def _resend(self, lane: Lane, key: Key) -> None:
        """Send the part whole; but a peer that can never take it must not be sent it for ever."""
        times = self._resent.get(key, 0) + 1
        if times <= _MAX_RESENDS:
            self._resent[key] = times
            lane.forced[key] = None

    def _take_summary(self, summary: Summary) -> None:
        lane = self.outbox.lanes[summary.klass]
        if lane.repair is None:
            raise UnaskedError("a summary that was not asked for")
        wants = lane.repair.summary(summary)
        for want in wants:
            self._send(want)
        self._repaired(lane)

    def _take_listing(self, listing: Listing) -> None:
        lane = self.outbox.lanes[listing.klass]
        if lane.repair is None:
            raise UnaskedError("a listing that was not asked for")
        for key, version in lane.repair.listing(listing):
            self.outbox.peer_has(key, version)
        self._repaired(lane)

    def _repaired(self, lane: Lane) -> None:
        if lane.repair is not None and lane.repair.done:
            self.outbox.add(lane, sorted(lane.repair.lacks, key=self._store.seq))
            lane.repair = None

    def _move_heads(self, heads: Heads) -> None:
        for klass, seq in heads:
            self._move(klass, seq, whole=True)

    def _move(self, klass: int, seq: int | None, *, whole: bool) -> None:
        """The peer says that with all it sent we have everything up to `seq`."""
        reached = self._reach.move(klass, seq, whole=whole)
        if reached is None or self.peer is None:
            return
        self._effects.append(MoveCursor(self.peer.epoch, klass, reached))
        if self._reach.take_caught_up():
            self._effects.append(CaughtUp())

    # -- what goes out -----------------------------------------------------------------------------------------------

    def _fill(self, now: float, room: int | None) -> None:
        self.outbox.skim()
        while room is None or room > 0:
            urgent = self.outbox.due(self.outbox.lanes[0])
            turn = self.outbox.choose(now, self.pacer.batch_limit(urgent=urgent))
            # While commands wait, a class that takes its share among them may do what they may.
            if turn is None or not self.pacer.may_send(now, urgent=urgent):
                return
            lane, limit = turn
            batch = self.outbox.build(lane, limit, now, may_reset=not self._flying)
            if batch is None:
                if self.outbox.due(lane):
                    return
                continue
            self._flying[batch.number] = (lane, batch.through)
            data = encode_frame(batch)
            self.pacer.sent(len(data), now, batch.number)
            self._effects.append(Send(data))
            if lane.klass == 0 and not self.outbox.due(lane):
                copies = self.copies.make(((self.outbox.key_of(ref), body) for ref, body in batch.items), now)
                self._effects += map(Ahead, copies)
            if room is not None:
                room -= len(data)

    def _heads(self) -> Heads:
        lanes = self.outbox.untold()
        for lane in lanes:
            lane.told = lane.held
        return tuple((lane.klass, lane.held) for lane in lanes)

    def _check_alive(self, now: float) -> None:
        sign = self._pulse.check(now, greeted=self._resumed)
        if sign is Sign.ASK:
            self._send(Ping(self._pulse.asked(now), self._heads()))
        elif sign is Sign.NO_HELLO:
            self._end(Reason.PROTOCOL, sign.value, fault=True)
        elif sign is Sign.SILENT:
            self._end(Reason.UNSPECIFIED, f"{sign.value} for {self._pulse.dead_after:.0f} s", fault=True)

    def _send(self, frame: Frame) -> None:
        data = encode_frame(frame)
        self.pacer.charge(len(data))
        self._effects.append(Send(data))

    def _end(self, reason: Reason, detail: str, *, fault: bool = False) -> None:
        self.ended = End(reason, detail, fault)
        self._effects.append(self.ended)

    def _take(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects
