"""The figures of the report as they are drawn: the only code that knows Matplotlib."""
