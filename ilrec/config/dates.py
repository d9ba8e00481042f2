"""The dates of a time split, as `split_time` spells them."""

from __future__ import annotations

from datetime import datetime, timezone


def split_dates(text: str) -> list[int]:
    """Seconds since 1970 of one or two dates that a comma separates, the earlier one first.

    A date is ISO 8601, with or without a time of day: 2023-01-01, 2023-01-01T12:00. It is in UTC
    unless it names its offset. Raises ValueError for anything else.
    """
    dates = []
    for part in text.split(","):
        moment = datetime.fromisoformat(part.strip())
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        # Time stamps are compared as whole seconds.
        if moment.microsecond:
            raise ValueError(f"{part.strip()} has a fraction of a second")
        dates.append(int(moment.timestamp()))
    if len(dates) > 2 or dates != sorted(set(dates)):
        raise ValueError("one date, or two, the earlier one first")
    return dates
