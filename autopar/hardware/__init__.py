"""Devices, links and clusters as numbers: read from cost-model and cluster files, or from the shipped
catalogue.

``device``, ``link`` and ``cluster`` are the data; ``read_device`` and ``read_cluster`` read it, strictly,
by the ``keys`` and their ``kinds``; ``topology`` says how the groups of an axis lie over nodes.
"""
