"""Command lines of tests, written as fields."""


def flags(**fields: object) -> list[str]:
    """["--name", "value"] of each field, one after another."""
    words = []
    for name, value in fields.items():
        words += [f"--{name}", str(value)]
    return words
