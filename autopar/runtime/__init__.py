"""A plan at work: each rank builds its part of the model, and trains.

* ``parallel`` is the way in, ``parallel_model`` what a training script holds. A run begins with ``launch``,
  ``meeting``, ``agreement`` and ``mesh``; ``capture_apart`` reads the model, ``assemble`` builds the rank's
  part.
* Starting weights: ``initialise``, ``recording``, ``randomness``, ``seeds``, ``state_source``, ``fill``.
* A step: ``script`` and ``messages`` say what waits for what, ``executor`` plays it, on the ``stage`` (its
  ``block_module``, ``routes``) in its surroundings (``held_stage``, ``links``, ``crossings``); what it needs
  of autograd, ``grad_modes``.
* Gradients and updates: ``replicas``, ``overlap``, ``buckets``, ``gradients``, ``loss_scale``, ``masters``.
* Buffers that data ranks would carry on apart: ``carried_buffers``, ``shared_buffers``.
* Driven like a module: ``driving``, ``outputs``, ``output_passes``.
* State as a whole: ``checkpoint``, ``checkpoint_folders``, ``whole_tensors``, ``whole_state``, ``gather``,
  ``export``; how it lies in memory: ``holdings``, ``storage``, ``trained``.
* When something fails: ``watchdog``, ``reports``, ``same_outcome``.
"""
