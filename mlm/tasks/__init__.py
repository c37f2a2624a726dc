"""What a run can train: one task each, chosen from a table. Pretraining is the first."""
