"""Pipeline schedules as lists of actions for each rank, and a simulator that plays them.

``actions`` picks the list of a schedule (``flushed``, ``interleaved``, ``zero_bubble``); the runtime plays
the same.
"""
