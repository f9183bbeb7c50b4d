"""Reuse as a multi-step ODE solver: calibrated patterns, extrapolated and corrected velocities (docs/multistep.md)."""
