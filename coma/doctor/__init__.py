"""`coma doctor`: is this machine ready? `examine` runs the checks of `machine` and `software`, each on its own."""
