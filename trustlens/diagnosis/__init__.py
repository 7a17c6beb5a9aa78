"""Find layers of a run that deviate from their own past, and rank them.

This package takes arrays and needs numpy only. A recorder can use it during the recording, and
:mod:`trustlens.analysis` uses it for recorded runs.

1. Signals. Each layer is compared only with its own earlier steps, from its 33rd recorded step on.
   The signals are the update ratio ‖Δw‖/‖w‖ and the direction ratio r₂/r₁. The direction ratio is
   the update ratio at learning rate 1; it changes even if LAMB or LARS keeps the update ratio
   constant. The update ratio is divided by the median learning rate of all layers, so that a
   warm-up or schedule raises no alarm, but a jump of one parameter group's learning rate does.
2. Baseline. The window is the second half of the layer's earlier steps. The baseline is the median
   of the signal's logarithm in the window. The spread is the distance from the median to the 90th
   percentile, divided by the same distance in a standard normal distribution, and at least 0.1.
   Steps with an alarm are excluded, and during an alarm the baseline does not change. Because the
   window grows with the number of steps, a signal that follows any power of time stays below
   2 spreads.
3. Kinds of alarms. "exploding": the signal is 10 spreads above the baseline, or the weight norm is
   6 times its 10th percentile in the window. Exponential growth reaches this factor; growth with a
   power of time up to the third does not. "vanishing": the update ratio is below a thousandth of
   its 90th percentile in the window, for 10 steps. "frozen": the update is 0 for 10 steps, or the
   gradient is 0 for 10 steps after it was nonzero in at least 10, and in at least half, of the
   earlier steps. "not finite": an element of g or w, or a norm, is NaN or infinite; this kind needs
   no earlier steps.
4. Score. The distance of the signal's logarithm from its baseline or percentile, divided by the
   distance at which an alarm begins: 1 is the alarm threshold. An alarm begins (its onset) at the
   step at which the score last rose above 0.5. Alarms that overlap in time form one event. Events
   are ranked by their highest score, the layers of an event by onset.

Not detected are layers that are wrong from their first steps on, because those steps are all that
they can be compared with, and faults that leave the norms unchanged, such as a gradient with the
wrong sign.
"""
