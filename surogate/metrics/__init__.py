"""The numbers that a run writes down: what each is called and means, and the file that holds them. No torch."""
