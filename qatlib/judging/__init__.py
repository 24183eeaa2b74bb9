"""From kept scores to tables and verdicts."""
