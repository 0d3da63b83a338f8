"""How far the clocks of chargers are believed. Pure."""

from datetime import timedelta

# A charger's clock may run ahead of ours by so much before its times are not believed.
CLOCK_TOLERANCE = timedelta(minutes=5)
# A start so long before the latest start among lower ids is a clock that was reset (1970), not an
# offline charger: StEvE gives ids in the order of arrival, and a charger's queue may be weeks old.
CLOCK_LAG = timedelta(days=60)
