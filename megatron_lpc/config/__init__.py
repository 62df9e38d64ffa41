"""Options of a run: the schema, the way from YAML and flags to a `Config`, and the rules between options."""
