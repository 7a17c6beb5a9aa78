"""What a run's files cost: size, writing, queries."""
