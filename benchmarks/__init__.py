"""What `make bench` runs: our figures as ratios to a peer's, both taken in turn in one run on one machine."""
