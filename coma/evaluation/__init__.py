"""What frozen features are worth: nearest neighbours, a linear probe, their effective rank."""
