"""A plan held to one process: loss and every gradient over several steps.

``verify`` starts processes (``job``); ``rank`` trains under the plan beside the ``reference``; ``compare``
and ``report`` say how far they are apart, ``rounding`` how far they may be in 16 bits.
"""
