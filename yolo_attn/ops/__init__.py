"""Exact fast algorithms that blocks share; they know torch only."""
