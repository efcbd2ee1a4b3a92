"""Which packets of a connection have arrived, for acknowledgements. Pure."""

from __future__ import annotations

from peat_p2p.swarm.bearers.frames import MAX_RANGES

_KEPT_RANGES = 2 * MAX_RANGES


class Arrivals:
    """Packet numbers, as ranges with both ends included; only so many of them are remembered."""

    def __init__(self) -> None:
        self._ranges: list[list[int]] = []  # ascending

    def note(self, number: int) -> bool:
        """Remember a packet number; False when it has been here before."""
        ranges = self._ranges
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
            return True
        if not ranges or number > ranges[-1][1]:
            ranges.append([number, number])
            if len(ranges) > _KEPT_RANGES:
                del ranges[0]
            return True
        for place in range(len(ranges) - 1, -1, -1):
            low, high = ranges[place]
            if low <= number <= high:
                return False
            if number > high:
                joins = place + 1 < len(ranges) and ranges[place + 1][0] == number + 1
                if number == high + 1:
                    ranges[place][1] = number
                    if joins:
                        ranges[place][1] = ranges.pop(place + 1)[1]
                elif joins:
                    ranges[place + 1][0] = number
                else:
                    ranges.insert(place + 1, [number, number])
                return True
        return False  # older than all we remember: long since acknowledged or sent again

    def forget_before(self, number: int) -> None:
        """Ranges that end before a packet that has arrived need not be told of any more."""
        while self._ranges and self._ranges[0][1] < number:
            del self._ranges[0]

    def newest(self, most: int) -> list[tuple[int, int]]:
        """So many ranges at most, the newest first."""
        return [(low, high) for low, high in reversed(self._ranges[-most:])]
