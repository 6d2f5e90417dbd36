"""What the checker keeps of streams and keys: order, and who holds what."""

from __future__ import annotations

from heapq import heappop, heappush

from anymq.testing.findings import Judgement
from anymq.testing.history import Event


class Order:
    """Order within a stream: what one producer sent with one key, seen by one subscription."""

    def __init__(self, found: Judgement, ordered: bool) -> None:
        """`ordered`: messages without a key keep their order among themselves, too."""
        self.found = found
        self.ordered = ordered
        self.keys: set[tuple[str, str | None]] = set()
        self.newest: dict[tuple[str, str, str | None], Event] = {}  # highest seq, first deliveries
        self.seqs: dict[tuple[str, str | None], tuple[str, int]] = {}  # id -> producer, seq
        self.back: dict[tuple[str, str, str | None], list[int]] = {}  # given back, not yet again
        self.newest_back: dict[tuple[str, str | None], Event] = {}  # the latest of a key

    def first(self, event: Event, sent: Event | None) -> None:
        if sent is None or sent.seq is None:
            return
        self.keys.add((event.where, event.key))
        self.seqs[(event.where, event.id)] = (sent.who, sent.seq)
        stream = (event.where, sent.who, sent.key)
        newest = self.newest.get(stream)
        before = self._seq(newest)
        if before is not None and before > sent.seq:
            self.found.add("inversion", newest, event, worst=before - sent.seq)
        else:
            self.newest[stream] = event

    def delivered(self, event: Event) -> None:
        self._overtakes(event, event)

    def acked(self, event: Event, delivery: Event) -> None:
        self._overtakes(event, delivery)

    def went_back(self, event: Event, delivery: Event) -> None:
        if delivery.key is not None or self.ordered:
            self.newest_back[delivery.where, delivery.key] = event
        self.left(delivery)

    def left(self, delivery: Event) -> None:
        """It is not with its consumer any more, and not handled."""
        seq = self._seq(delivery)
        if seq is not None and delivery.key is not None:
            waiting = self.back.setdefault(self._stream(delivery), [])
            if seq not in waiting:  # given back too late, and then left
                heappush(waiting, seq)

    def taken_along(self, delivery: Event) -> bool:
        """Was one of its key given back by its consumer while it was held?"""
        back = self.newest_back.get((delivery.where, delivery.key))
        return back is not None and back.who == delivery.who and back.at >= delivery.at

    def _overtakes(self, event: Event, delivery: Event) -> None:
        """Is an earlier message of this key given back and not yet delivered again?"""
        if delivery.key is None:
            return
        seq, waiting = self._seq(delivery), self.back.get(self._stream(delivery))
        if seq is None or not waiting:
            return
        if event is delivery and seq in waiting[:1]:
            heappop(waiting)
        elif waiting[0] < seq:
            self.found.add("overtaking", event)
        elif event is delivery and seq in waiting:  # an earlier one came out of turn
            waiting.remove(seq)

    def _stream(self, delivery: Event) -> tuple[str, str, str | None]:
        producer, _ = self.seqs.get((delivery.where, delivery.id), ("", 0))
        return (delivery.where, producer, delivery.key)

    def _seq(self, delivery: Event | None) -> int | None:
        if delivery is None:
            return None
        return self.seqs.get((delivery.where, delivery.id), ("", None))[1]


class Holders:
    """Who holds unsettled deliveries of which key."""

    def __init__(self, found: Judgement) -> None:
        self.found = found
        self.held: dict[tuple[str, str], dict[str, dict[str | None, Event]]] = {}
        self.of: dict[str, set[tuple[str, str]]] = {}  # the keys that a consumer ever held

    def take(self, event: Event) -> None:
        if event.key is None:
            return
        holders = self.held.setdefault((event.where, event.key), {})
        for who, deliveries in holders.items():
            self._expire(deliveries, event.at)
            if who != event.who and deliveries:
                self.found.add("concurrent", next(iter(deliveries.values())), event)
        holders.setdefault(event.who, {})[event.id] = event
        self.of.setdefault(event.who, set()).add((event.where, event.key))

    def drop(self, delivery: Event) -> None:
        if delivery.key is not None:
            holders = self.held.get((delivery.where, delivery.key), {})
            holders.get(delivery.who, {}).pop(delivery.id, None)

    def drop_lane(self, delivery: Event) -> None:
        """Given back, and with it what its consumer holds of its key."""
        if delivery.key is not None:
            self.held.get((delivery.where, delivery.key), {}).pop(delivery.who, None)

    def gone(self, who: str) -> None:
        for key in self.of.pop(who, ()):
            self.held[key].pop(who, None)

    def _expire(self, deliveries: dict[str | None, Event], now: float) -> None:
        """The oldest first: those whose lease has run out are not held any more."""
        while deliveries:
            oldest = next(iter(deliveries))
            until = deliveries[oldest].until
            if until is None or until > now:
                return
            del deliveries[oldest]
