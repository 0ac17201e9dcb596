"""Results of a run: metrics, their history, figures and the report."""
