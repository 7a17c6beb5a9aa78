"""Find layers of a run that deviate from their own past, and rank them.

This package takes arrays and needs numpy only, so that both a recorder (while it records) and
:mod:`trustlens.analysis` (afterwards) can use it.

1. Signals. Each layer is compared only with itself, from its 33rd recorded step on. Its signals are
   its update ratio ‖Δw‖/‖w‖ and its direction ratio r₂/r₁, which is the update ratio at learning
   rate 1 and still changes if LAMB or LARS keep the first ratio constant. The update ratio is
   divided by the median learning rate of all layers: a warm-up or schedule is no anomaly, a jump of
   one group's rate is one.
2. Baseline. The median of the signal's logarithm over the second half of the layer's past, and a
   spread: the distance from the median to the 90 % point, divided by that distance in a standard
   normal distribution, at least 0.1. Steps with an alarm are excluded, and during an alarm the
   baseline does not change. Because the window grows with the past, a signal that follows any power
   of time stays below 2 spreads.
3. Kinds. "exploding": 10 spreads above the baseline, or a weight norm 6 times its 10 % point in the
   window, which exponential growth reaches but no power of time up to the third. "vanishing": below
   a thousandth of the 90 % point in the window, for 10 steps. "frozen": an update of 0 for
   10 steps, or a gradient of 0 for 10 steps after it was nonzero in at least 10, and in at least
   half, of the earlier steps. "not finite": an element of g or w, or a norm, is NaN or infinite;
   this needs no past.
4. Score. The logarithm of the departure divided by the logarithm at which an alarm begins, so that
   1 is the alarm threshold. The onset of an alarm is the step at which the score last rose above
   0.5. Alarms that overlap in time form one event. Events are ranked by their highest score, the
   layers of an event by onset.

Not detected: a layer that is wrong from its first steps on, because it has no other past, and
faults that leave the norms unchanged, such as a gradient with the wrong sign.
"""
