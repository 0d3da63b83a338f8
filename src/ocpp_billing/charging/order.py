"""The order in which people read sessions: by StEvE's number, the newest first.

StEvE numbers transactions as they reach it and never changes a number, so pages that go by it show nothing
twice and leave nothing out while sessions arrive, stop or change their state. Our own number is no order:
the first synchronization reads the newest windows first. Nor is the stop: it comes late, and is corrected.
"""

# Of several with one number (StEvE was restored) the one that we heard of last comes first.
NEWEST_FIRST_SQL = "s.steve_id DESC, s.id DESC"
NEWEST_FIRST = ("-steve_id", "-pk")

# What comes after the session with our number `before`.
AFTER_SQL = """(s.steve_id, s.id) <
    ((SELECT b.steve_id FROM charging_session b WHERE b.id = %(before)s), %(before)s)"""
