"""One HTML page of a folder, from tables, figures and the paper's comparison."""
