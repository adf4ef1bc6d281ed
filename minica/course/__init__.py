"""The course around the notebooks: how they run, their sizes, plots and widgets."""
