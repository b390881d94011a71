"""Which model for this task: candidates (what is asked for) -> reading, evidence (what is known) -> ranking, words."""
