"""Measurements that stand beside the tests; each prints its figures as JSON in its last line."""
