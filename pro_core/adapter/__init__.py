"""The preference adapter: prompt -> weights on the simplex (Eq 6-8), how it is fitted, and what it is compared with."""
