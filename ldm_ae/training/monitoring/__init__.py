"""Monitoring of a run: its log, alarms, the guard against bad steps, signals."""
