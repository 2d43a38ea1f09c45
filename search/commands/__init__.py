"""The commands of `shoal`, grouped by what they need; `search.cli` wires them into one program."""
