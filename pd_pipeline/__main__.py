"""`python -m pd_pipeline`."""

from pd_pipeline.cli import app

if __name__ == "__main__":
    app()
