"""`python -m hfssl mlm`, `accelerate launch -m hfssl mlm`: the same as `hfssl mlm`."""

from .cli.main import main


if __name__ == "__main__":
    main()
