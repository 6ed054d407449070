"""The ``autopar`` command: a file for each verb, and what several of them share.

``main`` finds the verb, prints its result and turns errors into one line and an exit status.
"""
