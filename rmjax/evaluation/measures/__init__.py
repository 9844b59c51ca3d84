"""What an evaluation reports of the scores, a module per kind of label: metrics by name, and sections of the report."""
