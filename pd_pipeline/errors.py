"""The one error that is the user's to mend; everything else is a defect of the program."""


class PipelineError(ValueError):
    """Says what was wrong, where, and what to do; the command line prints it without a traceback."""
