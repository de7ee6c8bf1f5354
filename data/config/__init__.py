"""Configuration: sections of the TOML, reading them, their documentation."""
