"""How fast things are here, on the user's own data, beside what else could be used."""
