"""Code that `optim` and `recording` share: the recorded sums, C headers, Triton functions."""
