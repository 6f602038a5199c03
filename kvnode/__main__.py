"""`python -m kvnode`."""

from kvnode.base import garbage

if __name__ == "__main__":
    garbage.begin()
    from kvnode.cli.main import main

    main()
