"""Find layers of a run that deviate from their own past, and rank them.

This package takes arrays and needs numpy only. A recorder can use it during the recording, and
:mod:`trustlens.analysis` uses it for recorded runs.

1. Signals. Each layer is compared only with its own earlier steps, from its 33rd recorded step on.
   The signals are the update ratio ‖Δw‖/‖w‖ and the direction ratio r₂/r₁. The direction ratio is
   what the update ratio would be with a learning rate of 1 and no trust ratio. It therefore
   changes even if LAMB or LARS keeps the update ratio constant. The update ratio is divided by the
   median learning rate of all layers, so that a warm-up or schedule raises no alarm, but a jump of
   one parameter group's learning rate does.
2. Baseline. The window is the second half of the layer's earlier steps. The baseline is the median
   of the signal's logarithm in the window. The spread is the distance from the median to the 90th
   percentile, divided by the same distance in a standard normal distribution, and at least 0.1.
   Steps with an alarm are excluded, and during an alarm the baseline does not change. Because the
   window is always the second half, a signal that is proportional to a power of the step number
   stays less than 2 spreads above the baseline.
3. Kinds of alarms. "exploding": the signal is 10 spreads above the baseline, or the weight norm is
   6 times its 10th percentile in the window. Exponential growth reaches this factor; growth as a
   power of the step number does not, up to an exponent of 2.7. "vanishing": the update ratio is
   below a thousandth of its 90th percentile in the window, for 10 steps. "frozen": the update is 0
   for 10 steps, or the gradient is 0 for 10 steps although it was nonzero in at least 10 of the
   earlier steps and in at least half of them. "not finite": an element of g or w, or a norm, is
   NaN or infinite; this kind needs no earlier steps.
4. Score. The score is the distance of the signal's logarithm from the baseline, or from the
   percentile named in 3, divided by the distance that raises an alarm. So 1 is the alarm
   threshold. A gradient that stays 0 scores 1, and a value that is not finite scores infinity. An
   alarm consists of consecutive steps with scores of at least 0.5, of which at least one reaches
   1. The first of these steps is the onset of the alarm. Alarms that overlap in time form one
   event. Events are ranked by their highest score, the layers of an event by onset.

Two kinds of faults are not detected. A layer that is wrong from its first step on has no correct
steps to be compared with. A fault that leaves the norms unchanged, such as a gradient with the
wrong sign, does not change the signals.
"""
