"""What a run leaves for people: metrics, their history, figures and the report."""
