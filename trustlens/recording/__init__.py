"""The write side, from `optimizer.step()` to the files: torch and pyarrow only."""
