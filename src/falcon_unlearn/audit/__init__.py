"""Find out what can still be got out of an unlearned model: attacks, scoring, statistics, verdict."""
