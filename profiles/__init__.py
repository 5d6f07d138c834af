"""Memory tiers: one TOML file each, overrides of the one configuration (see engine/config.py)."""
