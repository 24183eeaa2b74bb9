"""What is computed and kept: trainings, scores, attacks, sweeps."""
