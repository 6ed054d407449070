"""How tensors may lie on the tensor axis, and what every operator can do with shards.

``placement`` and ``words`` name it, ``rule`` is one way of running an operator (``rules`` holds them by
family), ``propagation`` carries placements through a block, ``redistribution`` names the collectives
between two of them.
"""
