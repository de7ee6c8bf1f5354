"""How much of something is done, how fast it goes, and how long it will take."""

from __future__ import annotations

from collections import deque

RATE_SECONDS = 60.0  # that a rate covers; longer if it would have fewer than MIN_MARKS marks
MIN_MARKS = 8
APART = 0.5  # seconds between two marks
SURE_SHARE, SURE_SECONDS, SURE_ITEMS = 0.03, 15.0, 2  # estimate after a share of the total, or a time
LATE = 3.0  # times the usual interval between reports, after which the estimate grows


class Meter:
    """Counts items and tokens.

    The clock starts with the first report: neither the loading before it nor the items in it say anything about the
    speed. Nor do items that cost no tokens: they were on disk, or did not fit.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done, self.tokens = total, 0, 0
        self._worked = 0
        self._marks: deque[tuple[float, int, int]] = deque()  # time, items that took work, tokens
        self._last = 0.0

    def add(self, done: int, tokens: int | None, now: float) -> None:
        """Count items; `tokens` is None where items have none. Negative counts take back the work of a dead process."""
        self.done += done
        self.tokens += tokens or 0
        if tokens == 0:
            return
        self._worked += done
        self._last = now
        if done < 0:
            self._marks.clear()
        if not self._marks or now - self._marks[-1][0] >= APART:
            self._marks.append((now, self._worked, self.tokens))
        while len(self._marks) > MIN_MARKS and now - self._marks[1][0] >= RATE_SECONDS:
            self._marks.popleft()

    @property
    def worked(self) -> bool:
        """Whether any item so far took work."""
        return bool(self._marks)

    def tokens_per_second(self, now: float) -> float | None:
        """The recent rate; None if too little is known."""
        seconds = self._until(now) - self._marks[0][0] if self._marks else 0.0
        tokens = self.tokens - self._marks[0][2] if self._marks else 0
        return tokens / seconds if seconds >= APART and tokens > 0 else None

    def left(self, now: float) -> float | None:
        """Estimated seconds until all is done; None while too little is done for an estimate."""
        missing = self.total - self.done
        if missing <= 0:
            return 0.0
        if not self._marks:
            return None
        start, before, _ = self._marks[0]
        worked, end = self._worked - before, self._until(now)
        if worked < SURE_ITEMS or (worked < SURE_SHARE * self.total and end - start < SURE_SECONDS):
            return None
        return max(0.0, missing * (end - start) / worked - (now - end))

    def _until(self, now: float) -> float:
        """The end of the time that a rate covers: the last report, or `now` if the next is long overdue."""
        usual = (self._last - self._marks[0][0]) / max(1, len(self._marks) - 1)
        return now if now - self._last > LATE * max(usual, APART) else self._last


def duration_text(seconds: float) -> str:
    """A time in words: 40 s, 3 min, 1 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
