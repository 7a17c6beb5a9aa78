"""What trustlens attaches to torch: step hooks, gradient scaling, and the failsafe around them."""
