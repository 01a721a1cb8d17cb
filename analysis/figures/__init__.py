"""The figures of the papers and of a study, drawn in one style (`analysis.figures.style`)."""
