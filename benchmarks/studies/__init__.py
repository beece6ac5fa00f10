"""Measurements of epmq itself, run by hand: speed, memory, tuning, the gate. Nothing imports them."""
