"""`python -m diptych.cli`, as torchrun starts it."""

from diptych.cli.main import main

if __name__ == "__main__":
    main()
