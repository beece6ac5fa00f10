"""End-to-end refinement: the calibration samples used once more, by back-propagation and without labels.

A refinement (registered in :mod:`baselines.refinements`) changes a tower so that its outputs come nearer to
each task's own expert's; what it may change is what it declares.
"""
