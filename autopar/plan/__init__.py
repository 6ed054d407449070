"""The plan: reading, writing, merging of its files, and what they may say.

A plan fixes some decisions and leaves the rest to the planner. Besides a decision itself, a line may fix only
a part of it:

* ``mesh: {tensor: "<=4"}``, ``batch: {micro: ">=2"}``, ``zero: 1-2``: a bound in place of a number (degrees
  of the mesh, ``batch.micro``, ``zero``, ``shard_group``, ``pipeline.virtual``); both ends are included.
* ``pipeline: {blocks_per_stage: {0: "<=10", last: 2-8, "*": ">=2"}}``: how many blocks stages may hold, by
  the number of the stage (from 0), ``last``, a range such as ``0-3``, or ``*`` for all; every line that names
  a stage holds for it. One bound in place of the mapping is for all stages.
* ``recompute: {blocks.0-5: [selective, full]}``: these layers recompute, in whichever of these ways is
  better; ``selective | full`` says the same.
* ``tensor: {blocks.*.attn: replicate}`` without a line for ``"*"``: this module stays replicated, and all
  others are the planner's.
"""
