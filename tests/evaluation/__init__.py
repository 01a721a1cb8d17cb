"""Tasks, held-out text, documents, protocols, results, and checks beforehand."""
