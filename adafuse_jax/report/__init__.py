"""What a person reads after a run: a summary and figures."""
