"""The command `pd-pipeline`, and `python -m pd_pipeline`."""


def main() -> None:
    """Run the command; asked to stop while Python is still reading the program, leave without a traceback."""
    try:
        from pd_pipeline.cli import app
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    app()


if __name__ == "__main__":
    main()
