"""A window of a reconciliation, cut into pieces."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ocpp_billing.reconcile.pieces import LONGEST, MOST_ROWS, Piece, cut

BEGIN = datetime(2026, 3, 1, 0, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)


def at(hours):
    return BEGIN.replace(minute=0) + hours * HOUR


@given(
    st.integers(1, 60 * 24),
    st.dictionaries(st.integers(-50, 70 * 24).map(at), st.integers(1, MOST_ROWS * 2), max_size=60),
)
def test_pieces_make_up_the_window_and_none_is_longer_than_a_week(hours, rows):
    end = BEGIN + hours * HOUR
    pieces = list(cut(BEGIN, end, rows))
    assert pieces[0].begin == BEGIN
    assert pieces[-1].end == end
    assert all(one.end == other.begin for one, other in pairwise(pieces))
    assert all(timedelta() < piece.end - piece.begin <= LONGEST for piece in pieces)
    for piece in pieces:
        inside = [hour for hour in rows if piece.begin <= hour < piece.end]
        assert len(inside) < 2 or sum(rows[hour] for hour in inside) <= MOST_ROWS


def test_busy_hours_end_a_piece():
    rows = {at(1): MOST_ROWS // 2, at(2): MOST_ROWS // 2, at(3): 1, at(9): MOST_ROWS}
    assert list(cut(BEGIN, at(12), rows)) == [
        Piece(BEGIN, at(3)),
        Piece(at(3), at(9)),
        Piece(at(9), at(12)),
    ]
