"""Networks: made from a configuration, their heads, what is frozen, averaged or wrapped."""
