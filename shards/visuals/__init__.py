"""Pages and contact sheets: one style, and pictures in rows."""
