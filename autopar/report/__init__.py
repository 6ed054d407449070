"""What people are shown: text for the terminal, one HTML page, traces for Perfetto. No torch.

``text``, ``explained``, ``module`` and ``lanes`` are for the terminal; ``page`` is the report, a file for
each of its figures; ``trace`` writes the timeline.
"""
