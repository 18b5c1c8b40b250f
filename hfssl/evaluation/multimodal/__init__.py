"""Two encoders that were trained together: retrieval both ways, and classes told apart by their names."""
