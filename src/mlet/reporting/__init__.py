"""How findings are shown: one look for all figures, pages and texts."""
