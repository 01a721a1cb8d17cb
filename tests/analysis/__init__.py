"""Tables, figures, reports, notebooks, claims."""
