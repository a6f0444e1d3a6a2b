"""The quickstart: real facts, a real model, and a score before and after; `surogate quickstart` runs it."""
