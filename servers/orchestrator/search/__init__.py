"""Search by sound."""
