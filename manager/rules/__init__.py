"""Decisions: values and the present time in, values out. No I/O, no SQL, no clock, no logging."""
