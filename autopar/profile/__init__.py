"""Measures the machine that it runs on, and models on it; writes what it finds as a cost model."""
