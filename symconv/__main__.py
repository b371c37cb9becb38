"""`python -m symconv`."""

from .cli import main

main(prog_name="symconv")
