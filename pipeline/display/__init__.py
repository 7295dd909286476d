"""What pages, tables and figures are made of: results, panels, plots, pictures, LaTeX and text."""
