"""What the user wants: frozen values, and as TOML."""
