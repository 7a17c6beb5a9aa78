"""Which layers of a run behave unlike their own past: a simple rule that ranks them.

Below both sides: it takes arrays and needs numpy only, so that a recorder can feed it while it
records, and :mod:`trustlens.analysis` afterwards.

1. Each layer is compared only with itself, once it has 32 recorded steps. Its signals are its
   update ratio ‖Δw‖/‖w‖ and its direction ratio r₂/r₁ (the update ratio at rate 1, which still
   changes where LAMB or LARS hold the first one fixed). The rate that the layers have in common
   is divided out of the first: a warm-up or schedule is no fault, a jump of one group's rate is.
2. Baseline: the median of the signal's logarithm over the second half of the layer's past, and
   a spread: from the median to the 90 % point, as of a normal distribution, at least 0.1. Steps
   of an alarm are excluded, and during an alarm the baseline is frozen. As the window grows with
   the past, a trend that follows any power of time stays below 2 spreads.
3. "exploding": 10 spreads above the baseline; or a weight norm 6 times its 10 % point in
   that window, which exponential growth reaches and no power of time up to the third.
   "vanishing": a thousandth of its 90 % point in that window, for 10 steps. "frozen":
   an update of 0 likewise, or 10 gradients of 0 after 10, and half of all, that were not.
   "not finite": an element of g or w, or a norm, is NaN or infinite; this needs no past.
4. Score: the logarithm of the departure over that of the alarm's level. An alarm begins where
   the score last rose above a half. The onset decides who is to blame: alarms that overlap in
   time are one event, events are ranked by the worst score in them, layers within one by their
   onset.

Not seen: a layer that was wrong from its first steps on, since it has no other past, and faults
that leave the norms unchanged, as a gradient of the wrong sign does.
"""
