"""What to show next: the catalogue, what was learned across users, and the ranking of the one by the other."""
