"""The catalogue: which base models and adapters exist, who published them, and what fits what. Knows no devices."""
