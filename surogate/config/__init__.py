"""Configuration without torch: the flat keys a user types, their checks, and the nested form they lower into."""
