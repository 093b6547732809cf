"""What every part may use and what knows no part: the numbers that a machine is fast in."""
