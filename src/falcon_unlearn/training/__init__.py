"""Steps 2 and 3: the loop, its guards, and one session around it."""
